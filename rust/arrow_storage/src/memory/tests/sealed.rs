//! A store that is encrypted as a whole says nothing but ids, and lets no piece of it be exchanged.

use std::fs;

use super::{DIM, Home, both, incoming, remember};
use crate::error::StorageError;
use crate::memory::record::{Clear, Incoming};
use crate::memory::sealing::Kind;
use crate::memory::{Store, StoreKey, log, sealing};

#[test]
fn nothing_but_ids_is_clear_in_a_store_that_is_encrypted_as_a_whole() {
    let home = Home::new("all", Some(StoreKey::new([9; 32])));
    let store = home.open().unwrap();
    let ids: Vec<u64> = store.reserve(2).unwrap().collect();
    let secret = |id| Incoming {
        clear: Clear {
            namespace: "the hidden room".into(),
            tags: vec!["hidden tag".into()],
            source: "hidden.md".into(),
            provenance: "hidden hand".into(),
        },
        vector: vec![1234.5; DIM],
        time: 0x1122_3344_5566_7788,
        ..incoming(id)
    };
    let words: [&[u8]; 4] =
        [b"hidden", b"tag", &1234.5f32.to_le_bytes(), &0x1122_3344_5566_7788u64.to_le_bytes()];
    for _ in 0..2 {
        store.append(ids.iter().map(|&id| secret(id)).collect()).or(store.flush()).unwrap();
        for entry in fs::read_dir(&home.path).unwrap() {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            assert!(words.iter().all(|word| !bytes.windows(word.len()).any(|window| window == *word)));
        }
    }
    assert_eq!((store.stats().segments, store.verify().unwrap()), (1, 2));
}

#[test]
fn an_encrypted_store_opens_with_its_own_key_and_a_clear_one_with_none() {
    both("keys", |home| {
        remember(&home.open().unwrap(), 1);
        let other = if home.key.is_some() { None } else { Some(StoreKey::new([1; 32])) };
        for open in [Store::open, Store::open_reader] {
            assert!(matches!(open(&home.path, other.clone()), Err(StorageError::Input { .. })));
            if home.key.is_some() {
                let wrong = open(&home.path, Some(StoreKey::new([8; 32])));
                assert!(matches!(wrong, Err(StorageError::Corrupt { .. })));
            }
        }
        assert_eq!(Store::look(&home.path).unwrap(), Some(([7; 16], home.key.is_some())));
    });
}

#[test]
fn no_piece_of_a_sealed_file_can_be_exchanged() {
    let home = Home::new("pieces", Some(StoreKey::new([9; 32])));
    let store = home.open().unwrap();
    remember(&store, 2);
    drop(store);
    let log = home.file("log-");
    let bytes = fs::read(&log).unwrap();
    let frame = (bytes.len() - log::START as usize) / 2; // both are as long: the ids alone differ in what they say
    let (head, frames) = bytes.split_at(log::START as usize);
    let first = u32::from_le_bytes(frames[..4].try_into().unwrap()) as usize;
    assert!(first < 2 * frame);
    let length = 8 + first + DIM * 4 + sealing::TAG_BYTES;
    fs::write(&log, [head, &frames[length..], &frames[..length]].concat()).unwrap();
    assert!(matches!(home.reader(), Err(StorageError::Corrupt { .. })), "frames in another order");
    fs::write(&log, bytes).unwrap();
    let store = home.open().unwrap();
    store.flush().unwrap();
    drop(store);
    let segment = home.file("segment-");
    let mut bytes = fs::read(&segment).unwrap();
    let vector = DIM * 4 + sealing::TAG_BYTES;
    let at = bytes.len() - 2 * vector;
    let (a, b) = bytes[at..].split_at_mut(vector);
    a.swap_with_slice(b);
    fs::write(&segment, bytes).unwrap();
    let damaged = home.reader().and_then(|store| store.verify());
    assert!(matches!(damaged, Err(StorageError::Corrupt { .. })), "vectors in another order");
}

#[test]
fn a_sealed_file_comes_back_whole_or_not_at_all() {
    use std::io::Write;
    let (home, key) = (Home::new("whole", None), StoreKey::new([3; 32]));
    let path = home.path.join("index-1.sealed");
    for size in [1, 5, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 3 << 18] {
        let content: Vec<u8> = (0..size).map(|at: usize| ((at * 7) >> 3) as u8).collect();
        let put = |out: &mut dyn Write| content.chunks(1000).try_for_each(|some| out.write_all(some));
        sealing::write(&path, &key, Kind::Index, 1, put).unwrap();
        let map = sealing::open(&path, &key, Kind::Index, 1).unwrap().unwrap();
        // SAFETY: the whole map, which nobody writes.
        let found = unsafe { std::slice::from_raw_parts(map.address(), map.bytes()) };
        assert!(found == content);
        let bytes = fs::read(&path).unwrap();
        let chunk = (1 << 18) + sealing::TAG_BYTES;
        let cuts = [0, 35, 36, 52, 36 + chunk, 36 + 2 * chunk, bytes.len() - 1];
        for cut in cuts.into_iter().filter(|&cut| cut < bytes.len()) {
            fs::write(&path, &bytes[..cut]).unwrap();
            assert!(sealing::open(&path, &key, Kind::Index, 1).is_err(), "{size} cut at {cut}");
        }
        for at in [0, 20, 34, 36, bytes.len() / 2, bytes.len() - 1] {
            let mut flipped = bytes.clone();
            flipped[at] ^= 4;
            fs::write(&path, flipped).unwrap();
            assert!(sealing::open(&path, &key, Kind::Index, 1).is_err(), "{size} flipped at {at}");
        }
        fs::write(&path, bytes).unwrap();
        assert!(sealing::open(&path, &key, Kind::Index, 2).is_err());
        assert!(sealing::open(&path, &StoreKey::new([4; 32]), Kind::Index, 1).is_err());
    }
    fs::remove_file(&path).unwrap();
    assert!(sealing::open(&path, &key, Kind::Index, 1).unwrap().is_none());
}
