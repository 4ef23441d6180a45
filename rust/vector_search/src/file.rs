//! One file for an index: a header page, then every array of all slots behind each other, each from a page on.
//!
//! Where a section lies follows from the counts in the header, so that a file cannot lie about it. Ids and terms are
//! checked when the file is opened, because everything hangs on them; codes, vectors and links stay in the map until
//! they are used, and `VectorSearch::verify` checks them. Links that name no slot are passed over wherever they are
//! read. Writing goes to PATH.partial, which is synced and renamed: there is the old file or the new one.

#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use aios_arrow_storage::Mapping;
use aios_crc32c::crc32c;

use crate::array::{Array, Plain};
use crate::code::{Coder, Metric};
use crate::fault::{Fault, Result};
use crate::index::{DIM_MAX, VectorSearch};
use crate::rows::{CHUNK, Chunk, DEGREE, Rows, SLOTS_MAX};

const MAGIC: &[u8; 8] = b"AIOSVEC1";
const PAGE: usize = 4096;
/// ids, factors, offsets, errors, inverse norms, codes, vectors, links.
pub(crate) const SECTIONS: usize = 8;
/// Sections that opening reads.
const CHECKED_AT_ONCE: usize = 5;
/// magic, metric, dim, links of a slot, slots, linked, checksums of the sections, checksum of all that.
const HEADER_BYTES: usize = 8 + 3 * 4 + 2 * 8 + 4 * SECTIONS + 4;

/// What the header says.
struct Header {
    metric: Metric,
    dim: usize,
    graph: bool,
    slots: usize,
    linked: usize,
    checksums: [u32; SECTIONS],
}

impl Header {
    fn bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let degree = if self.graph { DEGREE as u32 } else { 0 };
        for number in [self.metric.number(), self.dim as u32, degree] {
            out.extend(number.to_le_bytes());
        }
        for number in [self.slots as u64, self.linked as u64] {
            out.extend(number.to_le_bytes());
        }
        out.extend(self.checksums.iter().flat_map(|checksum| checksum.to_le_bytes()));
        out.extend(crc32c(&out, 0).to_le_bytes());
        out
    }

    fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self> {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if &bytes[..8] != MAGIC {
            return Err(Fault::corrupt("it is no index of vectors, or of another version"));
        }
        if u32_at(HEADER_BYTES - 4) != crc32c(&bytes[..HEADER_BYTES - 4], 0) {
            return Err(Fault::corrupt("the header's checksum is wrong"));
        }
        let metric = Metric::of(u32_at(8)).ok_or_else(|| Fault::corrupt("the metric is unknown"))?;
        let (dim, degree, slots, linked) = (u32_at(12) as usize, u32_at(16) as usize, u64_at(20), u64_at(28));
        if dim == 0 || dim > DIM_MAX || slots > SLOTS_MAX as u64 || linked > slots {
            return Err(Fault::corrupt("the header's counts are out of range"));
        }
        if degree != 0 && (degree != DEGREE || metric == Metric::Dot) {
            return Err(Fault::corrupt("the graph is of an unknown kind"));
        }
        let checksums = std::array::from_fn(|section| u32_at(36 + 4 * section));
        let (slots, linked) = (slots as usize, linked as usize);
        Ok(Header { metric, dim, graph: degree > 0, slots, linked, checksums })
    }

    /// Bytes that a slot takes in each section.
    fn widths(&self, coder: &Coder) -> [usize; SECTIONS] {
        [8, 4, 4, 4, 4, coder.stride(), 4 * coder.dim, if self.graph { 4 * DEGREE } else { 0 }]
    }

    /// Where each section begins, and where the last one ends. Caps keep it within 2^46 bytes.
    fn places(&self, coder: &Coder) -> ([usize; SECTIONS], usize) {
        let mut at = PAGE;
        let begins = self.widths(coder).map(|width| {
            let begin = at;
            at = (begin + width * self.slots).next_multiple_of(PAGE);
            begin
        });
        (begins, at)
    }
}

impl VectorSearch {
    /// Writes the index to `path`, durably, owner-only; the file that was there stays until the new one is complete.
    pub fn save(&self, path: &Path) -> Result<()> {
        let partial = partial(path);
        let written = self.write(&partial).and_then(|()| {
            fs::rename(&partial, path).map_err(Fault::io("renaming"))?;
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder =
                File::open(folder.unwrap_or(Path::new("."))).map_err(Fault::io("opening the folder"))?;
            folder.sync_all().map_err(Fault::io("syncing the folder"))
        });
        if written.is_err() {
            let _ = fs::remove_file(&partial);
        }
        written
    }

