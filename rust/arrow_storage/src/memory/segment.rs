//! A segment: an Arrow IPC file of memories in the order of their ids, mapped, never changed but for zeroed vectors.
//!
//! Behind the stream and before the footer stand our own sizes, which Arrow readers pass over. From them follow every
//! offset and all of Arrow's metadata, which are compared, not parsed. All columns but vectors and sealed texts are
//! checked against a CRC32C at open, those two by the row's checksum whenever a row is read.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::arrow::{self, ALIGNMENT, Span};
use super::record::{self, Clear, Record, Vectors};
use super::{IDS_MAX, SEALED_BYTES_MAX, SEGMENT_ROWS_MAX, files};
use crate::error::{Result, StorageError};
use crate::mapping::Mapping;

const MAGIC: &[u8; 16] = b"aios-segment-1\n\0";
const SIZES_BYTES: usize = 104;
/// Footer, its length, and the magic; ours is far smaller.
const FOOTER_BYTES_MAX: usize = 1 << 16;

/// What a segment is made of.
pub trait Rows {
    /// How many rows.
    fn count(&self) -> usize;
    /// The clear part of a row: id, time, columns, checksum.
    fn clear(&self, row: usize) -> Result<(u64, i64, Clear, u32)>;
    /// How many bytes its sealed text has.
    fn sealed_bytes(&self, row: usize) -> Result<u64>;
    /// Its sealed text and its vector, whose checksum was found right.
    fn content(&self, row: usize) -> Result<(Vec<u8>, Vec<u8>)>;
}

/// The sizes that everything else follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sizes {
    vectors: Vectors,
    rows: u64,
    tags: u64,
    /// Bytes of: namespaces, tags, sources, provenances.
    texts: [u64; 4],
    sealed: u64,
    /// Of the body up to the sealed texts.
    clear_crc: u32,
}

/// Where the columns are in the body.
#[derive(Debug, Clone, Copy)]
struct Places {
    id: Span,
    time: Span,
    /// Offsets and bytes of: namespaces, tags, sources, provenances.
    texts: [(Span, Span); 4],
    tag_lists: Span,
    checksum: Span,
    sealed_offsets: Span,
    sealed: Span,
    vector: Span,
    body: u64,
}

impl Sizes {
    fn places(&self) -> Places {
        let mut end = 0;
        let mut span = |bytes: u64| {
            let offset = end;
            end = (offset + bytes).next_multiple_of(ALIGNMENT);
            Span { offset, bytes }
        };
        let offsets = 4 * (self.rows + 1);
        let [names, tags, sources, origins] = self.texts;
        let (id, time) = (span(8 * self.rows), span(8 * self.rows));
        let names = (span(offsets), span(names));
        let (tag_lists, tags) = (span(offsets), (span(4 * (self.tags + 1)), span(tags)));
        let texts = [names, tags, (span(offsets), span(sources)), (span(offsets), span(origins))];
        let (checksum, sealed_offsets) = (span(4 * self.rows), span(8 * (self.rows + 1)));
        let (sealed, vector) = (span(self.sealed), span(self.rows * self.vectors.bytes() as u64));
        Places { id, time, texts, tag_lists, checksum, sealed_offsets, sealed, vector, body: end }
    }

    fn frame(&self, places: &Places) -> arrow::Frame {
        let (rows, p) = (self.rows, places);
        let nodes =
            [rows, rows, rows, rows, self.tags, rows, rows, rows, rows, rows, rows * self.vectors.dim as u64];
        let [names, tags, sources, origins] = p.texts.map(|(offsets, bytes)| (Some(offsets), Some(bytes)));
        #[rustfmt::skip]
        let spans = [
            None, Some(p.id), None, Some(p.time), None, names.0, names.1, None, Some(p.tag_lists), None, tags.0, tags.1,
            None, sources.0, sources.1, None, origins.0, origins.1, None, Some(p.checksum),
            None, Some(p.sealed_offsets), Some(p.sealed), None, None, Some(p.vector),
        ];
        arrow::frame(self.vectors, rows, &nodes, &spans, p.body)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let dims = [self.vectors.dim as u64, u64::from(self.vectors.half), self.rows, self.tags];
        dims.iter()
            .chain(&self.texts)
            .chain(&[self.sealed, self.clear_crc.into()])
            .for_each(|n| out.extend(n.to_le_bytes()));
        out.extend([0; 4]);
        out.extend(aios_crc32c::crc32c(&out, 0).to_le_bytes());
        out
    }

