//! Checking what lies before the directory: gaps, page headers, and all three checksums of the payload.

use std::fs::File;

use sha2::{Digest, Sha256};

use crate::error::{Result, StorageError};
use crate::file::read_at;
use crate::layout::{Extent, PARTS, TensorEntry};
use crate::schema::{LENGTH_BYTES, MAGIC, page_header};

/// Read at once: large enough for the disk, small enough to stay in the cache for the second look.
pub const PIECE_BYTES: usize = 64 << 10;

/// The three checksums of a tensor, fed part by part and piece by piece.
#[derive(Default)]
pub struct Digests {
    checksum: u32,
    sha256: Sha256,
    page: crc32fast::Hasher,
}

impl Digests {
    /// Begin a part of `bytes` bytes: its page begins with its length.
    pub fn begin_part(&mut self, bytes: u64) {
        self.page = crc32fast::Hasher::new();
        self.page.update(&(bytes as u32).to_le_bytes());
    }

    /// Go on.
    pub fn update(&mut self, piece: &[u8]) {
        self.page.update(piece);
        self.checksum = aios_crc32c::crc32c(piece, self.checksum);
        self.sha256.update(piece);
    }

    /// What stands right before the payload of a part of `bytes` bytes: its page header and its length.
    pub fn header(&self, bytes: u64) -> Vec<u8> {
        let mut header = page_header((bytes + LENGTH_BYTES) as u32, self.page.clone().finalize(), 1);
        header.extend((bytes as u32).to_le_bytes());
        header
    }

    /// CRC32C and SHA-256 over all parts.
    pub fn finish(self) -> (u32, [u8; 32]) {
        (self.checksum, self.sha256.finalize().into())
    }
}

/// Where the heavy pages before `index` end.
pub fn previous_end(entries: &[TensorEntry], index: usize) -> u64 {
    let heavy = |entry: &TensorEntry| entry.parts.iter().filter(|p| p.bytes > 0).map(Extent::end).max();
    entries[..index].iter().rev().find_map(heavy).unwrap_or(MAGIC.len() as u64)
}

/// Everything about tensor `index`: the zero bytes before its pages, their headers and CRCs, CRC32C, SHA-256.
pub fn verify(file: &File, entries: &[TensorEntry], index: usize) -> Result<()> {
    let entry = &entries[index];
    let bad = |why: String| StorageError::corrupt_tensor(&entry.spec.name, why);
    let mut digests = Digests::default();
    let mut end = previous_end(entries, index);
    let mut buffer = buffer_for(entry);
    for (part, name) in entry.parts.iter().zip(PARTS).filter(|(part, _)| part.bytes > 0) {
        digests.begin_part(part.bytes);
        pieces(file, part, &mut buffer, |piece| {
            digests.update(piece);
            true
        })
        .map_err(|error| named(error, entry))?;
        check_preamble(file, &digests, end, part)
            .map_err(|error| named(error, entry))?
            .then_some(())
            .ok_or_else(|| bad(format!("the page of its {name} differs from its CRC or its header")))?;
        end = part.end();
    }
    let (checksum, sha256) = digests.finish();
    if checksum != entry.checksum {
        return Err(bad("its CRC32C differs".to_owned()));
    }
    if sha256 != entry.sha256 {
        return Err(bad("its SHA-256 differs".to_owned()));
    }
    Ok(())
}

/// Whether the header of `part` is the one its payload demands, with nothing but zeros before it.
fn check_preamble(file: &File, digests: &Digests, previous_end: u64, part: &Extent) -> Result<bool> {
    let mut found = vec![0; (part.offset - part.page) as usize];
    read_at(file, &mut found, part.page)?;
    if found != digests.header(part.bytes) {
        return Ok(false);
    }
    let gap = Extent { page: previous_end, offset: previous_end, bytes: part.page - previous_end };
    let mut zero = true;
    let mut buffer = vec![0; PIECE_BYTES.min(gap.bytes as usize)];
    pieces(file, &gap, &mut buffer, |piece| {
        zero &= piece.iter().all(|&byte| byte == 0);
        zero
    })?;
    Ok(zero)
}

/// Only the CRC32C of an entry, by reads that never touch the map; None when `go_on` said stop.
pub fn check_payload(
    file: &File,
    entry: &TensorEntry,
    mut go_on: impl FnMut() -> bool,
) -> Result<Option<bool>> {
    let mut buffer = buffer_for(entry);
    let mut checksum = 0;
    let mut stopped = false;
    for part in entry.parts.iter().filter(|part| part.bytes > 0) {
        pieces(file, part, &mut buffer, |piece| {
            checksum = aios_crc32c::crc32c(piece, checksum);
            stopped = !go_on();
            !stopped
        })
        .map_err(|error| named(error, entry))?;
        if stopped {
            return Ok(None);
        }
    }
    Ok(Some(checksum == entry.checksum))
}

/// No larger than what is to be read: most tensors of a model are small.
fn buffer_for(entry: &TensorEntry) -> Vec<u8> {
    vec![0; PIECE_BYTES.min(entry.bytes() as usize)]
}

/// Corruption found while a tensor is read is that tensor's.
fn named(error: StorageError, entry: &TensorEntry) -> StorageError {
    match error {
        StorageError::Corrupt { tensor: None, why } => StorageError::corrupt_tensor(&entry.spec.name, why),
        other => other,
    }
}

/// Read a part piece by piece until `each` returns false.
fn pieces(file: &File, part: &Extent, buffer: &mut [u8], mut each: impl FnMut(&[u8]) -> bool) -> Result<()> {
    let mut at = part.offset;
    while at < part.end() {
        let length = buffer.len().min((part.end() - at) as usize);
        read_at(file, &mut buffer[..length], at)?;
        if !each(&buffer[..length]) {
            break;
        }
        at += length as u64;
    }
    Ok(())
}
