//! The write-ahead log: frames, each with its length and CRC32C, acknowledged when they are synced.
//!
//! The header holds a mark: how far the log was known to be synced. Behind the mark a torn tail is cut, because nobody
//! was told that it was kept; damage before it is reported and never guessed away. The mark is written after each sync
//! and reaches the disk with the next one, so that it never says too much.
//!
//! A frame that remembers is followed by the vector, which is not part of the frame's checksum but of the row's: a
//! forgotten vector is overwritten with zeros in place, and the frame stays whole.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use super::record::{self, Clear, Vectors, take};
use super::{GROUP_MAX, IDS_MAX, LOG_BYTES_LIMIT, files};
use crate::error::{Result, StorageError};

const MAGIC: &[u8; 16] = b"aios-memlog-1\n\0\0";
const MARK_AT: u64 = 64;
/// A reader may meet the mark half written.
const MARK_TRIES: usize = 20;
const MARK_PAUSE: Duration = Duration::from_micros(100);
/// Where frames begin.
pub const START: u64 = 128;
const REMEMBER: u8 = 1;
const FORGET: u8 = 2;
/// Kind and the row's checksum stand before the row.
const ROW_AT: usize = 5;
const FRAME_HEAD: usize = 8;

/// A row of the log: all of it but vector and sealed text, which stay in the file.
#[derive(Debug, Clone)]
pub struct LogRow {
    /// Its id.
    pub id: u64,
    /// Microseconds since 1970, UTC.
    pub time: i64,
    /// The clear columns.
    pub clear: Clear,
    /// The row's checksum.
    pub checksum: u32,
    /// Where its encoded row begins.
    pub row_at: u64,
    /// How long that is.
    pub row_bytes: usize,
    /// How much of its end is the sealed text.
    pub sealed_bytes: usize,
}

impl LogRow {
    /// Where its vector begins.
    #[must_use]
    pub fn vector_at(&self) -> u64 {
        self.row_at + self.row_bytes as u64
    }
}

/// What a log holds from some offset on.
#[derive(Debug, Default)]
pub struct Scanned {
    /// Rows, those that were forgotten later too.
    pub rows: Vec<LogRow>,
    /// Ids forgotten.
    pub forgotten: Vec<u64>,
    /// Behind the last whole frame.
    pub end: u64,
}

/// The open file.
pub struct LogFile {
    file: File,
    /// Its number in the manifest.
    pub sequence: u64,
}

impl LogFile {
    /// An empty log in its place.
    pub fn create(path: &Path, identity: &[u8; 16], sequence: u64) -> Result<()> {
        let head = head(identity, sequence);
        files::replace(path, |out| out.write_all(&head).map_err(StorageError::io("writing the log")))
    }

