//! The laws of weight files: what is written is read, damage is named, an interrupted writer goes on.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aios_arrow_storage::{Dtype, PARTS, Result, StorageError, TensorSpec, WeightFile, WeightWriter};
use proptest::prelude::*;

/// A folder of its own that goes with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("aios-weights-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    fn path(&self) -> PathBuf {
        self.0.join("model.parquet")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn plain(name: &str, dtype: Dtype, shape: &[u64]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype, shape: shape.into(), group_size: 0, symmetric: false, rank: 0 }
}

fn packed(name: &str, dtype: Dtype, shape: [u64; 2], symmetric: bool, rank: u32) -> TensorSpec {
    TensorSpec { name: name.into(), dtype, shape: shape.into(), group_size: 64, symmetric, rank }
}

fn noise(length: u64, seed: u8) -> Vec<u8> {
    (0..length).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

fn add(writer: &mut WeightWriter, spec: TensorSpec, seed: u8) -> Result<()> {
    let sizes = writer.begin(spec)?;
    for (part, &bytes) in sizes.iter().enumerate() {
        for piece in noise(bytes, seed.wrapping_add(part as u8)).chunks(37) {
            writer.write(part, piece)?;
        }
    }
    writer.end()
}

fn tiny() -> Vec<TensorSpec> {
    vec![
        plain("a", Dtype::F32, &[3, 2]),
        packed("p", Dtype::Int2, [2, 3], false, 1),
        plain("empty", Dtype::I64, &[0, 7]),
        plain("scalar", Dtype::Bf16, &[]),
    ]
}

fn write(path: &std::path::Path, source: &str, specs: &[TensorSpec]) -> Result<()> {
    let mut writer = WeightWriter::create(path, source)?;
    for (seed, spec) in specs.iter().enumerate().skip(writer.entries().len()) {
        add(&mut writer, spec.clone(), seed as u8)?;
    }
    writer.finish(&[("aios.card".into(), "a card".into())])
}

fn tensor_of<T>(result: Result<T>) -> Option<String> {
    match result.err().expect("damage is found") {
        StorageError::Corrupt { tensor, .. } => tensor,
        other => panic!("{other} is not corruption"),
    }
}

#[test]
fn what_is_written_is_read_aligned_and_verified() {
    let scratch = Scratch::new();
    write(&scratch.path(), "", &tiny()).unwrap();
    let bytes = fs::read(scratch.path()).unwrap();
    let file = WeightFile::open(&scratch.path(), true).unwrap();
    assert!(file.intact(Duration::from_secs(60)).unwrap());
    for (index, (entry, spec)) in file.entries().iter().zip(tiny()).enumerate() {
        assert_eq!(entry.spec, spec);
        file.verify(index).unwrap();
        for (number, part) in entry.parts.iter().enumerate().filter(|(_, part)| part.bytes > 0) {
            assert_eq!(part.offset % 64, 0);
            let found = &bytes[part.offset as usize..part.end() as usize];
            assert_eq!(found, noise(part.bytes, (index + number) as u8), "{} {}", spec.name, PARTS[number]);
        }
    }
    assert!(!scratch.path().with_extension("parquet.partial").exists());
}

#[test]
fn every_flipped_bit_is_detected_and_in_a_payload_its_tensor_is_named() {
    let scratch = Scratch::new();
    write(&scratch.path(), "", &tiny()).unwrap();
    let whole = fs::read(scratch.path()).unwrap();
    let reference = WeightFile::open(&scratch.path(), false).unwrap();
    let owner = |at: u64| {
        let holds = |entry: &&aios_arrow_storage::TensorEntry| {
            entry.parts.iter().any(|part| (part.offset..part.end()).contains(&at))
        };
        reference.entries().iter().find(holds).map(|entry| entry.spec.name.clone())
    };
    let handle = fs::OpenOptions::new().write(true).open(scratch.path()).unwrap();
    for (at, &byte) in whole.iter().enumerate() {
        for bit in 0..8 {
            handle.write_all_at(&[byte ^ (1 << bit)], at as u64).unwrap();
            let checked = WeightFile::open(&scratch.path(), false)
                .and_then(|file| (0..file.entries().len()).try_for_each(|index| file.verify(index)));
            let named = tensor_of(checked);
            if let Some(name) = owner(at as u64) {
                assert_eq!(named.as_ref(), Some(&name), "byte {at} bit {bit}");
                if bit == at % 8 {
                    let file = WeightFile::open(&scratch.path(), true).unwrap();
                    assert_eq!(
                        tensor_of(file.intact(Duration::from_secs(60))),
                        Some(name),
                        "byte {at} bit {bit}"
                    );
                }
            }
        }
        handle.write_all_at(&[byte], at as u64).unwrap();
    }
    assert_eq!(fs::read(scratch.path()).unwrap(), whole);
}

#[test]
fn every_truncation_and_every_appended_byte_is_detected() {
    let scratch = Scratch::new();
    write(&scratch.path(), "", &tiny()).unwrap();
    let whole = fs::read(scratch.path()).unwrap();
    let shorter = (0..whole.len()).map(|length| whole[..length].to_vec());
    for bytes in shorter.chain([[&whole[..], b"\0"].concat(), [b"PAR1", &whole[..]].concat()]) {
        fs::write(scratch.path(), &bytes).unwrap();
        tensor_of(WeightFile::open(&scratch.path(), false));
    }
}

#[test]
fn an_interrupted_file_goes_on_and_ends_with_the_same_bytes() {
    let (straight, broken) = (Scratch::new(), Scratch::new());
    write(&straight.path(), "one", &tiny()).unwrap();
    for complete in 0..=tiny().len() {
        let mut writer = WeightWriter::create(&broken.path(), "one").unwrap();
        for (seed, spec) in tiny().into_iter().enumerate().take(complete) {
            add(&mut writer, spec, seed as u8).unwrap();
        }
        let sizes = writer.begin(plain("half", Dtype::F32, &[1000])).unwrap();
        writer.write(0, &noise(sizes[0] / 2, 0)).unwrap();
        drop(writer);
        assert_eq!(WeightWriter::create(&broken.path(), "one").unwrap().entries().len(), complete);
        write(&broken.path(), "one", &tiny()).unwrap();
        assert_eq!(fs::read(broken.path()).unwrap(), fs::read(straight.path()).unwrap());
        assert_eq!(fs::read_dir(&broken.0).unwrap().count(), 1, "nothing but the file is left");
    }
}

#[test]
fn a_partial_file_of_another_source_or_with_damage_is_not_believed() {
    let scratch = Scratch::new();
    let partial = scratch.0.join("model.parquet.partial");
    let start = || {
        let mut writer = WeightWriter::create(&scratch.path(), "one").unwrap();
        for (seed, spec) in tiny().into_iter().enumerate().skip(writer.entries().len()) {
            add(&mut writer, spec, seed as u8).unwrap();
        }
        writer.entries()[1].parts
    };
    let parts = start();
    assert_eq!(WeightWriter::create(&scratch.path(), "two").unwrap().entries().len(), 0);
    start();
    let file = fs::OpenOptions::new().write(true).open(&partial).unwrap();
    file.write_all_at(&[0xEE], parts[0].offset).unwrap();
    assert_eq!(WeightWriter::create(&scratch.path(), "one").unwrap().entries().len(), 1);
    start();
    file.set_len(parts[4].end() - 1).unwrap();
    assert_eq!(WeightWriter::create(&scratch.path(), "one").unwrap().entries().len(), 1);
    start();
    assert_eq!(WeightWriter::create(&scratch.path(), "").unwrap().entries().len(), 0);
    assert_eq!(
        WeightWriter::create(&scratch.path(), "one").unwrap().entries().len(),
        0,
        "its journal went too"
    );
}

#[test]
fn two_writers_of_one_file_are_one_too_many() {
    let scratch = Scratch::new();
    let first = WeightWriter::create(&scratch.path(), "one").unwrap();
    assert!(matches!(WeightWriter::create(&scratch.path(), "one"), Err(StorageError::Busy)));
    drop(first);
    WeightWriter::create(&scratch.path(), "one").unwrap();
}

#[test]
fn calls_out_of_order_and_impossible_tensors_are_refused() {
    let scratch = Scratch::new();
    let mut writer = WeightWriter::create(&scratch.path(), "").unwrap();
    let input = |result: Result<()>| assert!(matches!(result, Err(StorageError::Input { .. })), "{result:?}");
    let limit = |result: Result<()>| assert!(matches!(result, Err(StorageError::Limit { .. })), "{result:?}");
    input(writer.write(0, b"x"));
    input(writer.end());
    limit(writer.begin(plain("huge", Dtype::F32, &[1 << 40])).map(drop));
    limit(writer.begin(plain("overflow", Dtype::F32, &[u64::MAX, u64::MAX])).map(drop));
    limit(writer.begin(plain("hidden overflow", Dtype::F32, &[0, u64::MAX])).map(drop));
    limit(writer.begin(plain("axes", Dtype::F32, &[1; 9])).map(drop));
    limit(writer.begin(packed("wide", Dtype::Int2, [u64::MAX, 2], false, 0)).map(drop));
    limit(writer.begin(packed("rank", Dtype::Int2, [2, 2], false, 257)).map(drop));
    input(writer.begin(plain("", Dtype::F32, &[1])).map(drop));
    input(writer.begin(plain("a\nb", Dtype::F32, &[1])).map(drop));
    input(writer.begin(plain("packed", Dtype::Int4, &[2, 2])).map(drop));
    input(
        writer.begin(TensorSpec { shape: vec![2], ..packed("flat", Dtype::Int4, [2, 2], true, 0) }).map(drop),
    );
    input(
        writer
            .begin(TensorSpec { group_size: 16, ..packed("groups", Dtype::Int4, [2, 2], true, 0) })
            .map(drop),
    );
    input(writer.begin(TensorSpec { rank: 1, ..plain("rank", Dtype::F32, &[2, 2]) }).map(drop));

    writer.begin(packed("p", Dtype::Int8, [1, 1], true, 0)).unwrap();
    input(writer.write(1, b"scales before data"));
    input(writer.write(9, b"x"));
    input(writer.write(0, &vec![0; 1025]));
    writer.write(0, &[0; 1000]).unwrap();
    input(writer.end());
    input(writer.finish(&[]));
    writer.write(0, &[0; 24]).unwrap();
    input(writer.write(2, b"symmetric"));
    writer.write(1, &[0; 64]).unwrap();
    writer.end().unwrap();
    input(writer.begin(packed("p", Dtype::Int8, [1, 1], true, 0)).map(drop));
    input(writer.finish(&[("aios.format".into(), "3".into())]));
    writer.finish(&[]).unwrap();
    input(writer.finish(&[]));
    writer.abandon().unwrap();
    assert!(WeightFile::open(&scratch.path(), false).is_ok(), "giving up afterwards takes nothing away");
}

#[test]
fn an_empty_file_is_a_weight_file() {
    let scratch = Scratch::new();
    write(&scratch.path(), "", &[]).unwrap();
    let file = WeightFile::open(&scratch.path(), true).unwrap();
    assert!(file.entries().is_empty() && file.intact(Duration::from_secs(60)).unwrap());
}

#[test]
fn closing_while_the_check_runs_ends_it() {
    let scratch = Scratch::new();
    write(&scratch.path(), "", &[plain("large", Dtype::F32, &[4 << 20])]).unwrap();
    for _ in 0..20 {
        let file = WeightFile::open(&scratch.path(), true).unwrap();
        file.close();
        let _ = file.intact(Duration::from_secs(60));
    }
}

fn any_spec() -> impl Strategy<Value = TensorSpec> {
    let dtype =
        prop::sample::select(vec!["f32", "f16", "bf16", "f64", "i64", "i32", "i16", "i8", "u8", "bool"]);
    let plain = (dtype, prop::collection::vec(0u64..6, 0..5))
        .prop_map(|(dtype, shape)| plain("", Dtype::parse(dtype).unwrap(), &shape));
    let codes = prop::sample::select(vec![Dtype::Int8, Dtype::Int4, Dtype::Int2]);
    let groups = prop::sample::select(vec![32u32, 64, 128]);
    let packed = (codes, groups, 0u64..70, 0u64..140, any::<bool>(), 0u32..4).prop_map(
        |(dtype, group_size, rows, columns, symmetric, rank)| TensorSpec {
            group_size,
            ..packed("", dtype, [rows, columns], symmetric, rank)
        },
    );
    prop_oneof![plain, packed]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tensors_survive_the_way_there_and_back(specs in prop::collection::vec(any_spec(), 0..8)) {
        let scratch = Scratch::new();
        let specs: Vec<TensorSpec> = specs.into_iter().enumerate()
            .map(|(index, spec)| TensorSpec { name: format!("tensor.{index}"), ..spec }).collect();
        write(&scratch.path(), "", &specs).unwrap();
        let file = WeightFile::open(&scratch.path(), false).unwrap();
        prop_assert_eq!(file.entries().iter().map(|entry| entry.spec.clone()).collect::<Vec<_>>(), specs);
        for index in 0..file.entries().len() {
            file.verify(index).unwrap();
        }
    }

    #[test]
    fn any_damage_is_refused_or_leaves_the_file_as_it_was(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let scratch = Scratch::new();
        write(&scratch.path(), "", &tiny()).unwrap();
        let whole = fs::read(scratch.path()).unwrap();
        let mut bytes = whole.clone();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        fs::write(scratch.path(), &bytes).unwrap();
        let checked = WeightFile::open(&scratch.path(), false)
            .and_then(|file| (0..file.entries().len()).try_for_each(|index| file.verify(index)));
        prop_assert_eq!(checked.is_ok(), bytes == whole);
    }
}
