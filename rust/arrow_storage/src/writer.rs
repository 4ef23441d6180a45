//! Writing: tensors stream into PATH.partial; a journal lets a later run go on; the rename at the end is the commit.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::check::{Digests, PIECE_BYTES, previous_end, verify};
use crate::error::{Result, StorageError};
use crate::footer::{FOOTER_BYTES_MAX, FOOTER_CRC_KEY, footer};
use crate::journal::Journal;
use crate::layout::{ALIGNMENT, Extent, PARTS, TENSORS_MAX, TensorEntry, TensorSpec, hex, tensors_sha256};
use crate::schema::{HEADER_BYTES_MAX, LENGTH_BYTES, MAGIC, directory};

/// What a crash of the machine may cost of finished work, and a bound on dirty memory.
const SYNC_BYTES: u64 = 256 << 20;
/// Metadata keys that this module sets itself.
const OWN_KEYS: [&str; 3] = ["aios.format", "aios.tensors_sha256", FOOTER_CRC_KEY];
/// The version of the format.
pub const FORMAT: &str = "2";

/// Writes one weight file.
pub struct WeightWriter {
    file: File,
    target: PathBuf,
    partial: PathBuf,
    journal: Option<Journal>,
    entries: Vec<TensorEntry>,
    names: HashSet<String>,
    /// Where the next page may begin.
    end: u64,
    unsynced: u64,
    open: Option<OpenTensor>,
    /// After a failed write nothing may follow: what is on the disk is unknown.
    broken: bool,
}

/// The tensor that is being written.
struct OpenTensor {
    entry: TensorEntry,
    digests: Digests,
    part: usize,
    written: u64,
}

impl WeightWriter {
    /// Begin PATH, or go on with a partial one of the same `source`; an empty source is never resumed.
    pub fn create(target: &Path, source: &str) -> Result<Self> {
        if target.file_name().is_none() {
            return Err(StorageError::input("the path names no file"));
        }
        let partial = beside(target, ".partial");
        let file = open_locked(&partial)?;
        let journal_path = beside(target, ".partial.journal");
        let (journal, entries) = if source.is_empty() {
            remove_if_there(&journal_path).map_err(StorageError::io("removing an old journal"))?;
            (None, Vec::new())
        } else {
            let (journal, entries) = Journal::open(&journal_path, source)?;
            (Some(journal), entries)
        };
        let mut writer = WeightWriter {
            file,
            target: target.to_owned(),
            partial,
            journal,
            names: HashSet::new(),
            end: MAGIC.len() as u64,
            entries: Vec::new(),
            unsynced: 0,
            open: None,
            broken: false,
        };
        writer.resume(entries)?;
        Ok(writer)
    }

