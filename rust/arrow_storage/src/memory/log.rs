//! The write-ahead log: a file of frames, acknowledged when they are synced.
//!
//! The header holds a mark: how far the log was known to be synced. Behind the mark a torn tail is cut, because nobody
//! was told that it was kept; damage before it is reported and never guessed away. The mark is written after each sync
//! and reaches the disk with the next one, so that it never says too much. It has two places that take turns: where
//! the power failed while one was written, the other one is whole.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::frame::{Frames, LogRow, Scanned};
use super::manifest::Kept;
use super::record::{limit, take};
use super::sealing::{Kind, SALT_BYTES, random};
use super::{LOG_BYTES_LIMIT, files};
use crate::error::{Result, StorageError};

const MAGIC: &[u8; 16] = b"aios-memlog-1\n\0\0";
/// Of a log whose frames are sealed; the salt of its key follows what every log begins with.
const MAGIC_SEALED: &[u8; 16] = b"aios-sealedlog1\n";
const SALT_AT: usize = 40;
/// Everything before is compared at open.
const COMPARED: usize = 64;
const MARKS_AT: [u64; 2] = [64, 96];
const MARK_BYTES: usize = 12;
/// A reader may meet the mark half written.
const MARK_TRIES: usize = 20;
const MARK_PAUSE: Duration = Duration::from_micros(100);
/// Where frames begin.
pub const START: u64 = 128;

/// The open file.
pub struct LogFile {
    file: File,
    /// How its frames are written.
    pub frames: Frames,
    /// Where the next mark goes.
    turn: AtomicUsize,
}

/// The mark as it was found.
struct Mark {
    end: u64,
    /// One of its places is damaged, or was being written when the power failed.
    half: bool,
}

impl LogFile {
    /// An empty log in its place.
    pub fn create(path: &Path, sequence: u64, kept: Kept) -> Result<()> {
        let salt = if kept.key.is_some() { Some(random()?) } else { None };
        let head = head(kept.identity, sequence, salt.as_ref());
        files::replace(path, |out| out.write_all(&head).map_err(StorageError::io("writing the log")))
    }

