//! Readers of foreign weight files: safetensors and GGUF.
//!
//! Only directories are parsed here, from any `Read` and the length its file has; payloads are read by the caller,
//! piece by piece, at the extents found. Every count, length and offset is checked before anything is allocated
//! for it, and what is kept never takes more than a small multiple of the bytes it was read from.

pub mod blocks;
pub mod gguf;
pub mod safetensors;

use std::fmt;
use std::io;

/// Tensors in one file.
pub const TENSORS_MAX: u64 = 100_000;
/// Axes of one tensor.
pub const AXES_MAX: usize = 8;
/// Bytes of one tensor's name.
pub const NAME_BYTES_MAX: usize = 512;

/// Why a file is not imported.
#[derive(Debug)]
pub enum Fault {
    /// It cannot be read.
    Io(io::Error),
    /// It contradicts its format or itself.
    Malformed(String),
    /// It is larger than a stated limit.
    TooLarge(String),
    /// It is well formed as far as one can tell, and uses something that is not implemented.
    Unsupported(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Io(error) => write!(out, "it cannot be read: {error}"),
            Fault::Malformed(why) | Fault::TooLarge(why) | Fault::Unsupported(why) => out.write_str(why),
        }
    }
}

impl std::error::Error for Fault {}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Fault::Malformed("it ends in the middle of its directory".into()),
            _ => Fault::Io(error),
        }
    }
}

/// A fault of form.
fn malformed<T>(why: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Malformed(why.into()))
}

/// At most 80 characters of a name that a file gave, for messages.
fn shown(name: &str) -> String {
    name.chars().take(80).collect()
}

/// Number of elements; None when it does not fit 63 bits.
fn elements(shape: &[u64]) -> Option<u64> {
    // A zero axis makes the product zero whatever the others are: they are still multiplied with a check.
    let product =
        shape.iter().filter(|axis| **axis != 0).try_fold(1u64, |all, axis| all.checked_mul(*axis))?;
    let empty = shape.contains(&0);
    (product < 1 << 63).then_some(if empty { 0 } else { product })
}
