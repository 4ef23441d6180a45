//! Opening: the tail of a file is read, and every count, shape, size and offset in it is held against the rest.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::error::{Result, StorageError};
use crate::footer::{FOOTER_BYTES_MAX, read_footer};
use crate::layout::{ALIGNMENT, Dtype, Extent, PARTS, TensorEntry, TensorSpec, tensors_sha256};
use crate::schema::{Chunk, HEADER_BYTES_MAX, HEAVY, LENGTH_BYTES, MAGIC, Value, WIDTH, decode};

/// Directory and footer of a model of several hundred tensors: one read.
const TAIL_BYTES: u64 = 256 << 10;
/// About 1,100 bytes for each of 100,000 tensors with the longest names.
const DIRECTORY_BYTES_MAX: u64 = 128 << 20;
/// Length of the footer and the magic behind it.
const END_BYTES: u64 = 8;

/// What the tail of a weight file says, checked.
#[derive(Debug)]
pub struct Contents {
    /// The tensors, in file order.
    pub entries: Vec<TensorEntry>,
    /// Keys and values of the footer.
    pub metadata: Vec<(String, String)>,
    /// The identity of the tensors, computed from the entries.
    pub tensors_sha256: [u8; 32],
    /// Where the directory begins: the heavy pages lie before it.
    pub directory: u64,
}

/// Read a weight file's tail and check everything that can be checked without its tensors' bytes.
pub fn read_contents(file: &File, size: u64) -> Result<Contents> {
    let mut tail = Tail::read(file, size)?;
    let footer = read_footer(tail.footer()?)?;
    let directory = footer.rows.first().map_or(tail.footer_start, |row| row[0].start);
    let footer_start = tail.footer_start;
    let pages = tail.directory(file, directory)?;
    let mut walk = Walk { pages, directory, at: directory, heavy: MAGIC.len() as u64 };
    let entries = footer.rows.iter().enumerate().map(|(index, row)| walk.row(index, row));
    let entries = entries.collect::<Result<Vec<_>>>()?;
    if walk.at != footer_start {
        return Err(StorageError::corrupt("its directory has another length"));
    }
    let mut names = HashSet::with_capacity(entries.len());
    if let Some(twice) = entries.iter().find(|entry| !names.insert(entry.spec.name.as_str())) {
        return Err(StorageError::corrupt_tensor(&twice.spec.name, "it is there twice"));
    }
    let tensors_sha256 = tensors_sha256(&entries);
    Ok(Contents { entries, metadata: footer.metadata, tensors_sha256, directory })
}

/// The last bytes of a file.
struct Tail {
    bytes: Vec<u8>,
    start: u64,
    footer_start: u64,
}

impl Tail {
    fn read(file: &File, size: u64) -> Result<Self> {
        let mut head = [0; 4];
        if size < 2 * MAGIC.len() as u64 + 4 {
            return Err(StorageError::corrupt(format!("{size} bytes are too few for a Parquet file")));
        }
        read_at(file, &mut head, 0)?;
        let start = size.saturating_sub(TAIL_BYTES);
        let mut bytes = vec![0; (size - start) as usize];
        read_at(file, &mut bytes, start)?;
        if &head != MAGIC || !bytes.ends_with(MAGIC) {
            return Err(StorageError::corrupt(
                "it does not begin and end as a Parquet file: truncated, or another format",
            ));
        }
        let length = bytes[bytes.len() - END_BYTES as usize..]
            .first_chunk::<4>()
            .map_or(0, |l| u32::from_le_bytes(*l));
        let length = u64::from(length);
        let footer_start = (size - END_BYTES).checked_sub(length).filter(|&s| s >= MAGIC.len() as u64);
        let footer_start =
            footer_start.ok_or_else(|| StorageError::corrupt("its footer is longer than the file"))?;
        if length > FOOTER_BYTES_MAX {
            return Err(StorageError::corrupt(format!(
                "its footer of {length} bytes is above {FOOTER_BYTES_MAX}"
            )));
        }
        let mut tail = Tail { bytes, start, footer_start };
        tail.extend_to(file, footer_start)?;
        Ok(tail)
    }

