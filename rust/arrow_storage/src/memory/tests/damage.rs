//! What is torn, flipped, left over or missing is cut, removed or told, and never guessed.

use std::fs;

use super::{DIM, both, check, remember};
use crate::error::StorageError;
use crate::memory::frame::Frames;
use crate::memory::record::Vectors;
use crate::memory::sealing::Kind;
use crate::memory::{StoreKey, log, record};

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
