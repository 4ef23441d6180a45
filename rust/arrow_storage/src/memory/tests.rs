//! What holds of the store whatever happens: laws over a small one.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::record::{Clear, Incoming, Vectors};
use super::{Filter, KEY_BYTES, Options, Store, log, record};
use crate::error::StorageError;

const DIM: usize = 3;

/// A folder that goes with the test.
struct Home(PathBuf);

impl Home {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("aios-memory-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Store::create(&path, Options { dim: DIM, half: false, identity: [7; 16] }).unwrap();
        Home(path)
    }

    fn file(&self, prefix: &str) -> PathBuf {
        let mut found: Vec<_> = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path()).collect();
        found.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with(prefix));
        assert_eq!(found.len(), 1);
        found.remove(0)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
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
    let home = Home::new("kept");
    let mut ids = Vec::new();
    for round in 0..4 {
        let store = Store::open(&home.0).unwrap();
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
        check(&Store::open_reader(&home.0).unwrap(), &ids);
        assert!(matches!(Store::open(&home.0), Err(StorageError::Busy)));
    }
    let store = Store::open(&home.0).unwrap();
    assert!(store.compact().unwrap());
    assert!(!store.compact().unwrap());
    check(&store, &ids);
    assert_eq!(store.forgotten_ids(), [2, 7, 11]);
    assert!(store.read(7).unwrap().is_none() && store.forgotten(7));
    assert_eq!(store.reserve(1).unwrap().start, 21);
    drop(store);
    check(&Store::open(&home.0).unwrap(), &ids);
}

#[test]
fn a_reader_sees_what_is_acknowledged_and_keeps_its_snapshot() {
    let home = Home::new("reader");
    let store = Store::open(&home.0).unwrap();
    let mut ids = remember(&store, 3);
    let reader = Store::open_reader(&home.0).unwrap();
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
}

#[test]
fn every_prefix_of_a_log_opens_to_a_prefix_of_its_memories() {
    let home = Home::new("torn");
    let store = Store::open(&home.0).unwrap();
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
        bytes[64..76].copy_from_slice(&log::mark(log::START)); // nothing was acknowledged for certain
        bytes
    };
    for cut in log::START as usize..bytes.len() {
        fs::write(&log, &unmarked[..cut]).unwrap();
        let kept = whole.iter().filter(|&&end| end <= cut as u64).count() - 1;
        check(&Store::open(&home.0).unwrap(), &(1..=kept as u64).collect::<Vec<_>>());
        fs::write(&log, &bytes[..cut]).unwrap();
        assert!(matches!(Store::open(&home.0), Err(StorageError::Corrupt { .. })), "{cut}");
    }
}

#[test]
fn no_flipped_bit_of_what_was_acknowledged_passes_unseen() {
    let home = Home::new("flips");
    let store = Store::open(&home.0).unwrap();
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
            match Store::open_reader(&home.0).and_then(|store| store.verify()) {
                Err(StorageError::Corrupt { .. }) | Ok(5) => {} // or padding
                Err(other) => panic!("{prefix} byte {byte}: {other}"),
                Ok(count) => panic!("{prefix} byte {byte} hides {} memories", 5 - count),
            }
        }
        fs::write(&path, &bytes).unwrap();
    }
    check(&Store::open(&home.0).unwrap(), &ids);
}

#[test]
fn a_forgotten_vector_is_zeroed_in_place_and_its_key_is_overwritten() {
    let home = Home::new("zeroed");
    let store = Store::open(&home.0).unwrap();
    remember(&store, 2);
    store.flush().unwrap();
    remember(&store, 2);
    let needle =
        |id: u64| incoming(id).vector.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let holds = |needle: &[u8]| {
        let files = fs::read_dir(&home.0).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap());
        files
            .map(|bytes| bytes.windows(needle.len()).filter(|window| *window == needle).count())
            .sum::<usize>()
    };
    assert_eq!((holds(&needle(1)), holds(&needle(3)), holds(&[3; KEY_BYTES])), (1, 1, 1));
    store.forget(&[1, 3]).unwrap();
    assert_eq!((holds(&needle(1)), holds(&needle(3)), holds(&[3; KEY_BYTES])), (0, 0, 0));
    assert_eq!(holds(b"sealed 1"), 1, "the sealed bytes go with compaction");
    drop(store);
    let store = Store::open(&home.0).unwrap();
    check(&store, &[2, 4]);
    store.compact().unwrap();
    assert_eq!((holds(b"sealed 1"), holds(b"sealed 3"), holds(b"sealed 4")), (0, 0, 1));
}