    /// Read more, so that the tail begins at `start` at the latest.
    fn extend_to(&mut self, file: &File, start: u64) -> Result<()> {
        if start < self.start {
            let mut more = vec![0; (self.start - start) as usize];
            read_at(file, &mut more, start)?;
            more.append(&mut self.bytes);
            self.bytes = more;
            self.start = start;
        }
        Ok(())
    }

    fn footer(&self) -> Result<&[u8]> {
        let end = self.bytes.len() - END_BYTES as usize;
        self.bytes
            .get((self.footer_start - self.start) as usize..end)
            .ok_or_else(|| StorageError::corrupt("its footer is longer than the file"))
    }

    /// The directory's bytes: from `directory` to the footer.
    fn directory(&mut self, file: &File, directory: u64) -> Result<&[u8]> {
        if directory < MAGIC.len() as u64 || directory > self.footer_start {
            return Err(StorageError::corrupt("its directory lies outside the file"));
        }
        if self.footer_start - directory > DIRECTORY_BYTES_MAX {
            return Err(StorageError::corrupt(format!(
                "its directory is larger than {DIRECTORY_BYTES_MAX} bytes"
            )));
        }
        self.extend_to(file, directory)?;
        Ok(&self.bytes[(directory - self.start) as usize..(self.footer_start - self.start) as usize])
    }
}

/// Read exactly; an early end is corruption, not a failure of the system.
pub fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> Result<()> {
    file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => StorageError::corrupt("it ends early: it was truncated"),
        _ => StorageError::Io { doing: "reading", error },
    })
}

/// Walks over the rows in file order: directory pages follow each other without a gap, heavy pages never go back.
struct Walk<'a> {
    /// The directory's bytes, which begin at `directory` in the file.
    pages: &'a [u8],
    directory: u64,
    /// Where the next directory page must begin.
    at: u64,
    /// Where the last heavy page ended.
    heavy: u64,
}

/// Why a row cannot be used; the caller knows its name.
type Checked<T> = std::result::Result<T, String>;

impl<'a> Walk<'a> {
    fn row(&mut self, index: usize, row: &[Chunk; WIDTH]) -> Result<TensorEntry> {
        let name =
            self.text(row, 0).map_err(|why| StorageError::corrupt(format!("tensor {index}: {why}")))?;
        self.named_row(row, name).map_err(|why| StorageError::corrupt_tensor(name, why))
    }

    fn named_row(&mut self, row: &[Chunk; WIDTH], name: &str) -> Checked<TensorEntry> {
        let Value::List(shape) = self.small(row, 1)? else { return Err("it has no shape".to_owned()) };
        let shape =
            shape.into_iter().map(|axis| u64::try_from(axis).map_err(|_| "its shape is negative".to_owned()));
        let spec = TensorSpec {
            name: name.to_owned(),
            shape: shape.collect::<Checked<_>>()?,
            dtype: Dtype::parse(self.text(row, 2)?).ok_or("its dtype is unknown")?,
            group_size: self.number(row, 3)?,
            symmetric: self.number::<u8>(row, 4)? == 1,
            rank: 0,
        };
        let order: u32 = self.number(row, 5)?;
        if order != spec.order() {
            return Err(format!(
                "its packed order {order} is none that this version knows for {}",
                spec.dtype.name()
            ));
        }
        let spec = TensorSpec { rank: self.number(row, 6)?, ..spec };
        let sizes = spec.part_bytes().map_err(|error| error.to_string())?;
        let before = self.heavy;
        let mut parts = [Extent::default(); 5];
        for (index, (part, bytes)) in parts.iter_mut().zip(sizes).enumerate() {
            *part = self.part(row, HEAVY + index, bytes)?;
        }
        let pad = if parts[0].bytes > 0 { parts[0].page - before } else { 0 };
        let stated: (u64, u64) = (self.number(row, 12)?, self.number(row, 13)?);
        if stated != (parts[0].offset, pad) {
            return Err("its offset differs from where its data lies".to_owned());
        }
        let checksum = self.number(row, 14)?;
        let sha256 = self.bytes(row, 15)?.try_into().map_err(|_| "its SHA-256 has another length")?;
        Ok(TensorEntry { spec, parts, checksum, sha256 })
    }