    /// None where it is no such thing, or larger than anything written here.
    fn decode(bytes: &[u8; SIZES_BYTES]) -> Option<Self> {
        let (body, crc) = bytes.split_at(SIZES_BYTES - 4);
        let whole = body.starts_with(MAGIC) && crc == aios_crc32c::crc32c(body, 0).to_le_bytes();
        let mut rest = &body[MAGIC.len()..];
        let mut next = || record::take(&mut rest).map(u64::from_le_bytes);
        let (dim, half, rows, tags) = (next()?, next()?, next()?, next()?);
        let (texts, sealed, crc) = ([next()?, next()?, next()?, next()?], next()?, next()?);
        let small = dim <= super::DIM_MAX as u64
            && rows <= SEGMENT_ROWS_MAX as u64
            && tags <= (SEGMENT_ROWS_MAX * super::TAGS_MAX) as u64
            && texts.iter().all(|&bytes| bytes < i32::MAX as u64)
            && sealed < 1 << 40;
        let vectors = Vectors { dim: dim as usize, half: half == 1 };
        (whole && small).then_some(Sizes {
            vectors,
            rows,
            tags,
            texts,
            sealed,
            clear_crc: u32::try_from(crc).ok()?,
        })
    }
}

/// Write the segment of these rows, sync it and put it in its place.
pub fn write(path: &Path, vectors: Vectors, rows: &dyn Rows) -> Result<()> {
    let clear = columns(rows)?;
    let mut sizes = Sizes {
        vectors,
        rows: rows.count() as u64,
        tags: clear.tag_count,
        texts: clear.texts.each_ref().map(|(_, bytes)| bytes.len() as u64),
        sealed: clear.sealed_end,
        clear_crc: 0,
    };
    let places = sizes.places();
    let body = clear.body(&places);
    sizes.clear_crc = aios_crc32c::crc32c(&body, 0);
    let frame = sizes.frame(&places);
    files::replace(path, |out| {
        let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(StorageError::io("writing a segment"));
        put(&frame.before)?;
        put(&body)?;
        for row in 0..rows.count() {
            put(&rows.content(row)?.0)?;
        }
        put(&vec![0; (places.vector.offset - places.sealed.offset - places.sealed.bytes) as usize])?;
        for row in 0..rows.count() {
            put(&rows.content(row)?.1)?;
        }
        put(&vec![0; (places.body - places.vector.offset - places.vector.bytes) as usize])?;
        put(&frame.after)?;
        put(&sizes.encode())?;
        put(&frame.footer)
    })
}

/// The columns that are checked at open, in memory: a hundred bytes a row or so.
#[derive(Default)]
struct ClearColumns {
    ids: Vec<u8>,
    times: Vec<u8>,
    texts: [(Vec<u8>, Vec<u8>); 4],
    tag_lists: Vec<u8>,
    tag_count: u64,
    checksums: Vec<u8>,
    sealed_offsets: Vec<u8>,
    sealed_end: u64,
}

fn columns(rows: &dyn Rows) -> Result<ClearColumns> {
    let mut all = ClearColumns::default();
    let narrow = |bytes: &[u8]| (bytes.len() as i32).to_le_bytes();
    all.texts.iter_mut().for_each(|(offsets, _)| offsets.extend([0; 4]));
    all.tag_lists.extend([0; 4]);
    all.sealed_offsets.extend([0; 8]);
    for row in 0..rows.count() {
        let (id, time, clear, checksum) = rows.clear(row)?;
        all.ids.extend(id.to_le_bytes());
        all.times.extend(time.to_le_bytes());
        for (column, text) in [(0, &clear.namespace), (2, &clear.source), (3, &clear.provenance)] {
            let (offsets, bytes) = &mut all.texts[column];
            bytes.extend_from_slice(text.as_bytes());
            offsets.extend(narrow(bytes));
        }
        for tag in &clear.tags {
            let (offsets, bytes) = &mut all.texts[1];
            bytes.extend_from_slice(tag.as_bytes());
            offsets.extend(narrow(bytes));
        }
        all.tag_count += clear.tags.len() as u64;
        all.tag_lists.extend((all.tag_count as i32).to_le_bytes());
        all.checksums.extend(checksum.to_le_bytes());
        all.sealed_end += rows.sealed_bytes(row)?;
        all.sealed_offsets.extend(all.sealed_end.to_le_bytes());
    }
    Ok(all)
}

