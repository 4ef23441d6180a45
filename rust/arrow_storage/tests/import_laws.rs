//! Laws of the readers of foreign files: what is written is read back, and no bytes do more than raise.

use aios_arrow_storage::import::gguf::{self, Value};
use aios_arrow_storage::import::{Fault, safetensors};
use proptest::prelude::*;

/// A GGUF file written field by field.
#[derive(Clone)]
struct Writer(Vec<u8>);

impl Writer {
    fn new(version: u32, tensors: u64, pairs: u64) -> Self {
        Writer(b"GGUF".to_vec()).u32(version).u64(tensors).u64(pairs)
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn text(self, text: &str) -> Self {
        self.u64(text.len() as u64).bytes(text.as_bytes())
    }

    fn tensor(self, name: &str, axes: &[u64], kind: u32, offset: u64) -> Self {
        let begun = self.text(name).u32(axes.len() as u32);
        axes.iter().fold(begun, |writer, axis| writer.u64(*axis)).u32(kind).u64(offset)
    }

    fn payload(mut self, bytes: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(32) + bytes, 7);
        self
    }

    fn read(&self) -> Result<gguf::Directory, Fault> {
        gguf::directory(&self.0[..], self.0.len() as u64)
    }
}

fn sample() -> Writer {
    Writer::new(3, 2, 5)
        .text("general.architecture")
        .u32(8)
        .text("llama")
        .text("eps")
        .u32(6)
        .bytes(&1e-5f32.to_le_bytes())
        .text("ids")
        .u32(9)
        .u32(5)
        .u64(2)
        .u32(1)
        .bytes(&(-1i32).to_le_bytes())
        .text("words")
        .u32(9)
        .u32(8)
        .u64(2)
        .text("a")
        .text("é")
        .text("yes")
        .u32(7)
        .bytes(&[1])
        .tensor("norm", &[8], 0, 0)
        .tensor("w", &[64, 2], 2, 32)
        .payload(32 + 2 * 2 * 18)
}

#[test]
fn a_file_is_read_as_it_was_written() {
    let found = sample().read().unwrap();
    assert_eq!(found.metadata["eps"], Value::Float(1e-5));
    assert_eq!(found.metadata["ids"], Value::Ints(vec![1, -1]));
    assert_eq!(found.metadata["words"], Value::Texts(vec!["a".into(), "é".into()]));
    assert_eq!(found.metadata["yes"], Value::Bool(true));
    let shapes: Vec<_> = found.tensors.iter().map(|tensor| (&tensor.name[..], &tensor.shape[..])).collect();
    assert_eq!(shapes, [("norm", &[8][..]), ("w", &[2, 64][..])]);
    assert_eq!(found.tensors[1].begin - found.tensors[0].begin, 32);
}

#[test]
fn lies_of_a_gguf_are_refused() {
    let one = |tensor: Writer| tensor.payload(64).read();
    let head = || Writer::new(3, 1, 0);
    assert!(one(head().tensor("a", &[16], 0, 0)).is_ok());
    assert!(one(head().tensor("a", &[17], 0, 0)).is_err(), "longer than the file");
    assert!(one(head().tensor("a", &[16], 0, 32)).is_err(), "behind the end");
    assert!(one(head().tensor("a", &[4], 0, 4)).is_err(), "not aligned");
    assert!(one(head().tensor("a", &[16], 2, 0)).is_err(), "half a block");
    assert!(one(head().tensor("a", &[1 << 40, 1 << 40], 0, 0)).is_err(), "an overflowing product");
    assert!(one(head().tensor("a", &[16], 0, u64::MAX - 31)).is_err(), "an overflowing offset");
    assert!(one(head().tensor("a", &[1; 5], 0, 0)).is_err(), "too many axes");
    let two = |name, offset| Writer::new(2, 2, 0).tensor("a", &[8], 0, 0).tensor(name, &[8], 0, offset);
    assert!(one(two("b", 32)).is_ok());
    assert!(one(two("b", 0)).is_err(), "an overlap");
    assert!(one(two("a", 32)).is_err(), "a name twice");
    for counts in [(u64::MAX, 0), (0, u64::MAX), (1 << 20, 0)] {
        assert!(Writer::new(3, counts.0, counts.1).payload(64).read().is_err());
    }
    let Err(Fault::Unsupported(why)) = one(head().tensor("a", &[256], 10, 0)) else {
        panic!("Q2_K is not read")
    };
    assert!(why.contains("Q2_K"), "{why}");
    assert!(matches!(Writer::new(3u32.swap_bytes(), 0, 0).read(), Err(Fault::Unsupported(_))));
}

#[test]
fn a_long_length_is_refused_before_it_is_allocated() {
    for length in [u64::MAX, 1 << 62, 1 << 40] {
        let text = Writer::new(3, 0, 1).text("k").u32(8).u64(length).payload(64);
        let list = Writer::new(3, 0, 1).text("k").u32(9).u32(8).u64(length).payload(64);
        let nested = Writer::new(3, 0, 1).text("k").u32(9).u32(9).u64(length).payload(64);
        assert!(text.read().is_err() && list.read().is_err() && nested.read().is_err());
        let header = length.to_le_bytes();
        assert!(safetensors::directory(&header[..], header.len() as u64).is_err());
    }
}

fn tensors(header: &str, payload: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + payload, 0);
    file
}

proptest! {
    #[test]
    fn mutated_gguf_files_never_do_more_than_raise(
        flips in prop::collection::vec((0usize..1 << 20, any::<u8>()), 1..6), cut in 0usize..400, claimed in 0u64..2000,
    ) {
        let mut file = sample().0;
        for (at, byte) in flips {
            let length = file.len();
            file[at % length] = byte;
        }
        let _ = gguf::directory(&file[..], file.len() as u64);
        let _ = gguf::directory(&file[..], claimed);
        let kept = file.len().saturating_sub(cut);
        let _ = gguf::directory(&file[..kept], kept as u64);
    }

    #[test]
    fn mutated_safetensors_never_do_more_than_raise(
        flips in prop::collection::vec((0usize..1 << 20, any::<u8>()), 1..6), claimed in 0u64..2000,
    ) {
        let header = r#"{"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#;
        let mut file = tensors(header, 16);
        assert!(safetensors::directory(&file[..], file.len() as u64).is_ok());
        for (at, byte) in flips {
            let length = file.len();
            file[at % length] = byte;
        }
        let _ = safetensors::directory(&file[..], file.len() as u64);
        let _ = safetensors::directory(&file[..], claimed);
    }
}
