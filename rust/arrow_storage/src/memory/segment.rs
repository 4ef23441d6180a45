//! A segment: an Arrow IPC file of memories in the order of their ids, mapped, never changed but for zeroed vectors.
//!
//! Behind the stream and before the footer stand our own sizes, which Arrow readers pass over. From them follow every
//! offset and all of Arrow's metadata, which are compared, not parsed. All columns but vectors and sealed texts are
//! checked against a CRC32C at open, those two by the row's checksum whenever a row is read.
//!
//! In a store that is encrypted as a whole the file is no Arrow: behind magic and salt stand the sizes, the columns
//! that are opened into memory, the texts as they are, which have keys of their own, and each vector sealed by itself,
//! so that one row is read and one vector is zeroed without the others.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::arrow::Span;
use super::columns::{Rows, columns};
use super::manifest::Kept;
use super::record::{self, Clear, Record};
use super::sealing::{self, FileKey, HEAD_BYTES, Kind, TAG_BYTES, nonce};
use super::sizes::{Places, SIZES_BYTES, Sizes};
use super::{IDS_MAX, SEALED_BYTES_MAX, files};
use crate::error::{Result, StorageError};
use crate::mapping::Mapping;

/// Footer, its length, and the magic; ours is far smaller.
const FOOTER_BYTES_MAX: usize = 1 << 16;
const MAGIC_SEALED: &[u8; 16] = b"aios-sealseg-1\n\0";
/// Pieces of a sealed segment; the vectors follow.
const SIZES_PIECE: u64 = 0;
const COLUMNS_PIECE: u64 = 1;
const VECTOR_PIECE: u64 = 2;
/// Where the columns of a sealed segment begin.
const COLUMNS_AT: usize = HEAD_BYTES + SIZES_BYTES + TAG_BYTES;

/// Write the segment of these rows, sync it and put it in its place.
pub fn write(path: &Path, sequence: u64, kept: Kept, rows: &dyn Rows) -> Result<()> {
    let clear = columns(rows)?;
    let mut sizes = Sizes {
        vectors: kept.vectors,
        rows: rows.count() as u64,
        tags: clear.tag_count,
        texts: clear.texts.each_ref().map(|(_, bytes)| bytes.len() as u64),
        sealed: clear.sealed_end,
        clear_crc: 0,
    };
    let places = sizes.places();
    let body = clear.body(&places);
    sizes.clear_crc = aios_crc32c::crc32c(&body, 0);
    files::replace(path, |out| match kept.key {
        None => put_arrow(out, &sizes, &places, &body, rows),
        Some(key) => {
            let salt = sealing::random()?;
            put(out, &sealing::head(MAGIC_SEALED, &salt))?;
            put_sealed(out, &key.file(Kind::Segment, sequence, &salt), &sizes, body, rows)
        }
    })
}

fn put(out: &mut impl Write, bytes: &[u8]) -> Result<()> {
    out.write_all(bytes).map_err(StorageError::io("writing a segment"))
}

fn put_arrow(out: &mut impl Write, sizes: &Sizes, p: &Places, body: &[u8], rows: &dyn Rows) -> Result<()> {
    let frame = sizes.frame(p);
    put(out, &frame.before)?;
    put(out, body)?;
    for row in 0..rows.count() {
        put(out, &rows.content(row)?.0)?;
    }
    put(out, &vec![0; (p.vector.offset - p.sealed.offset - p.sealed.bytes) as usize])?;
    for row in 0..rows.count() {
        put(out, &rows.content(row)?.1)?;
    }
    put(out, &vec![0; (p.body - p.vector.offset - p.vector.bytes) as usize])?;
    put(out, &frame.after)?;
    put(out, &sizes.encode())?;
    put(out, &frame.footer)
}

fn put_sealed(
    out: &mut impl Write,
    key: &FileKey,
    sizes: &Sizes,
    body: Vec<u8>,
    rows: &dyn Rows,
) -> Result<()> {
    put_piece(out, key, SIZES_PIECE, sizes.encode())?;
    put_piece(out, key, COLUMNS_PIECE, body)?;
    for row in 0..rows.count() {
        put(out, &rows.content(row)?.0)?;
    }
    for row in 0..rows.count() {
        put_piece(out, key, VECTOR_PIECE + row as u64, rows.content(row)?.1)?;
    }
    Ok(())
}

fn put_piece(out: &mut impl Write, key: &FileKey, place: u64, mut bytes: Vec<u8>) -> Result<()> {
    let tag = key.seal(nonce(place), &[], &mut bytes);
    put(out, &bytes)?;
    put(out, &tag)
}

/// What is mapped.
enum Content {
    /// Everything as Arrow has it, from this byte on.
    Arrow { body: usize },
    /// Texts and sealed vectors; the columns are in memory, opened.
    Sealed { key: Box<FileKey>, columns: Vec<u8> },
}

