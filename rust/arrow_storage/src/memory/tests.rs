//! What holds of the store whatever happens: laws over a small one.

use std::fs;
use std::path::PathBuf;

use super::frame::Frames;
use super::log::{self, LogFile};
use super::manifest::{Manifest, log_path};
use super::record::{Clear, Incoming, Vectors};
use super::sealing::Kind;
use super::{Filter, KEY_BYTES, Options, Store, StoreKey, record, sealing};
use crate::error::{Result, StorageError};

const DIM: usize = 3;

/// A folder that goes with the test.
struct Home {
    path: PathBuf,
    key: Option<StoreKey>,
}

/// What holds of a store holds of one that is encrypted as a whole.
fn both(name: &str, law: impl Fn(&Home)) {
    law(&Home::new(name, None));
    law(&Home::new(name, Some(StoreKey::new([9; 32]))));
}

impl Home {
    fn new(name: &str, key: Option<StoreKey>) -> Self {
        let path = std::env::temp_dir().join(format!("aios-memory-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        let home = Home { path, key };
        Store::create(&home.path, home.options()).unwrap();
        home
    }

    fn options(&self) -> Options {
        Options { dim: DIM, half: false, identity: [7; 16], key: self.key.clone() }
    }

    fn open(&self) -> Result<Store> {
        Store::open(&self.path, self.key.clone())
    }

    fn reader(&self) -> Result<Store> {
        Store::open_reader(&self.path, self.key.clone())
    }

    /// The log as it is now.
    fn log(&self) -> LogFile {
        let manifest = Manifest::read(&self.path).unwrap().unwrap();
        let path = log_path(&self.path, manifest.log);
        LogFile::open(&path, manifest.log, manifest.kept(self.key.as_ref()), true).unwrap().unwrap()
    }

    fn file(&self, prefix: &str) -> PathBuf {
        let mut found: Vec<_> =
            fs::read_dir(&self.path).unwrap().map(|entry| entry.unwrap().path()).collect();
        found.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with(prefix));
        assert_eq!(found.len(), 1);
        found.remove(0)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn incoming(id: u64) -> Incoming {
    let clear = Clear {
        namespace: format!("space {}", id % 2),
        tags: (0..id % 3).map(|tag| format!("tag {tag}")).collect(),
        source: "s".repeat((id % 5) as usize),
        provenance: "told".to_owned(),
    };
    Incoming {
        id,
        time: id as i64 * 10,
        clear,
        vector: vec![id as f32, 1.0, -0.5],
        sealed: format!("sealed {id}").into_bytes(),
        key: [id as u8; KEY_BYTES],
    }
}

fn remember(store: &Store, count: usize) -> Vec<u64> {
    let ids: Vec<u64> = store.reserve(count).unwrap().collect();
    store.append(ids.iter().map(|&id| incoming(id)).collect()).unwrap();
    ids
}

fn check(store: &Store, ids: &[u64]) {
    for &id in ids {
        let (record, key) = store.read(id).unwrap().unwrap();
        let expected = incoming(id);
        assert_eq!((record.id, record.time, &record.clear), (id, expected.time, &expected.clear));
        assert_eq!((record.sealed, key), (expected.sealed, expected.key));
        let mut vector = [0.0; DIM];
        store.vectors_of(&[id], &mut vector).unwrap();
        assert_eq!(vector.as_slice(), expected.vector);
    }
    let mut all = store.select(&Filter::default()).unwrap();
    all.sort_unstable();
    assert_eq!(all, ids);
    assert_eq!(store.verify().unwrap(), ids.len());
    let (mut seen, mut from) = (Vec::new(), 0);
    loop {
        let (mut some, mut vectors) = ([0; 4], [0.0; 4 * DIM]);
        let (found, next) = store.scan(from, 0, &mut some, &mut vectors).unwrap();
        some[..found]
            .iter()
            .zip(vectors.chunks(DIM))
            .for_each(|(&id, vector)| assert_eq!(vector[0], id as f32));
        seen.extend_from_slice(&some[..found]);
        if next == 0 {
            break;
        }
        from = next;
    }
    seen.sort_unstable();
    assert_eq!(seen, ids);
}

#[test]
fn what_was_acknowledged_is_there_after_every_way_to_open() {
    both("kept", |home| {
        let mut ids = Vec::new();
        for round in 0..4 {
            let store = home.open().unwrap();
            ids.extend(remember(&store, 5));
            if round == 1 {
                store.flush().unwrap();
            }
            if round == 2 {
                let gone = store.forget(&[2, 7, 11, 999]).unwrap();
                assert_eq!(gone, [2, 7, 11]);
                ids.retain(|id| !gone.contains(id));
            }
            check(&store, &ids);
            check(&home.reader().unwrap(), &ids);
            assert!(matches!(home.open(), Err(StorageError::Busy)));
        }
        let store = home.open().unwrap();
        assert!(store.compact().unwrap());
        assert!(!store.compact().unwrap());
        check(&store, &ids);
        assert_eq!(store.forgotten_ids(), [2, 7, 11]);
        assert!(store.read(7).unwrap().is_none() && store.forgotten(7));
        assert_eq!(store.reserve(1).unwrap().start, 21);
        drop(store);
        check(&home.open().unwrap(), &ids);
    });
}

#[test]
fn a_reader_sees_what_is_acknowledged_and_keeps_its_snapshot() {
    both("reader", |home| {
        let store = home.open().unwrap();
        let mut ids = remember(&store, 3);
        let reader = home.reader().unwrap();
        let more = remember(&store, 3);
        store.flush().unwrap();
        check(&reader, &ids);
        reader.refresh().unwrap();
        ids.extend(more);
        check(&reader, &ids);
        store.forget(&[1]).unwrap();
        assert!(reader.read(1).unwrap().is_none(), "the key is gone at once");
        store.compact().unwrap();
        reader.refresh().unwrap();
        check(&reader, &ids[1..]);
        assert!(reader.append(Vec::new()).is_err());
    });
}

#[test]
fn every_prefix_of_a_log_opens_to_a_prefix_of_its_memories() {
    both("torn", |home| {
        let store = home.open().unwrap();
        let mut whole = vec![log::START];
        for _ in 0..4 {
            remember(&store, 1);
            whole.push(fs::metadata(home.file("log-")).unwrap().len());
        }
        drop(store);
        let log = home.file("log-");
        let bytes = fs::read(&log).unwrap();
        let unmarked = {
            let mut bytes = bytes.clone();
            for at in [64, 96] {
                bytes[at..at + 12].copy_from_slice(&log::mark(log::START)); // nothing was acknowledged for certain
            }
            bytes
        };
        for cut in log::START as usize..bytes.len() {
            fs::write(&log, &unmarked[..cut]).unwrap();
            let kept = whole.iter().filter(|&&end| end <= cut as u64).count() - 1;
            check(&home.open().unwrap(), &(1..=kept as u64).collect::<Vec<_>>());
            fs::write(&log, &bytes[..cut]).unwrap();
            assert!(matches!(home.open(), Err(StorageError::Corrupt { .. })), "{cut}");
        }
    });
}

#[test]
fn a_mark_that_was_half_written_hides_nothing_and_stops_nobody() {
    both("mark", |home| {
        let mut ids = Vec::new();
        for _ in 0..5 {
            let before = if ids.is_empty() { Vec::new() } else { fs::read(home.file("log-")).unwrap() };
            let store = home.open().unwrap();
            ids.extend(remember(&store, 1));
            drop(store);
            let log = home.file("log-");
            let after = fs::read(&log).unwrap();
            for at in [64, 96].into_iter().filter(|_| !before.is_empty()) {
                for cut in 1..12 {
                    let mut torn = after.clone();
                    torn[at..at + 12].fill(0xA5);
                    torn[at..at + cut].copy_from_slice(&after[at..at + cut]);
                    fs::write(&log, &torn).unwrap();
                    check(&home.reader().unwrap(), &ids);
                }
                check(&home.open().unwrap(), &ids);
            }
        }
    });
}

#[test]
fn no_flipped_bit_of_what_was_acknowledged_passes_unseen() {
    both("flips", |home| {
        let store = home.open().unwrap();
        remember(&store, 3);
        store.flush().unwrap();
        let ids: Vec<u64> = (1..=5).collect();
        remember(&store, 2);
        drop(store);
        for prefix in ["log-", "segment-", "keys", "manifest"] {
            let path = home.file(prefix);
            let bytes = fs::read(&path).unwrap();
            for byte in (0..bytes.len()).step_by(if prefix == "segment-" { 5 } else { 1 }) {
                let mut damaged = bytes.clone();
                damaged[byte] ^= 1 << (byte / 5 % 8);
                fs::write(&path, &damaged).unwrap();
                match home.reader().and_then(|store| store.verify()) {
                    Err(StorageError::Corrupt { .. }) | Ok(5) => {} // or padding
                    Err(other) => panic!("{prefix} byte {byte}: {other}"),
                    Ok(count) => panic!("{prefix} byte {byte} hides {} memories", 5 - count),
                }
            }
            fs::write(&path, &bytes).unwrap();
        }
        check(&home.open().unwrap(), &ids);
    });
}

#[test]
fn a_forgotten_vector_is_zeroed_in_place_and_its_key_is_overwritten() {
    both("zeroed", |home| {
        let store = home.open().unwrap();
        remember(&store, 2);
        store.flush().unwrap();
        remember(&store, 2);
        let needle =
            |id: u64| incoming(id).vector.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let holds = |needle: &[u8]| {
            let files =
                fs::read_dir(&home.path).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap());
            files
                .map(|bytes| bytes.windows(needle.len()).filter(|window| *window == needle).count())
                .sum::<usize>()
        };
        let clear = usize::from(home.key.is_none());
        assert_eq!((holds(&needle(1)), holds(&needle(3)), holds(&[3; KEY_BYTES])), (clear, clear, 1));
        store.forget(&[1, 3]).unwrap();
        assert_eq!((holds(&needle(1)), holds(&needle(3)), holds(&[3; KEY_BYTES])), (0, 0, 0));
        assert_eq!(holds(b"sealed 1"), 1, "the sealed bytes go with compaction");
        drop(store);
        let store = home.open().unwrap();
        check(&store, &[2, 4]);
        store.compact().unwrap();
        assert_eq!((holds(b"sealed 1"), holds(b"sealed 3"), holds(b"sealed 4")), (0, 0, 1));
    });
}

#[test]
fn a_lost_key_is_told_and_never_taken_for_a_forgotten_one() {
    both("lost-keys", |home| {
        let store = home.open().unwrap();
        remember(&store, 3);
        store.forget(&[2]).unwrap();
        drop(store);
        let keys = home.file("keys");
        let whole = fs::read(&keys).unwrap();
        for cut in 65..whole.len() {
            fs::write(&keys, &whole[..cut]).unwrap();
            let reader = home.reader().unwrap();
            assert!(matches!(reader.verify(), Err(StorageError::Corrupt { .. })), "{cut}");
            assert!(reader.read(2).unwrap().is_none());
        }
    });
}

#[test]
fn an_interrupted_forgetting_is_finished_at_the_next_opening() {
    both("finish", |home| {
        let store = home.open().unwrap();
        remember(&store, 2);
        store.flush().unwrap();
        drop(store);
        let (log, mut frames) = (home.log(), Vec::new());
        log.frames.forget(&[1], &mut frames, log::START).unwrap();
        log.write(&frames, log::START).unwrap();
        let store = home.open().unwrap();
        check(&store, &[2]);
        assert_eq!(fs::read(home.file("keys")).unwrap()[64..124], [0; KEY_BYTES]);
    });
}

#[test]
fn a_vector_that_was_erased_in_part_is_a_forgotten_one_and_nothing_else() {
    both("part", |home| {
        let store = home.open().unwrap();
        remember(&store, 2);
        let before = fs::read(home.file("log-")).unwrap();
        store.forget(&[1]).unwrap();
        drop(store);
        let log = home.file("log-");
        let after = fs::read(&log).unwrap();
        let changed = |&at: &usize| at >= log::START as usize && before[at] != after[at];
        let erased: Vec<usize> = (0..before.len()).filter(changed).collect();
        for cut in erased.iter().map(|at| at + 1) {
            let torn = [&after[..cut], &before[cut..], &after[before.len()..]].concat();
            fs::write(&log, torn).unwrap();
            check(&home.open().unwrap(), &[2]);
            let frames = |bytes: &[u8]| bytes[log::START as usize..].to_vec();
            assert!(
                frames(&fs::read(&log).unwrap()) == frames(&after),
                "it is erased in whole at the next opening"
            );
        }
        let unforgotten = [&after[..erased[0] + 1], &before[erased[0] + 1..]].concat();
        fs::write(&log, unforgotten).unwrap();
        assert!(matches!(home.open(), Err(StorageError::Corrupt { .. })));
    });
}

#[test]
fn leftovers_of_a_crash_are_removed_and_missing_files_are_told() {
    both("leftovers", |home| {
        for name in ["segment-00000009.arrow", "log-00000007", "manifest.json.staged", "forgotten-00000003"] {
            fs::write(home.path.join(name), b"x").unwrap();
        }
        fs::write(home.path.join("notes"), b"x").unwrap();
        let store = home.open().unwrap();
        remember(&store, 2);
        store.flush().unwrap();
        assert_eq!(fs::read_dir(&home.path).unwrap().count(), 6); // lock, keys, manifest, log, segment, notes
        drop(store);
        fs::remove_file(home.file("segment-")).unwrap();
        assert!(matches!(home.open(), Err(StorageError::Corrupt { .. })));
        assert!(matches!(home.reader(), Err(StorageError::Corrupt { .. })));
    });
}

#[test]
fn filters_agree_with_their_meaning_in_log_and_segment() {
    both("filters", |home| {
        let store = home.open().unwrap();
        remember(&store, 20);
        for _ in 0..2 {
            let select = |filter: Filter| store.select(&filter).unwrap();
            let odd = select(Filter { namespaces: vec!["space 1".into()], ..Filter::default() });
            assert_eq!(odd, (1..=20).filter(|id| id % 2 == 1).collect::<Vec<_>>());
            let both = Filter {
                tags: vec!["tag 0".into(), "tag 1".into()],
                sources: vec!["ss".into()],
                ..Filter::default()
            };
            assert_eq!(select(both), [2, 17]);
            assert_eq!(select(Filter { since: Some(50), until: Some(80), ..Filter::default() }), [5, 6, 7]);
            assert!(select(Filter { provenances: vec!["invented".into()], ..Filter::default() }).is_empty());
            store.flush().unwrap();
        }
    });
}

#[test]
fn what_is_too_large_or_wrong_is_refused_before_it_is_written() {
    both("refused", |home| {
        let store = home.open().unwrap();
        assert!(store.append(vec![incoming(1)]).is_err(), "not reserved");
        let wrong: [fn(&mut Incoming); 6] = [
            |one| one.vector.push(0.0),
            |one| one.vector[0] = f32::NAN,
            |one| one.clear.namespace = "n".repeat(256),
            |one| one.clear.tags = vec![String::new(); 65],
            |one| one.sealed = vec![0; (4 << 20) + 1],
            |one| one.id += 1,
        ];
        for spoil in wrong {
            let mut one = incoming(store.reserve(1).unwrap().start);
            spoil(&mut one);
            assert!(store.append(vec![one]).is_err());
        }
        assert!(store.reserve(super::GROUP_MAX + 1).is_err());
        assert_eq!(store.stats().live, 0);
        assert!(Store::create(&home.path.join("inner"), Options { dim: 0, ..home.options() }).is_err());
    });
}

#[test]
fn many_threads_share_groups_and_lose_nothing() {
    both("threads", |home| {
        let store = home.open().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..10).for_each(|_| drop(remember(&store, 2))));
            }
        });
        check(&store, &(1..=160).collect::<Vec<_>>());
        store.flush().unwrap();
        check(&store, &(1..=160).collect::<Vec<_>>());
        drop(store);
        check(&home.open().unwrap(), &(1..=160).collect::<Vec<_>>());
    });
}

