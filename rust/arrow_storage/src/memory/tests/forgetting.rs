//! What was forgotten is gone from the files, and forgetting goes through whatever interrupts it.

use std::fs;

use super::{both, check, incoming, remember};
use crate::error::StorageError;
use crate::memory::{KEY_BYTES, log};

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