    /// The value of a directory page, which must lie right behind the one before.
    fn small(&mut self, row: &[Chunk; WIDTH], column: usize) -> Checked<Value<'a>> {
        let Chunk { start, bytes, values } = row[column];
        let from = usize::try_from(start - self.directory.min(start)).unwrap_or(usize::MAX);
        let to = usize::try_from(bytes).ok().and_then(|bytes| from.checked_add(bytes));
        let chunk = to.and_then(|to| self.pages.get(from..to)).filter(|_| start == self.at);
        let chunk = chunk.ok_or("its directory pages do not follow each other")?;
        self.at += bytes;
        Ok(decode(column, chunk, values)?)
    }

    fn bytes(&mut self, row: &[Chunk; WIDTH], column: usize) -> Checked<&'a [u8]> {
        match self.small(row, column)? {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err("a column holds another type".to_owned()),
        }
    }

    fn text(&mut self, row: &[Chunk; WIDTH], column: usize) -> Checked<&'a str> {
        std::str::from_utf8(self.bytes(row, column)?).map_err(|_| "a string is not UTF-8".to_owned())
    }

    fn number<T: TryFrom<i64>>(&mut self, row: &[Chunk; WIDTH], column: usize) -> Checked<T> {
        match self.small(row, column)? {
            Value::Number(number) => {
                T::try_from(number).map_err(|_| "a number is out of its range".to_owned())
            }
            _ => Err("a column holds another type".to_owned()),
        }
    }

    /// Where a part lies: in the directory if it is empty, else aligned before the directory, behind the one before.
    fn part(&mut self, row: &[Chunk; WIDTH], column: usize, bytes: u64) -> Checked<Extent> {
        let name = PARTS[column - HEAVY];
        if bytes == 0 {
            return match self.bytes(row, column)? {
                [] => Ok(Extent { page: row[column].start, offset: self.at, bytes }),
                _ => Err(format!("its {name} should be empty")),
            };
        }
        let Chunk { start, bytes: length, values } = row[column];
        let header =
            length.checked_sub(bytes + LENGTH_BYTES).filter(|header| (1..=HEADER_BYTES_MAX).contains(header));
        let end = start.checked_add(length).filter(|&end| end <= self.directory && start >= self.heavy);
        let (Some(_), Some(end), 1) = (header, end, values) else {
            return Err(format!(
                "its {name} overlaps, lies outside the file, or does not have {bytes} bytes"
            ));
        };
        if !(end - bytes).is_multiple_of(ALIGNMENT) {
            return Err(format!("its {name} does not begin at a multiple of {ALIGNMENT}"));
        }
        self.heavy = end;
        Ok(Extent { page: start, offset: end - bytes, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::verify;
    use crate::footer::footer;
    use crate::schema::directory;
    use proptest::prelude::*;

    /// An unnamed file with these bytes.
    fn unnamed(bytes: &[u8]) -> File {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("aios-file-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    /// Two tensors that a writer would place at 64 and 192; their bytes are zeros.
    fn honest() -> Vec<TensorEntry> {
        let spec = |name: &str, shape: &[u64]| TensorSpec {
            name: name.to_owned(),
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            group_size: 0,
            symmetric: false,
            rank: 0,
        };
        let entry = |spec, offset, bytes| {
            let data = Extent { page: offset - 31, offset, bytes };
            TensorEntry {
                spec,
                parts: [data, Extent::default(), Extent::default(), Extent::default(), Extent::default()],
                checksum: 0,
                sha256: [0; 32],
            }
        };
        vec![entry(spec("a", &[2, 2]), 64, 16), entry(spec("b", &[3]), 192, 12)]
    }

    /// A file whose directory and footer say exactly this, with every checksum right.
    fn forge(entries: &[TensorEntry], heavy_bytes: usize) -> Vec<u8> {
        let mut out = vec![0; heavy_bytes];
        out[..4].copy_from_slice(MAGIC);
        let (mut pages, mut end) = (Vec::new(), 4);
        let rows: Vec<_> = entries
            .iter()
            .map(|entry| {
                let pad = entry.parts[0].page.wrapping_sub(end);
                end = entry.parts[0].end();
                directory(entry, pad, heavy_bytes as u64, &mut pages)
            })
            .collect();
        let footer = footer(&rows, &[]);
        out.extend(pages);
        out.extend_from_slice(&footer);
        out.extend((footer.len() as u32).to_le_bytes());
        out.extend(MAGIC);
        out
    }

    fn opened(bytes: &[u8]) -> Result<Contents> {
        read_contents(&unnamed(bytes), bytes.len() as u64)
    }

    fn refused(lie: impl FnOnce(&mut Vec<TensorEntry>)) -> String {
        let mut entries = honest();
        lie(&mut entries);
        match opened(&forge(&entries, 204)) {
            Err(StorageError::Corrupt { why, .. }) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_honest_forgery_is_opened() {
        assert_eq!(opened(&forge(&honest(), 204)).unwrap().entries.len(), 2);
    }

    #[test]
    fn lies_with_right_checksums_are_refused() {
        let moved = |at: u64| {
            move |e: &mut Vec<TensorEntry>| (e[1].parts[0].page, e[1].parts[0].offset) = (at - 31, at)
        };
        assert!(refused(moved(64)).contains("overlaps"));
        assert!(refused(moved(256)).contains("outside the file"));
        assert!(refused(moved(1 << 61)).contains("outside the file"));
        assert!(refused(moved(188)).contains("multiple of 64"));
        assert!(refused(|e| e[0].parts[0].bytes = 20).contains("multiple of 64"));
        assert!(refused(|e| e[0].parts[0].page = 4).contains("does not have 16 bytes"));
        assert!(refused(|e| e[0].parts[0].page = 60).contains("does not have 16 bytes"));
        assert!(refused(|e| e[0].spec.shape = vec![1 << 40, 1 << 40]).contains("64 bits"));
        assert!(refused(|e| e[0].spec.shape = vec![1 << 63]).contains("negative"));
        assert!(refused(|e| e[0].spec.group_size = 64).contains("only packed tensors"));
        assert!(refused(|e| e[0].spec.name = "a\0".to_owned()).contains("control characters"));
        assert!(refused(|e| e[0].spec.name.clear()).contains("1 to 512"));
        assert!(refused(|e| e[1].spec.name = "a".to_owned()).contains("twice"));
        assert!(refused(|e| e.swap(0, 1)).contains("overlaps"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_footer_that_says_anything_is_read_or_refused(
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut bytes = forge(&honest(), 204);
            let end = bytes.len() - 8;
            let length = u32::from_le_bytes(*bytes[end..].first_chunk().unwrap()) as usize;
            let start = end - length;
            for (at, value) in edits {
                let at = start + at.index(length);
                bytes[at] = value;
            }
            // Make its checksum right again, where there still is one.
            let key = crate::footer::FOOTER_CRC_KEY.as_bytes();
            if let Some(at) = bytes.windows(key.len()).position(|window| window == key) {
                let digits = at + key.len() + 2;
                bytes[digits..digits + 8].copy_from_slice(b"00000000");
                let crc = format!("{:08x}", aios_crc32c::crc32c(&bytes[start..end], 0));
                bytes[digits..digits + 8].copy_from_slice(crc.as_bytes());
            }
            let file = unnamed(&bytes);
            match read_contents(&file, bytes.len() as u64) {
                Ok(contents) => {
                    for (index, entry) in contents.entries.iter().enumerate() {
                        prop_assert!(entry.parts.iter().all(|part| part.end() <= bytes.len() as u64));
                        let _ = verify(&file, &contents.entries, index);
                    }
                }
                Err(StorageError::Corrupt { .. }) => {}
                Err(other) => prop_assert!(false, "{other:?}"),
            }
        }
    }
}