#[test]
fn a_lost_key_is_told_and_never_taken_for_a_forgotten_one() {
    let home = Home::new("lost-keys");
    let store = Store::open(&home.0).unwrap();
    remember(&store, 3);
    store.forget(&[2]).unwrap();
    drop(store);
    let keys = home.file("keys");
    let whole = fs::read(&keys).unwrap();
    for cut in 65..whole.len() {
        fs::write(&keys, &whole[..cut]).unwrap();
        let reader = Store::open_reader(&home.0).unwrap();
        assert!(matches!(reader.verify(), Err(StorageError::Corrupt { .. })), "{cut}");
        assert!(reader.read(2).unwrap().is_none());
    }
}

#[test]
fn an_interrupted_forgetting_is_finished_at_the_next_opening() {
    let home = Home::new("finish");
    let store = Store::open(&home.0).unwrap();
    remember(&store, 2);
    store.flush().unwrap();
    drop(store);
    let (log, mut frames) = (home.file("log-"), Vec::new());
    log::push_forget(&[1], &mut frames);
    let file = fs::File::options().write(true).open(&log).unwrap();
    file.write_all_at(&frames, log::START).unwrap();
    let store = Store::open(&home.0).unwrap();
    check(&store, &[2]);
    assert_eq!(fs::read(home.file("keys")).unwrap()[64..124], [0; KEY_BYTES]);
}

#[test]
fn leftovers_of_a_crash_are_removed_and_missing_files_are_told() {
    let home = Home::new("leftovers");
    for name in ["segment-00000009.arrow", "log-00000007", "manifest.json.staged", "forgotten-00000003"] {
        fs::write(home.0.join(name), b"x").unwrap();
    }
    fs::write(home.0.join("notes"), b"x").unwrap();
    let store = Store::open(&home.0).unwrap();
    remember(&store, 2);
    store.flush().unwrap();
    assert_eq!(fs::read_dir(&home.0).unwrap().count(), 6); // lock, keys, manifest, log, segment, notes
    drop(store);
    fs::remove_file(home.file("segment-")).unwrap();
    assert!(matches!(Store::open(&home.0), Err(StorageError::Corrupt { .. })));
    assert!(matches!(Store::open_reader(&home.0), Err(StorageError::Corrupt { .. })));
}

#[test]
fn filters_agree_with_their_meaning_in_log_and_segment() {
    let home = Home::new("filters");
    let store = Store::open(&home.0).unwrap();
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
}

#[test]
fn what_is_too_large_or_wrong_is_refused_before_it_is_written() {
    let home = Home::new("refused");
    let store = Store::open(&home.0).unwrap();
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
    assert!(Store::create(&home.0, Options { dim: 0, half: false, identity: [0; 16] }).is_err());
}

#[test]
fn many_threads_share_groups_and_lose_nothing() {
    let home = Home::new("threads");
    let store = Store::open(&home.0).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..10).for_each(|_| drop(remember(&store, 2))));
        }
    });
    check(&store, &(1..=160).collect::<Vec<_>>());
    store.flush().unwrap();
    check(&store, &(1..=160).collect::<Vec<_>>());
    drop(store);
    check(&Store::open(&home.0).unwrap(), &(1..=160).collect::<Vec<_>>());
}

#[test]
fn vectors_in_half_precision_are_rounded_once() {
    let home = Home::new("half");
    let path = home.0.join("inner");
    Store::create(&path, Options { dim: DIM, half: true, identity: [1; 16] }).unwrap();
    let store = Store::open(&path).unwrap();
    let id = store.reserve(1).unwrap().start;
    store.append(vec![Incoming { vector: vec![0.1, 1.0, -2.5], ..incoming(id) }]).unwrap();
    for _ in 0..2 {
        let mut vector = [0.0; DIM];
        store.vectors_of(&[id], &mut vector).unwrap();
        assert_eq!(vector, [aios_half::round(0.1), 1.0, -2.5]);
        store.flush().unwrap();
    }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 300, failure_persistence: None, ..Default::default() })]
    #[test]
    fn any_bytes_are_no_log_or_a_whole_one(bytes in proptest::collection::vec(0u8..=255, 0..200)) {
        let vectors = Vectors { dim: DIM, half: false };
        if let Ok(scanned) = log::scan(&bytes, log::START, vectors) {
            assert!(scanned.end <= log::START + bytes.len() as u64);
        }
        let _ = record::decode(&bytes);
    }
}