/// An open segment.
pub struct Segment {
    /// Its number in the manifest.
    pub sequence: u64,
    mapping: Mapping,
    sizes: Sizes,
    places: Places,
    content: Content,
}

impl Segment {
    /// Open and check everything but vectors and sealed texts; None if there is no such file.
    pub fn open(path: &Path, sequence: u64, kept: Kept, writable: bool) -> Result<Option<Self>> {
        let Some(file) = files::open(path, writable)? else { return Ok(None) };
        let wrong = |why: &str| StorageError::corrupt(format!("segment {sequence} {why}"));
        let length = file.metadata().map_err(StorageError::io("looking at a segment"))?.len();
        let length = usize::try_from(length).map_err(|_| wrong("is larger than the address space"))?;
        let key = match kept.key {
            None => None,
            Some(key) => {
                let salt = read_salt(&file, length)?.ok_or_else(|| wrong("is damaged at its beginning"))?;
                Some(key.file(Kind::Segment, sequence, &salt))
            }
        };
        let sizes =
            read_sizes(&file, length, key.as_ref())?.ok_or_else(|| wrong("is damaged in its sizes"))?;
        if sizes.vectors != kept.vectors {
            return Err(wrong("holds other vectors than the store"));
        }
        let (places, content) = (sizes.places(), Content::Arrow { body: 0 });
        let mut segment = Segment { sequence, mapping: Mapping::new(file, length)?, sizes, places, content };
        let content = match key {
            None => segment.arrow(),
            Some(key) => segment.sealed(Box::new(key)),
        };
        segment.content = content.map_err(wrong)?;
        if aios_crc32c::crc32c(segment.column(0, places.sealed.offset as usize), 0) != sizes.clear_crc {
            return Err(wrong("is damaged in its columns"));
        }
        let sound = |row: usize| (1..=IDS_MAX).contains(&segment.id(row));
        let ids = || 0..segment.count();
        if !ids().all(sound) || !ids().skip(1).all(|row| segment.id(row - 1) < segment.id(row)) {
            return Err(wrong("has ids out of order"));
        }
        segment.unhurt()?;
        Ok(Some(segment))
    }