    /// Open the log of this store; None if there is none.
    pub fn open(path: &Path, sequence: u64, kept: Kept, writable: bool) -> Result<Option<Self>> {
        let Some(file) = files::open(path, writable)? else { return Ok(None) };
        let mut found = [0; COMPARED];
        match file.read_exact_at(&mut found, 0) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                return Err(StorageError::Io { doing: "reading the log", error });
            }
            _ => {} // what is cut short is not what is expected
        }
        let mut salt = [0; SALT_BYTES];
        salt.copy_from_slice(&found[SALT_AT..][..SALT_BYTES]);
        let expected = head(kept.identity, sequence, kept.key.map(|_| &salt));
        if found != expected[..COMPARED] {
            return Err(StorageError::corrupt("the log is damaged at its beginning"));
        }
        let key = kept.key.map(|key| key.file(Kind::Log, sequence, &salt));
        let frames = Frames { vectors: kept.vectors, key };
        Ok(Some(LogFile { file, frames, turn: AtomicUsize::new(0) }))
    }

    /// How far the log is known to be synced.
    fn mark(&self) -> Result<Mark> {
        let mut found = [None; 2];
        for _ in 0..MARK_TRIES {
            for (place, at) in found.iter_mut().zip(MARKS_AT) {
                *place = self.mark_at(at)?;
            }
            if found.iter().all(Option::is_some) {
                break;
            }
            std::thread::sleep(MARK_PAUSE); // the writer was just at it
        }
        // The next one goes to the place that is damaged or older, so that the newest is there whatever happens.
        self.turn.store(usize::from(found[1] < found[0]), Ordering::Relaxed);
        let end = found.into_iter().flatten().max();
        let end = end.ok_or_else(|| StorageError::corrupt("the mark of the log is damaged"))?;
        Ok(Mark { end, half: found.contains(&None) })
    }

    /// The mark in one of its places; None where it is damaged.
    fn mark_at(&self, at: u64) -> Result<Option<u64>> {
        let mut mark = [0; MARK_BYTES];
        match self.file.read_exact_at(&mut mark, at) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                return Err(StorageError::Io { doing: "reading the log", error });
            }
            _ => {}
        }
        let mut rest = mark.as_slice();
        let (Some(end), Some(crc)) = (take(&mut rest), take(&mut rest)) else { return Ok(None) };
        let whole = aios_crc32c::crc32c(&end, 0) == u32::from_le_bytes(crc);
        Ok(whole.then(|| u64::from_le_bytes(end)))
    }

    /// Note that everything before `end` was synced.
    pub fn set_mark(&self, end: u64) -> Result<()> {
        let place = self.turn.fetch_xor(1, Ordering::Relaxed);
        self.file.write_all_at(&mark(end), MARKS_AT[place]).map_err(StorageError::io("marking the log"))
    }

    /// Read all frames: up to the mark, or (`all`, or the mark is in doubt) up to the last whole one.
    pub fn scan(&self, all: bool) -> Result<Scanned> {
        let Mark { end: mark, half } = self.mark()?;
        let size = self.file.metadata().map_err(StorageError::io("looking at the log"))?.len();
        let stop = if all || half { size } else { mark.min(size) };
        if stop > 2 * LOG_BYTES_LIMIT {
            return Err(limit(format!("the log has {stop} bytes; no log grows so large")));
        }
        if size < START {
            return Err(StorageError::corrupt("the log is damaged at its beginning"));
        }
        let mut bytes = vec![0; stop.saturating_sub(START) as usize];
        self.file.read_exact_at(&mut bytes, START).map_err(StorageError::io("reading the log"))?;
        let scanned = self.frames.scan(&bytes, START)?;
        if scanned.end < mark {
            let at = scanned.end;
            return Err(StorageError::corrupt(format!(
                "the log is damaged at byte {at}, in what was acknowledged"
            )));
        }
        Ok(scanned)
    }

    /// Cut everything behind `end`.
    pub fn cut(&self, end: u64) -> Result<()> {
        self.file.set_len(end).map_err(StorageError::io("cutting the log"))
    }

    /// Write frames at `end`; durable after `sync`.
    pub fn write(&self, frames: &[u8], end: u64) -> Result<()> {
        self.file.write_all_at(frames, end).map_err(StorageError::io("writing the log"))
    }

    /// Everything written is on the disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(StorageError::io("syncing the log"))
    }

    /// Overwrite the vector of a row with zeros; durable after `sync`.
    pub fn erase_vector(&self, row: &LogRow) -> Result<()> {
        let (at, bytes) = self.frames.vector_span(row);
        self.file.write_all_at(&vec![0; bytes], at).map_err(StorageError::io("erasing a vector"))
    }

    /// The encoded row and its vector; None where they do not open.
    pub fn read(&self, row: &LogRow) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        let (at, bytes) = self.frames.span(row);
        let mut found = vec![0; bytes];
        self.file.read_exact_at(&mut found, at).map_err(StorageError::io("reading the log"))?;
        Ok(self.frames.split(row, &found))
    }
}

fn head(identity: &[u8; 16], sequence: u64, salt: Option<&[u8; SALT_BYTES]>) -> Vec<u8> {
    let magic = if salt.is_some() { MAGIC_SEALED } else { MAGIC };
    let mut head = [magic.as_slice(), identity, &sequence.to_le_bytes()].concat();
    head.extend(salt.into_iter().flatten());
    head.extend(aios_crc32c::crc32c(&head, 0).to_le_bytes());
    head.resize(COMPARED, 0);
    for at in MARKS_AT {
        head.resize(at as usize, 0);
        head.extend(mark(START));
    }
    head.resize(START as usize, 0);
    head
}

/// The mark as it is written.
pub fn mark(end: u64) -> [u8; MARK_BYTES] {
    let mut mark = [0; MARK_BYTES];
    mark[..8].copy_from_slice(&end.to_le_bytes());
    mark[8..].copy_from_slice(&aios_crc32c::crc32c(&end.to_le_bytes(), 0).to_le_bytes());
    mark
}