impl ClearColumns {
    /// The body up to the sealed texts.
    fn body(&self, p: &Places) -> Vec<u8> {
        let mut body = vec![0; p.sealed.offset as usize];
        let mut put = |span: Span, bytes: &[u8]| {
            let at = span.offset as usize;
            body[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(p.id, &self.ids);
        put(p.time, &self.times);
        for ((offsets, bytes), (place, text)) in self.texts.iter().zip(p.texts) {
            put(place, offsets);
            put(text, bytes);
        }
        put(p.tag_lists, &self.tag_lists);
        put(p.checksum, &self.checksums);
        put(p.sealed_offsets, &self.sealed_offsets);
        body
    }
}

/// An open segment.
pub struct Segment {
    /// Its number in the manifest.
    pub sequence: u64,
    mapping: Mapping,
    sizes: Sizes,
    places: Places,
    body: usize,
}

impl Segment {
    /// Open and check everything but vectors and sealed texts; None if there is no such file.
    pub fn open(path: &Path, sequence: u64, vectors: Vectors, writable: bool) -> Result<Option<Self>> {
        let Some(file) = files::open(path, writable)? else { return Ok(None) };
        let wrong = |why: &str| StorageError::corrupt(format!("segment {sequence} {why}"));
        let length = file.metadata().map_err(StorageError::io("looking at a segment"))?.len();
        let sizes = read_sizes(&file, length)?.ok_or_else(|| wrong("is damaged at its end"))?;
        if sizes.vectors != vectors {
            return Err(wrong("holds other vectors than the store"));
        }
        let places = sizes.places();
        let frame = sizes.frame(&places);
        let body = frame.before.len();
        let tail = [&frame.after[..], &sizes.encode(), &frame.footer].concat();
        let expected = body as u64 + places.body + tail.len() as u64;
        if length != expected {
            return Err(wrong(&format!("has {length} bytes instead of {expected}")));
        }
        let length = usize::try_from(length).map_err(|_| wrong("is larger than the address space"))?;
        let segment = Segment { sequence, mapping: Mapping::new(file, length)?, sizes, places, body };
        let before = segment.at(0, body);
        let after = segment.at(body + places.body as usize, tail.len());
        if before != frame.before || after != tail {
            return Err(wrong("is damaged in its metadata"));
        }
        if aios_crc32c::crc32c(segment.at(body, places.sealed.offset as usize), 0) != sizes.clear_crc {
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

    /// Bytes of the map. What is in range of the file's size stays readable, whatever happens to the file.
    fn at(&self, offset: usize, bytes: usize) -> &[u8] {
        assert!(offset.checked_add(bytes).is_some_and(|end| end <= self.mapping.bytes()));
        // SAFETY: in bounds of the map, which lives as long as self; the guard turns a truncated file into zeros. The
        // file is the owner's alone, and this program changes nothing in it but vectors, which are read by `vector`.
        unsafe { std::slice::from_raw_parts(self.mapping.address().add(offset), bytes) }
    }

    /// Part of a column; None where an offset that the file names leads out of it.
    fn part(&self, span: Span, from: u64, to: u64) -> Option<&[u8]> {
        let bytes = to.checked_sub(from).filter(|_| to <= span.bytes)?;
        Some(self.at(self.body + (span.offset + from) as usize, bytes as usize))
    }

    fn array<const N: usize>(&self, span: Span, index: usize) -> [u8; N] {
        let mut out = [0; N];
        out.copy_from_slice(self.at(self.body + span.offset as usize + index * N, N)); // a panic beyond the file
        out
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

    /// Copy the vector of a row as it is kept; unchecked.
    pub fn vector(&self, row: usize, out: &mut [u8]) {
        let bytes = self.sizes.vectors.bytes();
        assert!(row < self.count() && out.len() == bytes);
        let at = self.body + self.places.vector.offset as usize + row * bytes;
        // SAFETY: in bounds, as `Segment::open` compared the file's length with its sizes; copied, not borrowed,
        // because the writer may zero it meanwhile: then it is zeros, or the checksum finds the mixture.
        unsafe { std::ptr::copy_nonoverlapping(self.mapping.address().add(at), out.as_mut_ptr(), bytes) };
    }

    /// A whole row and its vector, checked.
    pub fn read(&self, row: usize) -> Result<(Record, Vec<u8>)> {
        let (id, time, clear, checksum) = self.clear(row)?;
        let (from, to) = self.sealed_range(row)?;
        let sealed = self.part(self.places.sealed, from, to).ok_or_else(|| self.damaged(row))?.to_vec();
        let mut vector = vec![0; self.sizes.vectors.bytes()];
        self.vector(row, &mut vector);
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
        let bytes = self.sizes.vectors.bytes();
        let (zeros, mut found, mut erased) = (vec![0; bytes], vec![0; bytes], false);
        for &row in rows {
            self.vector(row, &mut found);
            if found != zeros {
                let at = (self.body as u64) + self.places.vector.offset + (row * bytes) as u64;
                self.mapping.file().write_all_at(&zeros, at).map_err(StorageError::io("erasing a vector"))?;
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

/// The sizes in front of the footer.
fn read_sizes(file: &File, length: u64) -> Result<Option<Sizes>> {
    let read =
        |bytes: &mut [u8], at| file.read_exact_at(bytes, at).map_err(StorageError::io("reading a segment"));
    if length < 10 {
        return Ok(None);
    }
    let mut end = [0; 10];
    read(&mut end, length - 10)?;
    let footer = u64::from(u32::from_le_bytes([end[0], end[1], end[2], end[3]]));
    let at = length.checked_sub(10 + footer + SIZES_BYTES as u64);
    let Some(at) = at.filter(|_| footer <= FOOTER_BYTES_MAX as u64) else { return Ok(None) };
    let mut sizes = [0; SIZES_BYTES];
    read(&mut sizes, at)?;
    Ok(Sizes::decode(&sizes))
}