    /// Compare everything around the body of an Arrow file; or what is wrong.
    fn arrow(&self) -> std::result::Result<Content, &'static str> {
        let frame = self.sizes.frame(&self.places);
        let body = frame.before.len();
        let tail = [&frame.after[..], &self.sizes.encode(), &frame.footer].concat();
        let end = body as u64 + self.places.body;
        if self.bytes() != end + tail.len() as u64 {
            return Err("is not as long as its sizes say");
        }
        if self.at(0, body) != frame.before || self.at(end as usize, tail.len()) != tail {
            return Err("is damaged in its metadata");
        }
        Ok(Content::Arrow { body })
    }

    /// Open the columns of a sealed file; or what is wrong.
    fn sealed(&self, key: Box<FileKey>) -> std::result::Result<Content, &'static str> {
        let columns = self.places.sealed.offset as usize;
        let vectors = self.sizes.rows * (self.sizes.vectors.bytes() + TAG_BYTES) as u64;
        let end = (COLUMNS_AT + columns + TAG_BYTES) as u64 + self.places.sealed.bytes + vectors;
        if self.bytes() != end {
            return Err("is not as long as its sizes say");
        }
        let columns = self.at(COLUMNS_AT, columns + TAG_BYTES).to_vec();
        let columns = opened(&key, COLUMNS_PIECE, columns).ok_or("is damaged in its columns")?;
        Ok(Content::Sealed { key, columns })
    }

    /// Bytes of the map. What is in range of the file's size stays readable, whatever happens to the file.
    fn at(&self, offset: usize, bytes: usize) -> &[u8] {
        assert!(offset.checked_add(bytes).is_some_and(|end| end <= self.mapping.bytes()));
        // SAFETY: in bounds of the map, which lives as long as self; the guard turns a truncated file into zeros. The
        // file is the owner's alone, and this program changes nothing in it but vectors, which are read by `vector`.
        unsafe { std::slice::from_raw_parts(self.mapping.address().add(offset), bytes) }
    }

    /// Part of the body up to the sealed texts.
    fn column(&self, offset: u64, bytes: usize) -> &[u8] {
        match &self.content {
            Content::Arrow { body } => self.at(body + offset as usize, bytes),
            Content::Sealed { columns, .. } => &columns[offset as usize..][..bytes],
        }
    }

    /// Part of a column; None where an offset that the file names leads out of it.
    fn part(&self, span: Span, from: u64, to: u64) -> Option<&[u8]> {
        let bytes = to.checked_sub(from).filter(|_| to <= span.bytes)?;
        Some(self.column(span.offset + from, bytes as usize))
    }

    fn array<const N: usize>(&self, span: Span, index: usize) -> [u8; N] {
        let mut out = [0; N];
        out.copy_from_slice(self.column(span.offset + (index * N) as u64, N)); // a panic beyond the file
        out
    }

    /// Where the sealed texts are in the file.
    fn texts_at(&self) -> usize {
        match &self.content {
            Content::Arrow { body } => body + self.places.sealed.offset as usize,
            Content::Sealed { columns, .. } => COLUMNS_AT + columns.len() + TAG_BYTES,
        }
    }

    /// Where the vector of a row is in the file, and how many bytes it takes there.
    fn vector_span(&self, row: usize) -> (usize, usize) {
        let bytes = self.sizes.vectors.bytes();
        assert!(row < self.count());
        match &self.content {
            Content::Arrow { body } => (body + self.places.vector.offset as usize + row * bytes, bytes),
            Content::Sealed { .. } => {
                let bytes = bytes + TAG_BYTES;
                (self.texts_at() + self.places.sealed.bytes as usize + row * bytes, bytes)
            }
        }
    }

    /// Rows, forgotten ones too.
    #[must_use]
    pub fn count(&self) -> usize {
        self.sizes.rows as usize
    }

    /// Bytes of the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.mapping.bytes() as u64
    }

    /// The id of a row.
    #[must_use]
    pub fn id(&self, row: usize) -> u64 {
        u64::from_le_bytes(self.array(self.places.id, row))
    }

    /// The time of a row.
    #[must_use]
    pub fn time(&self, row: usize) -> i64 {
        i64::from_le_bytes(self.array(self.places.time, row))
    }

    /// The row of an id.
    #[must_use]
    pub fn find(&self, id: u64) -> Option<usize> {
        let (mut low, mut high) = (0, self.count());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.id(middle).cmp(&id) {
                std::cmp::Ordering::Equal => return Some(middle),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// Entry `index` of text column 0 (namespace), 1 (tag), 2 (source) or 3 (provenance).
    #[must_use]
    pub fn text(&self, column: usize, index: usize) -> Option<&str> {
        let (offsets, bytes) = self.places.texts[column];
        let (from, to) = (self.offset(offsets, index)?, self.offset(offsets, index + 1)?);
        std::str::from_utf8(self.part(bytes, from, to)?).ok()
    }

    /// The tags of a row, as entries of text column 1.
    #[must_use]
    pub fn tags(&self, row: usize) -> Option<std::ops::Range<usize>> {
        let (from, to) =
            (self.offset(self.places.tag_lists, row)?, self.offset(self.places.tag_lists, row + 1)?);
        (from <= to && to <= self.sizes.tags).then_some(from as usize..to as usize)
    }

    fn offset(&self, offsets: Span, index: usize) -> Option<u64> {
        u64::try_from(i32::from_le_bytes(self.array(offsets, index))).ok()
    }

    /// The clear part of a row.
    pub fn clear(&self, row: usize) -> Result<(u64, i64, Clear, u32)> {
        let read = || {
            let text = |column, index| self.text(column, index).map(str::to_owned);
            let tags = self.tags(row)?.map(|tag| text(1, tag)).collect::<Option<_>>()?;
            Some(Clear { namespace: text(0, row)?, tags, source: text(2, row)?, provenance: text(3, row)? })
        };
        let clear = read().ok_or_else(|| self.damaged(row))?;
        let checksum = u32::from_le_bytes(self.array(self.places.checksum, row));
        Ok((self.id(row), self.time(row), clear, checksum))
    }

    /// Where the sealed text of a row is.
    pub fn sealed_range(&self, row: usize) -> Result<(u64, u64)> {
        let offset = |index| u64::from_le_bytes(self.array(self.places.sealed_offsets, index));
        let (from, to) = (offset(row), offset(row + 1));
        let sound = from <= to && to <= self.places.sealed.bytes && to - from <= SEALED_BYTES_MAX as u64;
        if sound { Ok((from, to)) } else { Err(self.damaged(row)) }
    }

    /// The bytes of a row's vector as they are in the file.
    fn raw_vector(&self, row: usize, out: &mut [u8]) {
        let (at, bytes) = self.vector_span(row);
        assert!(out.len() == bytes && at + bytes <= self.mapping.bytes());
        // SAFETY: in bounds, as `Segment::open` compared the file's length with its sizes; copied, not borrowed,
        // because the writer may zero it meanwhile: then it is zeros, or a checksum or tag finds the mixture.
        unsafe { std::ptr::copy_nonoverlapping(self.mapping.address().add(at), out.as_mut_ptr(), bytes) };
    }

    /// Copy the vector of a row as it was packed, zeros where it was erased; clear ones are not checked.
    pub fn vector(&self, row: usize, out: &mut [u8]) -> Result<()> {
        let Content::Sealed { key, .. } = &self.content else {
            self.raw_vector(row, out);
            return Ok(());
        };
        let mut sealed = vec![0; out.len() + TAG_BYTES];
        self.raw_vector(row, &mut sealed);
        if sealed.iter().any(|&byte| byte != 0) {
            sealed = opened(key, VECTOR_PIECE + row as u64, sealed).ok_or_else(|| self.damaged(row))?;
        }
        out.copy_from_slice(&sealed[..out.len()]);
        Ok(())
    }

    /// A whole row and its vector, checked.
    pub fn read(&self, row: usize) -> Result<(Record, Vec<u8>)> {
        let (id, time, clear, checksum) = self.clear(row)?;
        let (from, to) = self.sealed_range(row)?;
        let sealed = self.at(self.texts_at() + from as usize, (to - from) as usize).to_vec();
        let mut vector = vec![0; self.sizes.vectors.bytes()];
        self.vector(row, &mut vector)?;
        let mut encoded = Vec::with_capacity(sealed.len() + 256);
        record::encode(id, time, &clear, &sealed, &mut encoded);
        self.unhurt()?;
        if record::checksum(&encoded, &vector) != checksum {
            return Err(self.damaged(row));
        }
        Ok((Record { id, time, clear, sealed }, vector))
    }

    /// Overwrite the vectors of rows with zeros and sync; returns whether anything had to be done.
    pub fn erase_vectors(&self, rows: &[usize]) -> Result<bool> {
        let mut erased = false;
        for &row in rows {
            let (at, bytes) = self.vector_span(row);
            let (zeros, mut found) = (vec![0; bytes], vec![0; bytes]);
            self.raw_vector(row, &mut found);
            if found != zeros {
                let file = self.mapping.file();
                file.write_all_at(&zeros, at as u64).map_err(StorageError::io("erasing a vector"))?;
                erased = true;
            }
        }
        if erased {
            self.mapping.file().sync_data().map_err(StorageError::io("syncing a segment"))?;
        }
        Ok(erased)
    }

    fn damaged(&self, row: usize) -> StorageError {
        StorageError::corrupt(format!("memory {} is damaged in segment {}", self.id(row), self.sequence))
    }

    /// An error if the file was truncated while it was mapped.
    pub fn unhurt(&self) -> Result<()> {
        if self.mapping.fault() {
            return Err(StorageError::corrupt(format!(
                "segment {} was truncated while it was open",
                self.sequence
            )));
        }
        Ok(())
    }
}

/// The sizes: of a sealed file behind its beginning, else in front of the footer.
fn read_sizes(file: &File, length: usize, key: Option<&FileKey>) -> Result<Option<Sizes>> {
    let read = |bytes: &mut [u8], at: usize| {
        file.read_exact_at(bytes, at as u64).map_err(StorageError::io("reading a segment"))
    };
    if let Some(key) = key {
        let mut sizes = vec![0; SIZES_BYTES + TAG_BYTES];
        if length < HEAD_BYTES + sizes.len() {
            return Ok(None);
        }
        read(&mut sizes, HEAD_BYTES)?;
        let sizes = opened(key, SIZES_PIECE, sizes);
        return Ok(sizes.and_then(|sizes| Sizes::decode(sizes.first_chunk::<SIZES_BYTES>()?)));
    }
    if length < 10 {
        return Ok(None);
    }
    let mut end = [0; 10];
    read(&mut end, length - 10)?;
    let footer = u32::from_le_bytes([end[0], end[1], end[2], end[3]]) as usize;
    let at = length.checked_sub(10 + SIZES_BYTES).and_then(|rest| rest.checked_sub(footer));
    let Some(at) = at.filter(|_| footer <= FOOTER_BYTES_MAX) else { return Ok(None) };
    let mut sizes = [0; SIZES_BYTES];
    read(&mut sizes, at)?;
    Ok(Sizes::decode(&sizes))
}

/// The salt of a sealed file; None where it is something else.
fn read_salt(file: &File, length: usize) -> Result<Option<[u8; sealing::SALT_BYTES]>> {
    let mut head = [0; HEAD_BYTES];
    if length < HEAD_BYTES {
        return Ok(None);
    }
    file.read_exact_at(&mut head, 0).map_err(StorageError::io("reading a segment"))?;
    Ok(sealing::salt(MAGIC_SEALED, &head))
}

/// What a sealed piece with its tag holds.
fn opened(key: &FileKey, place: u64, mut piece: Vec<u8>) -> Option<Vec<u8>> {
    let (bytes, tag) = piece.split_last_chunk_mut::<TAG_BYTES>()?;
    let (length, tag) = (bytes.len(), *tag);
    let whole = key.open(nonce(place), &[], bytes, tag);
    piece.truncate(length);
    whole.then_some(piece)
}