    /// Keep what is whole: every journalled tensor up to the first whose bytes are not what the journal says.
    fn resume(&mut self, mut entries: Vec<TensorEntry>) -> Result<()> {
        let mut whole = 0;
        while whole < entries.len() {
            match verify(&self.file, &entries, whole) {
                Ok(()) => whole += 1,
                Err(StorageError::Corrupt { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        if let Some(journal) = self.journal.as_mut().filter(|_| whole < entries.len()) {
            journal.rewrite(&entries[..whole])?;
        }
        entries.truncate(whole);
        self.end = previous_end(&entries, entries.len());
        self.names = entries.iter().map(|entry| entry.spec.name.clone()).collect();
        self.entries = entries;
        self.file.set_len(self.end).map_err(StorageError::io("truncating the partial file"))?;
        self.file.write_all_at(MAGIC, 0).map_err(StorageError::io("writing"))
    }

    /// The tensors that are complete, in file order.
    #[must_use]
    pub fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    /// Begin a tensor; returns the bytes that each of its parts must receive.
    pub fn begin(&mut self, spec: TensorSpec) -> Result<[u64; 5]> {
        self.check_usable()?;
        if let Some(open) = &self.open {
            return Err(StorageError::input_tensor(&open.entry.spec.name, "it was begun and not ended"));
        }
        let sizes = spec.part_bytes()?;
        if self.names.contains(&spec.name) {
            return Err(StorageError::input_tensor(&spec.name, "it was already written"));
        }
        if self.entries.len() >= TENSORS_MAX {
            return Err(StorageError::Limit {
                tensor: None,
                why: format!("a file holds {TENSORS_MAX} tensors"),
            });
        }
        let mut end = self.end;
        let parts = sizes.map(|bytes| {
            if bytes == 0 {
                return Extent::default(); // its place is in the directory
            }
            let offset = (end + HEADER_BYTES_MAX + LENGTH_BYTES).next_multiple_of(ALIGNMENT);
            end = offset + bytes;
            Extent { page: offset, offset, bytes } // the page begins before: known when its CRC is
        });
        let entry = TensorEntry { spec, parts, checksum: 0, sha256: [0; 32] };
        let mut open = OpenTensor { entry, digests: Digests::default(), part: 0, written: 0 };
        open.enter(0);
        self.open = Some(open);
        Ok(sizes)
    }

    /// The next bytes of part number `part`; parts come in their order, empty ones may be left out.
    pub fn write(&mut self, part: usize, piece: &[u8]) -> Result<()> {
        self.check_usable()?;
        let open = self.open.as_mut().ok_or_else(|| StorageError::input("no tensor was begun"))?;
        open.check_piece(part, piece.len() as u64)?;
        self.broken = true;
        for piece in piece.chunks(PIECE_BYTES) {
            let at = open.entry.parts[part].offset + open.written;
            open.digests.update(piece);
            self.file.write_all_at(piece, at).map_err(StorageError::io("writing"))?;
            open.written += piece.len() as u64;
        }
        self.unsynced += piece.len() as u64;
        if !piece.is_empty() && open.written == open.entry.parts[part].bytes {
            self.end = open.finish_part(&self.file, self.end).map_err(StorageError::io("writing"))?;
        }
        self.broken = false;
        Ok(())
    }

    /// The tensor is complete: note it in the journal.
    pub fn end(&mut self) -> Result<()> {
        self.check_usable()?;
        let open = self.open.take_if(|open| open.part == PARTS.len());
        let Some(OpenTensor { mut entry, digests, .. }) = open else {
            return Err(match &self.open {
                None => StorageError::input("no tensor was begun"),
                Some(open) => StorageError::input_tensor(&open.entry.spec.name, open.missing()),
            });
        };
        (entry.checksum, entry.sha256) = digests.finish();
        self.broken = true;
        if self.unsynced >= SYNC_BYTES {
            self.file.sync_data().map_err(StorageError::io("syncing"))?;
            self.unsynced = 0;
        }
        if let Some(journal) = &mut self.journal {
            journal.append(&entry)?;
        }
        self.broken = false;
        self.names.insert(entry.spec.name.clone());
        self.entries.push(entry);
        Ok(())
    }

    /// The identity of the tensors written so far.
    #[must_use]
    pub fn tensors_sha256(&self) -> [u8; 32] {
        tensors_sha256(&self.entries)
    }

    /// Write directory and footer, sync, and rename into place; the writer is used up, whatever comes.
    pub fn finish(&mut self, metadata: &[(String, String)]) -> Result<()> {
        self.check_usable()?;
        if let Some(open) = &self.open {
            return Err(StorageError::input_tensor(&open.entry.spec.name, "it was begun and not ended"));
        }
        if let Some((key, _)) = metadata.iter().find(|(key, _)| OWN_KEYS.contains(&key.as_str())) {
            return Err(StorageError::input(format!("the key {key} is the writer's own")));
        }
        let tail = self.tail(metadata)?;
        self.broken = true;
        self.file.write_all_at(&tail, self.end).map_err(StorageError::io("writing"))?;
        self.file.sync_all().map_err(StorageError::io("syncing"))?;
        fs::rename(&self.partial, &self.target).map_err(StorageError::io("renaming the finished file"))?;
        let folder = self.target.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder =
            File::open(folder.unwrap_or(Path::new("."))).map_err(StorageError::io("opening the folder"))?;
        folder.sync_all().map_err(StorageError::io("syncing the folder"))?;
        self.journal = None;
        remove_if_there(&beside(&self.target, ".partial.journal"))
            .map_err(StorageError::io("removing the journal"))
    }

    /// Directory, footer, length and magic.
    fn tail(&self, metadata: &[(String, String)]) -> Result<Vec<u8>> {
        let mut all = vec![
            ("aios.format".to_owned(), FORMAT.to_owned()),
            ("aios.tensors_sha256".to_owned(), hex(&self.tensors_sha256())),
        ];
        all.extend_from_slice(metadata);
        let (mut out, mut rows, mut previous) =
            (Vec::new(), Vec::with_capacity(self.entries.len()), MAGIC.len() as u64);
        for entry in &self.entries {
            let data = entry.parts[0];
            let pad = if data.bytes > 0 { data.page - previous } else { 0 };
            rows.push(directory(entry, pad, self.end, &mut out));
            previous =
                entry.parts.iter().filter(|part| part.bytes > 0).map(Extent::end).max().unwrap_or(previous);
        }
        let footer = footer(&rows, &all);
        if footer.len() as u64 > FOOTER_BYTES_MAX {
            let why = format!("the footer of {} bytes is above {FOOTER_BYTES_MAX}", footer.len());
            return Err(StorageError::Limit { tensor: None, why });
        }
        out.extend_from_slice(&footer);
        out.extend((footer.len() as u32).to_le_bytes());
        out.extend_from_slice(MAGIC);
        Ok(out)
    }

    /// Give up: remove the partial file and its journal.
    pub fn abandon(&mut self) -> Result<()> {
        let finished = self.broken && !same_file(&self.file, &self.partial);
        self.broken = true;
        self.journal = None;
        if finished {
            return Ok(());
        }
        remove_if_there(&self.partial)
            .and_then(|()| remove_if_there(&beside(&self.target, ".partial.journal")))
            .map_err(StorageError::io("removing the partial file"))
    }

    fn check_usable(&self) -> Result<()> {
        if self.broken {
            return Err(StorageError::input("the file is finished, abandoned, or failed before"));
        }
        Ok(())
    }
}

impl OpenTensor {
    /// Go to the first part from `part` on that is not empty.
    fn enter(&mut self, part: usize) {
        let next = (part..PARTS.len()).find(|&index| self.entry.parts[index].bytes > 0);
        self.part = next.unwrap_or(PARTS.len());
        self.written = 0;
        if let Some(index) = next {
            self.digests.begin_part(self.entry.parts[index].bytes);
        }
    }

    fn check_piece(&self, part: usize, bytes: u64) -> Result<()> {
        let name = &self.entry.spec.name;
        let expected =
            self.entry.parts.get(part).ok_or_else(|| StorageError::input_tensor(name, "no such part"))?.bytes;
        let written = if part == self.part { self.written } else { 0 };
        if bytes > 0 && part != self.part && expected > 0 {
            return Err(StorageError::input_tensor(name, format!("its {} comes out of turn", PARTS[part])));
        }
        if bytes > expected - written {
            let why = format!("its {} has {expected} bytes; more were given", PARTS[part]);
            return Err(StorageError::input_tensor(name, why));
        }
        Ok(())
    }

    /// Put the page header before the payload, now that its CRC is known; returns where the part ends.
    fn finish_part(&mut self, file: &File, previous_end: u64) -> io::Result<u64> {
        let part = &mut self.entry.parts[self.part];
        let header = self.digests.header(part.bytes);
        part.page = part.offset - header.len() as u64;
        let gap = (part.page - previous_end) as usize;
        file.write_all_at(&[vec![0; gap], header].concat(), previous_end)?;
        let end = part.end();
        self.enter(self.part + 1);
        Ok(end)
    }

    fn missing(&self) -> String {
        let part = self.entry.parts[self.part];
        format!("its {} has {} of {} bytes", PARTS[self.part], self.written, part.bytes)
    }
}

/// PATH with something appended to its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether `path` still names the open file.
fn same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// Open an owner-only file for reading and writing, without following a link.
pub fn open_private(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a plain file"));
    }
    Ok(file)
}

/// Open and lock the partial file; one that was renamed between the two belongs to somebody else.
fn open_locked(partial: &Path) -> Result<File> {
    for _ in 0..100 {
        let file = open_private(partial).map_err(StorageError::io("creating the partial file"))?;
        match file.try_lock() {
            Ok(()) if same_file(&file, partial) => return Ok(file),
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(StorageError::Busy),
            Err(fs::TryLockError::Error(error)) => return Err(StorageError::Io { doing: "locking", error }),
        }
    }
    Err(StorageError::Busy)
}
