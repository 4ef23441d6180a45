//! A memory as bytes: the clear columns and the sealed text in one piece, the vector beside them.
//!
//! The checksum of a row covers id, time, clear columns, vector and sealed text, is made once when the row arrives,
//! and goes with it from the log into every segment.

use super::{NAMESPACE_BYTES_MAX, PROVENANCE_BYTES_MAX, SEALED_BYTES_MAX, SOURCE_BYTES_MAX};
use super::{TAG_BYTES_MAX, TAGS_MAX};
use crate::error::{Result, StorageError};

/// The columns of a memory that are kept in the clear, so that filters can use them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Clear {
    /// A name for a part of the store.
    pub namespace: String,
    /// Names.
    pub tags: Vec<String>,
    /// Where it comes from.
    pub source: String,
    /// What may be believed of it.
    pub provenance: String,
}

/// A memory on its way in.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// A reserved id.
    pub id: u64,
    /// Microseconds since 1970, UTC.
    pub time: i64,
    /// The clear columns.
    pub clear: Clear,
    /// One number for each dimension.
    pub vector: Vec<f32>,
    /// Text and metadata under the memory's own key.
    pub sealed: Vec<u8>,
    /// That key, wrapped.
    pub key: super::Key,
}

/// A memory as it is read, without its vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its id.
    pub id: u64,
    /// Microseconds since 1970, UTC.
    pub time: i64,
    /// The clear columns.
    pub clear: Clear,
    /// Text and metadata under the memory's own key.
    pub sealed: Vec<u8>,
}

impl Clear {
    /// Refuse what is larger than the limits.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("namespace", self.namespace.len(), NAMESPACE_BYTES_MAX),
            ("source", self.source.len(), SOURCE_BYTES_MAX),
            ("provenance", self.provenance.len(), PROVENANCE_BYTES_MAX),
            ("number of tags", self.tags.len(), TAGS_MAX),
            ("tag", self.tags.iter().map(String::len).max().unwrap_or(0), TAG_BYTES_MAX),
        ];
        match sizes.into_iter().find(|(_, size, most)| size > most) {
            None => Ok(()),
            Some((what, size, most)) => Err(limit(format!("its {what} has {size}; at most {most} are kept"))),
        }
    }
}

/// A cap was hit before anything was allocated or written.
pub fn limit(why: String) -> StorageError {
    StorageError::Limit { tensor: None, why }
}

/// Append what a row is, but for its vector and checksum.
pub fn encode(id: u64, time: i64, clear: &Clear, sealed: &[u8], out: &mut Vec<u8>) {
    out.extend(id.to_le_bytes());
    out.extend(time.to_le_bytes());
    out.extend((sealed.len() as u32).to_le_bytes());
    out.extend((clear.tags.len() as u16).to_le_bytes());
    for text in [&clear.namespace, &clear.source, &clear.provenance].into_iter().chain(&clear.tags) {
        out.extend((text.len() as u16).to_le_bytes());
        out.extend_from_slice(text.as_bytes());
    }
    out.extend_from_slice(sealed);
}

/// The checksum of a row: of `encode`'s bytes and the vector's.
#[must_use]
pub fn checksum(encoded: &[u8], vector: &[u8]) -> u32 {
    aios_crc32c::crc32c(vector, aios_crc32c::crc32c(encoded, 0))
}

/// What `encode` wrote, or None if it is no such thing; the sealed text's length is returned, not its bytes.
#[must_use]
pub fn decode(encoded: &[u8]) -> Option<(Record, usize)> {
    let mut rest = encoded;
    let id = u64::from_le_bytes(take(&mut rest)?);
    let time = i64::from_le_bytes(take(&mut rest)?);
    let sealed = u32::from_le_bytes(take(&mut rest)?) as usize;
    let tags = usize::from(u16::from_le_bytes(take(&mut rest)?));
    let mut text = || {
        let length = usize::from(u16::from_le_bytes(take(&mut rest)?));
        let (text, behind) = rest.split_at_checked(length)?;
        rest = behind;
        Some(std::str::from_utf8(text).ok()?.to_owned())
    };
    let (namespace, source, provenance) = (text()?, text()?, text()?);
    if tags > TAGS_MAX {
        return None;
    }
    let tags = (0..tags).map(|_| text()).collect::<Option<_>>()?;
    let clear = Clear { namespace, tags, source, provenance };
    let sound = clear.check().is_ok() && sealed <= SEALED_BYTES_MAX && rest.len() == sealed;
    sound.then_some((Record { id, time, clear, sealed: Vec::new() }, sealed))
}

/// The first bytes of a slice, which moves on.
pub fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, behind) = rest.split_first_chunk::<N>()?;
    *rest = behind;
    Some(*head)
}

/// How vectors are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vectors {
    /// Dimensions.
    pub dim: usize,
    /// In half precision.
    pub half: bool,
}

impl Vectors {
    /// Bytes of one.
    #[must_use]
    pub fn bytes(self) -> usize {
        self.dim * if self.half { 2 } else { 4 }
    }

    /// A vector as it is kept.
    #[must_use]
    pub fn pack(self, vector: &[f32]) -> Vec<u8> {
        if self.half {
            return vector.iter().flat_map(|&value| aios_half::narrow(value).to_le_bytes()).collect();
        }
        vector.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    /// A vector that was kept; `out` has `dim` places.
    pub fn unpack(self, bytes: &[u8], out: &mut [f32]) {
        if self.half {
            let halves = bytes.as_chunks::<2>().0;
            out.iter_mut()
                .zip(halves)
                .for_each(|(out, &half)| *out = aios_half::widen(u16::from_le_bytes(half)));
        } else {
            let singles = bytes.as_chunks::<4>().0;
            out.iter_mut().zip(singles).for_each(|(out, &single)| *out = f32::from_le_bytes(single));
        }
    }
}