    fn write(&self, path: &Path) -> Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(path).map_err(Fault::io("creating"))?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        self.write_to(&mut out).map_err(Fault::io("writing"))?;
        let file = out.into_inner().map_err(|error| Fault::io("writing")(error.into_error()))?;
        file.sync_all().map_err(Fault::io("syncing"))
    }

    /// Writes what `save` writes to anything, from the first byte to the last.
    pub fn write_to<'a>(&'a self, out: &mut dyn Write) -> io::Result<()> {
        let mut header = Header {
            metric: self.coder.metric,
            dim: self.coder.dim,
            graph: self.has_graph(),
            slots: self.rows.slots,
            linked: self.linked.unwrap_or(0),
            checksums: [0; SECTIONS],
        };
        let widths = header.widths(&self.coder);
        let bytes =
            |section, (chunk, count): (&'a Chunk, usize)| bytes_of(chunk, section, count, widths[section]);
        for (section, checksum) in header.checksums.iter_mut().enumerate() {
            *checksum = self.filled().fold(0, |seed, part| crc32c(bytes(section, part), seed));
        }
        let (begins, end) = header.places(&self.coder);
        let head = header.bytes();
        out.write_all(&head)?;
        let mut at = head.len();
        for (section, begin) in begins.into_iter().enumerate() {
            out.write_all(&[0; PAGE][..begin - at])?;
            at = begin;
            for part in self.filled() {
                out.write_all(bytes(section, part))?;
                at += bytes(section, part).len();
            }
        }
        out.write_all(&[0; PAGE][..end - at])
    }

    /// The chunks, each with the number of its slots that were ever used.
    fn filled(&self) -> impl Iterator<Item = (&Chunk, usize)> {
        let slots = self.rows.slots;
        self.rows
            .chunks
            .iter()
            .enumerate()
            .map(move |(at, chunk)| (chunk, slots.saturating_sub(at * CHUNK).min(CHUNK)))
    }

    /// Opens a file that `save` wrote, in place: its pages are read when they are needed, and changes stay in memory.
    pub fn open(path: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let file = options.open(path).map_err(Fault::io("opening"))?;
        let facts = file.metadata().map_err(Fault::io("opening"))?;
        if !facts.is_file() || facts.len() < PAGE as u64 {
            return Err(Fault::corrupt("it is no index of vectors"));
        }
        let bytes = usize::try_from(facts.len()).map_err(|_| Fault::corrupt("it is too large"))?;
        Self::of(
            Mapping::new(file, bytes)
                .map_err(|error| Fault::corrupt(format!("it cannot be mapped: {error}")))?,
        )
    }

    /// The index that these bytes are: what `write_to` wrote.
    pub fn of(map: Mapping) -> Result<Self> {
        if map.bytes() < PAGE {
            return Err(Fault::corrupt("it is no index of vectors"));
        }
        let mut bytes = [0; HEADER_BYTES];
        // SAFETY: the map has a page or more, and nobody else knows it yet.
        unsafe { std::ptr::copy_nonoverlapping(map.address(), bytes.as_mut_ptr(), HEADER_BYTES) };
        let header = Header::parse(&bytes)?;
        let coder = Coder::new(header.dim, header.metric);
        let (begins, end) = header.places(&coder);
        if map.bytes() != end {
            return Err(Fault::corrupt("the file is not as long as its header says"));
        }
        let map = Arc::new(map);
        let chunks = (0..header.slots.div_ceil(CHUNK))
            .map(|number| {
                let count = (header.slots - number * CHUNK).min(CHUNK);
                chunk_of(&map, &header, &coder, begins, number, count)
            })
            .collect::<Result<Vec<_>>>()?;
        check(&chunks, &header, &coder, 0..CHECKED_AT_ONCE)?;
        let rows = Rows::over(&coder, chunks, header.slots)?;
        let linked = header.graph.then_some(header.linked);
        let mut index = VectorSearch::over(coder, rows, linked);
        (index.map, index.checksums) = (Some(map), Some(header.checksums));
        Ok(index)
    }

    /// Checks every section of the file that the index was opened from; nothing is left to check once it changed.
    pub fn verify(&self) -> Result<()> {
        let (Some(map), Some(checksums)) = (&self.map, self.checksums) else { return Ok(()) };
        let header = Header {
            metric: self.coder.metric,
            dim: self.coder.dim,
            graph: self.has_graph(),
            slots: self.rows.slots,
            linked: 0,
            checksums,
        };
        check(&self.rows.chunks, &header, &self.coder, 0..SECTIONS)?;
        if map.fault() {
            return Err(Fault::corrupt("the file became shorter while it was open"));
        }
        Ok(())
    }
}

fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

/// One section's bytes of the first `count` slots of a chunk.
fn bytes_of(chunk: &Chunk, section: usize, count: usize, width: usize) -> &[u8] {
    fn whole<T: Plain>(array: &[T]) -> &[u8] {
        // SAFETY: plain values have no padding, and their bytes may be read as such; nobody links meanwhile, because
        // linking needs the index for itself.
        unsafe { std::slice::from_raw_parts(array.as_ptr().cast(), size_of_val(array)) }
    }
    let bytes = match section {
        0 => whole(&chunk.ids),
        1 => whole(&chunk.factors),
        2 => whole(&chunk.offsets),
        3 => whole(&chunk.errors),
        4 => whole(&chunk.inverse_norms),
        5 => whole(&chunk.codes),
        6 => whole(&chunk.vectors),
        _ => whole(&chunk.links),
    };
    &bytes[..count * width]
}

fn check(chunks: &[Chunk], header: &Header, coder: &Coder, sections: std::ops::Range<usize>) -> Result<()> {
    for section in sections {
        let width = header.widths(coder)[section];
        let counts =
            chunks.iter().enumerate().map(|(at, chunk)| (chunk, (header.slots - at * CHUNK).min(CHUNK)));
        let found =
            counts.fold(0, |seed, (chunk, count)| crc32c(bytes_of(chunk, section, count, width), seed));
        if found != header.checksums[section] {
            return Err(Fault::corrupt(format!("the checksum of section {section} is wrong")));
        }
    }
    Ok(())
}

/// A chunk over the map; the last one, which may grow, is copied.
fn chunk_of(
    map: &Arc<Mapping>,
    header: &Header,
    coder: &Coder,
    begins: [usize; SECTIONS],
    number: usize,
    count: usize,
) -> Result<Chunk> {
    let widths = header.widths(coder);
    let at = |section: usize| begins[section] + number * CHUNK * widths[section];
    fn part<T: Plain>(map: &Arc<Mapping>, at: usize, count: usize, width: usize) -> Result<Array<T>> {
        let len = count * width / size_of::<T>();
        // SAFETY: sections lie apart, chunks within them too, and each is mapped into an array once.
        let mapped = unsafe { Array::mapped(map, at, len) };
        mapped.ok_or_else(|| Fault::corrupt("a section lies outside of the file"))
    }
    let mapped = Chunk {
        ids: part(map, at(0), count, widths[0])?,
        factors: part(map, at(1), count, widths[1])?,
        offsets: part(map, at(2), count, widths[2])?,
        errors: part(map, at(3), count, widths[3])?,
        inverse_norms: part(map, at(4), count, widths[4])?,
        codes: part(map, at(5), count, widths[5])?,
        vectors: part(map, at(6), count, widths[6])?,
        links: part(map, at(7), count, widths[7])?,
    };
    if count == CHUNK {
        return Ok(mapped);
    }
    let mut copied = Chunk::new(coder, header.graph);
    copied.ids[..count].copy_from_slice(&mapped.ids);
    copied.factors[..count].copy_from_slice(&mapped.factors);
    copied.offsets[..count].copy_from_slice(&mapped.offsets);
    copied.errors[..count].copy_from_slice(&mapped.errors);
    copied.inverse_norms[..count].copy_from_slice(&mapped.inverse_norms);
    copied.codes[..mapped.codes.len()].copy_from_slice(&mapped.codes);
    copied.vectors[..mapped.vectors.len()].copy_from_slice(&mapped.vectors);
    for (to, from) in copied.links.iter().zip(mapped.links.iter()) {
        to.store(from.load(Relaxed), Relaxed);
    }
    Ok(copied)
}