    /// Open the log of this store; None if there is none.
    pub fn open(path: &Path, identity: &[u8; 16], sequence: u64, writable: bool) -> Result<Option<Self>> {
        let Some(file) = files::open(path, writable)? else { return Ok(None) };
        let expected = head(identity, sequence);
        let mut found = [0; MARK_AT as usize];
        match file.read_exact_at(&mut found, 0) {
            Ok(()) if found == expected[..MARK_AT as usize] => Ok(Some(LogFile { file, sequence })),
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                Err(StorageError::Io { doing: "reading the log", error })
            }
            _ => Err(StorageError::corrupt("the log is damaged at its beginning")),
        }
    }

    /// How far the log is known to be synced.
    pub fn mark(&self) -> Result<u64> {
        for _ in 0..MARK_TRIES {
            let mut mark = [0; 12];
            match self.file.read_exact_at(&mut mark, MARK_AT) {
                Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                    return Err(StorageError::Io { doing: "reading the log", error });
                }
                _ => {}
            }
            let mut rest = mark.as_slice();
            if let (Some(offset), Some(crc)) = (take(&mut rest), take(&mut rest))
                && aios_crc32c::crc32c(&offset, 0) == u32::from_le_bytes(crc)
            {
                return Ok(u64::from_le_bytes(offset));
            }
            std::thread::sleep(MARK_PAUSE); // the writer was just at it
        }
        Err(StorageError::corrupt("the mark of the log is damaged"))
    }

    /// Note that everything before `end` was synced.
    pub fn set_mark(&self, end: u64) -> Result<()> {
        self.file.write_all_at(&mark(end), MARK_AT).map_err(StorageError::io("marking the log"))
    }

    /// Read the frames from `start` on: up to the mark, or (`all`) up to the last whole one.
    pub fn scan(&self, start: u64, vectors: Vectors, all: bool) -> Result<Scanned> {
        let mark = self.mark()?;
        let size = self.file.metadata().map_err(StorageError::io("looking at the log"))?.len();
        let stop = if all { size } else { mark.min(size) };
        if stop > 2 * LOG_BYTES_LIMIT {
            return Err(record::limit(format!("the log has {stop} bytes; no log grows so large")));
        }
        if size < START {
            return Err(StorageError::corrupt("the log is damaged at its beginning"));
        }
        let mut bytes = vec![0; stop.saturating_sub(start) as usize];
        self.file.read_exact_at(&mut bytes, start).map_err(StorageError::io("reading the log"))?;
        let scanned = scan(&bytes, start, vectors)?;
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
    pub fn erase_vector(&self, row: &LogRow, vectors: Vectors) -> Result<()> {
        let zeros = vec![0; vectors.bytes()];
        self.file.write_all_at(&zeros, row.vector_at()).map_err(StorageError::io("erasing a vector"))
    }

    /// The encoded row and its vector.
    pub fn read(&self, row: &LogRow, vectors: Vectors) -> Result<(Vec<u8>, Vec<u8>)> {
        let mut bytes = vec![0; row.row_bytes + vectors.bytes()];
        self.file.read_exact_at(&mut bytes, row.row_at).map_err(StorageError::io("reading the log"))?;
        let vector = bytes.split_off(row.row_bytes);
        Ok((bytes, vector))
    }
}

fn head(identity: &[u8; 16], sequence: u64) -> Vec<u8> {
    let mut head = [MAGIC.as_slice(), identity, &sequence.to_le_bytes()].concat();
    head.extend(aios_crc32c::crc32c(&head, 0).to_le_bytes());
    head.resize(MARK_AT as usize, 0);
    head.extend(mark(START));
    head.resize(START as usize, 0);
    head
}

/// The mark as it is written.
pub fn mark(end: u64) -> [u8; 12] {
    let mut mark = [0; 12];
    mark[..8].copy_from_slice(&end.to_le_bytes());
    mark[8..].copy_from_slice(&aios_crc32c::crc32c(&end.to_le_bytes(), 0).to_le_bytes());
    mark
}

/// Append the frame of a row and its vector; returns the row as it will be read at `at + (place in out)`.
pub fn push_row(
    id: u64,
    time: i64,
    clear: Clear,
    sealed: &[u8],
    vector: &[u8],
    out: &mut Vec<u8>,
    at: u64,
) -> LogRow {
    let begin = out.len();
    out.extend([0; FRAME_HEAD]);
    out.push(REMEMBER);
    out.extend([0; 4]);
    let row = out.len();
    record::encode(id, time, &clear, sealed, out);
    let checksum = record::checksum(&out[row..], vector);
    out[row - 4..row].copy_from_slice(&checksum.to_le_bytes());
    let row_bytes = out.len() - row;
    finish(out, begin);
    out.extend_from_slice(vector);
    LogRow { id, time, clear, checksum, row_at: at + row as u64, row_bytes, sealed_bytes: sealed.len() }
}

/// Append a frame that forgets.
pub fn push_forget(ids: &[u64], out: &mut Vec<u8>) {
    let begin = out.len();
    out.extend([0; FRAME_HEAD]);
    out.push(FORGET);
    ids.iter().for_each(|id| out.extend(id.to_le_bytes()));
    finish(out, begin);
}

fn finish(out: &mut [u8], begin: usize) {
    let length = ((out.len() - begin - FRAME_HEAD) as u32).to_le_bytes();
    let crc = frame_checksum(length, &out[begin + FRAME_HEAD..]);
    out[begin..begin + 4].copy_from_slice(&length);
    out[begin + 4..begin + FRAME_HEAD].copy_from_slice(&crc.to_le_bytes());
}

