//! The journal beside a partial file: its source, then one frame for each complete tensor.
//!
//! A frame is its length, its CRC32C, and a Thrift struct. A torn last frame is dropped; what a frame says is held
//! against the partial file's bytes before it is believed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{Result, StorageError};
use crate::layout::{Dtype, Extent, PARTS, TENSORS_MAX, TensorEntry, TensorSpec};
use crate::thrift::{Malformed, Reader, Writer, kind};
use crate::writer::open_private;

/// The first frame begins with this and goes on with the source's identity.
const MAGIC: &[u8] = b"aios-journal-1\n";
/// 100,000 tensors at 700 bytes.
const JOURNAL_BYTES_MAX: u64 = 128 << 20;
const HEAD_BYTES: usize = 8;

/// An open journal.
pub struct Journal {
    file: File,
    end: u64,
    identity: Vec<u8>,
}

impl Journal {
    /// Open or create; the entries are those of the same source, none for another.
    pub fn open(path: &Path, source: &str) -> Result<(Self, Vec<TensorEntry>)> {
        let file = open_private(path).map_err(StorageError::io("opening the journal"))?;
        let size = file.metadata().map_err(StorageError::io("reading the journal"))?.len();
        let mut bytes = vec![0; size.min(JOURNAL_BYTES_MAX) as usize];
        file.read_exact_at(&mut bytes, 0).map_err(StorageError::io("reading the journal"))?;
        let mut journal = Journal { file, end: 0, identity: [MAGIC, source.as_bytes()].concat() };
        let mut frames = Frames { bytes: &bytes };
        let entries = if frames.next() == Some(&journal.identity[..]) {
            plausible(frames.map_while(|frame| read_entry(frame).ok()).take(TENSORS_MAX).collect())
        } else {
            Vec::new()
        };
        let whole = journal.encode(&entries);
        if bytes.starts_with(&whole) {
            journal.end = whole.len() as u64;
            journal.file.set_len(journal.end).map_err(StorageError::io("truncating the journal"))?;
        } else {
            journal.rewrite(&entries)?;
        }
        Ok((journal, entries))
    }

    /// Start over with these entries.
    pub fn rewrite(&mut self, entries: &[TensorEntry]) -> Result<()> {
        self.file.set_len(0).map_err(StorageError::io("truncating the journal"))?;
        self.end = 0;
        self.write(&self.encode(entries))
    }

    fn encode(&self, entries: &[TensorEntry]) -> Vec<u8> {
        let mut out = frame(&self.identity);
        entries.iter().for_each(|entry| out.extend(frame(&write_entry(entry))));
        out
    }

    /// Note that `entry` is complete.
    pub fn append(&mut self, entry: &TensorEntry) -> Result<()> {
        self.write(&frame(&write_entry(entry)))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, self.end).map_err(StorageError::io("writing the journal"))?;
        self.end += bytes.len() as u64;
        Ok(())
    }
}

/// Length, CRC32C, payload.
fn frame(payload: &[u8]) -> Vec<u8> {
    let head = [(payload.len() as u32).to_le_bytes(), aios_crc32c::crc32c(payload, 0).to_le_bytes()].concat();
    [&head, payload].concat()
}

/// The whole frames at the beginning of the bytes.
struct Frames<'a> {
    bytes: &'a [u8],
}

impl<'a> Iterator for Frames<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (head, rest) = self.bytes.split_first_chunk::<HEAD_BYTES>()?;
        let (length, crc) =
            (u32::from_le_bytes(*head.first_chunk()?), u32::from_le_bytes(*head.last_chunk()?));
        let payload = rest.get(..length as usize)?;
        self.bytes = &rest[length as usize..];
        (aios_crc32c::crc32c(payload, 0) == crc).then_some(payload)
    }
}

/// Entries whose extents make sense one after another; the rest is dropped.
fn plausible(mut entries: Vec<TensorEntry>) -> Vec<TensorEntry> {
    let mut end = 4u64;
    let sound = entries.iter().take_while(|entry| {
        let Ok(sizes) = entry.spec.part_bytes() else { return false };
        entry.parts.iter().zip(sizes).all(|(part, bytes)| {
            if bytes == 0 {
                return part.bytes == 0;
            }
            let fits =
                part.bytes == bytes && part.page >= end && part.page < part.offset && part.offset < 1 << 62;
            end = if fits { part.end() } else { end };
            fits && part.offset - part.page < 64
        })
    });
    let count = sound.count();
    entries.truncate(count);
    entries
}

fn write_entry(entry: &TensorEntry) -> Vec<u8> {
    let spec = &entry.spec;
    let mut out = Writer::default();
    out.open();
    out.field_binary(1, spec.name.as_bytes());
    out.field_binary(2, spec.dtype.name().as_bytes());
    out.field_list(3, kind::I64, spec.shape.len());
    spec.shape.iter().for_each(|&axis| out.integer(axis as i64));
    out.field_i64(4, spec.group_size.into());
    out.field_i64(5, spec.symmetric.into());
    out.field_i64(6, spec.rank.into());
    out.field_list(7, kind::I64, 3 * PARTS.len());
    entry
        .parts
        .iter()
        .flat_map(|p| [p.page, p.offset, p.bytes])
        .for_each(|number| out.integer(number as i64));
    out.field_i64(8, entry.checksum.into());
    out.field_binary(9, &entry.sha256);
    out.close();
    out.bytes
}

fn read_entry(frame: &[u8]) -> std::result::Result<TensorEntry, Malformed> {
    const WRONG: Malformed = Malformed("a journal frame holds something else");
    let (mut name, mut dtype, mut shape, mut parts) = ("", None, Vec::new(), [Extent::default(); 5]);
    let (mut group_size, mut symmetric, mut rank, mut checksum, mut sha256) = (0, 0, 0, 0, [0; 32]);
    Reader::new(frame).structure(|r, id, _| {
        match id {
            1 => name = r.string()?,
            2 => dtype = Dtype::parse(r.string()?),
            3 => shape = (0..r.list(kind::I64)?).map(|_| r.count()).collect::<std::result::Result<_, _>>()?,
            4 => group_size = r.count()?,
            5 => symmetric = r.count()?,
            6 => rank = r.count()?,
            7 if r.list(kind::I64)? == 3 * PARTS.len() => {
                for part in &mut parts {
                    *part = Extent { page: r.count()?, offset: r.count()?, bytes: r.count()? };
                }
            }
            8 => checksum = r.count()?,
            9 => sha256 = r.binary()?.try_into().map_err(|_| WRONG)?,
            _ => return Err(WRONG),
        }
        Ok(true)
    })?;
    let small = |number: u64| u32::try_from(number).map_err(|_| WRONG);
    let spec = TensorSpec {
        name: name.to_owned(),
        dtype: dtype.ok_or(WRONG)?,
        shape,
        group_size: small(group_size)?,
        symmetric: symmetric == 1,
        rank: small(rank)?,
    };
    Ok(TensorEntry { spec, parts, checksum: small(checksum)?, sha256 })
}