#[test]
fn vectors_in_half_precision_are_rounded_once() {
    both("half", |home| {
        let path = home.path.join("inner");
        Store::create(&path, Options { half: true, ..home.options() }).unwrap();
        let store = Store::open(&path, home.key.clone()).unwrap();
        let id = store.reserve(1).unwrap().start;
        store.append(vec![Incoming { vector: vec![0.1, 1.0, -2.5], ..incoming(id) }]).unwrap();
        for _ in 0..2 {
            let mut vector = [0.0; DIM];
            store.vectors_of(&[id], &mut vector).unwrap();
            assert_eq!(vector, [aios_half::round(0.1), 1.0, -2.5]);
            store.flush().unwrap();
        }
    });
}

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

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 300, failure_persistence: None, ..Default::default() })]
    #[test]
    fn any_bytes_are_no_log_or_a_whole_one(bytes in proptest::collection::vec(0u8..=255, 0..200)) {
        for key in [None, Some(StoreKey::new([9; 32]).file(Kind::Log, 1, &[0; 16]))] {
            let frames = Frames { vectors: Vectors { dim: DIM, half: false }, key };
            if let Ok(scanned) = frames.scan(&bytes, log::START) {
                assert!(scanned.end <= log::START + bytes.len() as u64);
            }
        }
        let _ = record::decode(&bytes);
    }
}