/// The length is in it, so that a run of zeros is no frame.
fn frame_checksum(length: [u8; 4], payload: &[u8]) -> u32 {
    aios_crc32c::crc32c(payload, aios_crc32c::crc32c(&length, 0))
}

/// One frame as it was found.
enum Frame {
    Row { row: LogRow, erased: bool },
    Forget(Vec<u64>),
}

/// The whole frames at the beginning of `bytes`, which stand at `start` in the file.
pub fn scan(bytes: &[u8], start: u64, vectors: Vectors) -> Result<Scanned> {
    let mut frames = Vec::new();
    let mut at = 0;
    while let Some((frame, length)) = next(&bytes[at..], start + at as u64, vectors)? {
        frames.push((start + at as u64, frame));
        at += length;
    }
    let mut end = start + at as u64;
    // A vector of zeros under another's checksum is a forgotten one if the log says so, else the beginning of a tail
    // that was never written; cutting there may take away a frame that forgets, so look again.
    loop {
        let forgotten: std::collections::HashSet<u64> = frames
            .iter()
            .filter_map(|(_, frame)| if let Frame::Forget(ids) = frame { Some(ids) } else { None })
            .flatten()
            .copied()
            .collect();
        let torn = frames.iter().position(
            |(_, frame)| matches!(frame, Frame::Row { row, erased: true } if !forgotten.contains(&row.id)),
        );
        let Some(torn) = torn else { break };
        end = frames[torn].0;
        frames.truncate(torn);
    }
    let mut scanned = Scanned { end, ..Scanned::default() };
    for (_, frame) in frames {
        match frame {
            Frame::Row { row, .. } => scanned.rows.push(row),
            Frame::Forget(ids) => scanned.forgotten.extend(ids),
        }
    }
    Ok(scanned)
}

/// The frame at the beginning and its length; None where there is no whole one.
fn next(bytes: &[u8], at: u64, vectors: Vectors) -> Result<Option<(Frame, usize)>> {
    let mut rest = bytes;
    let (Some(length), Some(crc)) = (take::<4>(&mut rest), take::<4>(&mut rest)) else { return Ok(None) };
    let Some(payload) = rest.get(..u32::from_le_bytes(length) as usize) else { return Ok(None) };
    if payload.is_empty() || frame_checksum(length, payload) != u32::from_le_bytes(crc) {
        return Ok(None);
    }
    // From here on the frame is what somebody wrote; what does not fit is no accident of a torn write.
    let wrong = || StorageError::corrupt(format!("the log holds something else at byte {at}"));
    let end = FRAME_HEAD + payload.len();
    if payload[0] == FORGET {
        let (ids, odd) = payload[1..].as_chunks::<8>();
        let ids: Vec<u64> = ids.iter().map(|id| u64::from_le_bytes(*id)).collect();
        if !odd.is_empty() || ids.len() > GROUP_MAX || ids.iter().any(|&id| id == 0 || id > IDS_MAX) {
            return Err(wrong());
        }
        return Ok(Some((Frame::Forget(ids), end)));
    }
    let Some(vector) = bytes[end..].get(..vectors.bytes()) else { return Ok(None) };
    let (head, encoded) = payload.split_at_checked(ROW_AT).ok_or_else(wrong)?;
    let checksum = u32::from_le_bytes(head[1..].try_into().map_err(|_| wrong())?);
    let (found, sealed_bytes) = record::decode(encoded).filter(|_| head[0] == REMEMBER).ok_or_else(wrong)?;
    if found.id == 0 || found.id > IDS_MAX {
        return Err(wrong());
    }
    let whole = record::checksum(encoded, vector) == checksum;
    let erased = !whole && vector.iter().all(|&byte| byte == 0);
    if !whole && !erased {
        return Ok(None);
    }
    let row = LogRow {
        id: found.id,
        time: found.time,
        clear: found.clear,
        checksum,
        row_at: at + (FRAME_HEAD + ROW_AT) as u64,
        row_bytes: encoded.len(),
        sealed_bytes,
    };
    Ok(Some((Frame::Row { row, erased }, end + vector.len())))
}
