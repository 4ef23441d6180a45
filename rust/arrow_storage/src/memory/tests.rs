//! What holds of the store whatever happens: laws over a small one.

use std::fs;
use std::path::PathBuf;

use super::log::LogFile;
use super::manifest::{Manifest, log_path};
use super::record::{Clear, Incoming};
use super::{Filter, KEY_BYTES, Options, Store, StoreKey};
use crate::error::{Result, StorageError};

mod damage;
mod forgetting;
mod sealed;

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
