//! Frames of the log: each with its length and CRC32C, in a store that is encrypted as a whole sealed as well.
//!
//! A frame that remembers is followed by the vector, which is not part of the frame's checksum but of the row's: a
//! forgotten vector is overwritten with zeros in place, perhaps in part only, and the frame stays whole. Sealed, the payload is a random
//! nonce, the ciphertext and the tag; the vector is sealed by itself, under the same nonce with its first bit set.
//! Both are bound to their place in the log.

use std::borrow::Cow;
use std::collections::HashSet;

use super::record::{self, Clear, Incoming, Vectors, take};
use super::sealing::{FileKey, NONCE_BYTES, TAG_BYTES, random};
use super::{GROUP_MAX, IDS_MAX};
use crate::error::{Result, StorageError};

const REMEMBER: u8 = 1;
const FORGET: u8 = 2;
/// Kind and the row's checksum stand before the row.
const ROW_AT: usize = 5;
const HEAD_BYTES: usize = 8;
/// Set in the first byte of a vector's nonce, clear in a payload's.
const OF_VECTOR: u8 = 0x80;

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
    /// How much of its end is the sealed text.
    pub sealed_bytes: usize,
    /// Where its frame begins in the log.
    frame_at: u64,
    /// How long its encoded row is.
    row_bytes: usize,
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

/// One frame as it was found.
enum Frame {
    /// `lost`: the vector is not the row's.
    Row {
        row: LogRow,
        lost: bool,
    },
    Forget(Vec<u64>),
}

/// How the frames of one log are written and read.
pub struct Frames {
    /// How vectors are kept.
    pub vectors: Vectors,
    /// Of a store that is encrypted as a whole.
    pub key: Option<FileKey>,
}

impl Frames {
    /// Append the frame of a memory and its vector; `out` will stand at `at` in the log.
    pub fn remember(&self, one: &Incoming, out: &mut Vec<u8>, at: u64) -> Result<LogRow> {
        let begin = self.begin(out)?;
        out.push(REMEMBER);
        out.extend([0; ROW_AT - 1]);
        let row = out.len();
        record::encode(one.id, one.time, &one.clear, &one.sealed, out);
        let row_bytes = out.len() - row;
        let mut vector = self.vectors.pack(&one.vector);
        let checksum = record::checksum(&out[row..], &vector);
        out[row - 4..row].copy_from_slice(&checksum.to_le_bytes());
        let frame_at = at + begin as u64;
        self.finish(out, begin, frame_at);
        if let Some(key) = &self.key {
            let tag = key.seal(nonce_of_vector(&out[begin..]), &frame_at.to_le_bytes(), &mut vector);
            vector.extend(tag);
        }
        out.extend(vector);
        let (clear, sealed_bytes) = (one.clear.clone(), one.sealed.len());
        Ok(LogRow { id: one.id, time: one.time, clear, checksum, sealed_bytes, frame_at, row_bytes })
    }

    /// Append a frame that forgets.
    pub fn forget(&self, ids: &[u64], out: &mut Vec<u8>, at: u64) -> Result<()> {
        let begin = self.begin(out)?;
        out.push(FORGET);
        ids.iter().for_each(|id| out.extend(id.to_le_bytes()));
        self.finish(out, begin, at + begin as u64);
        Ok(())
    }

    /// Room for the head, and the nonce.
    fn begin(&self, out: &mut Vec<u8>) -> Result<usize> {
        let begin = out.len();
        out.extend([0; HEAD_BYTES]);
        if self.key.is_some() {
            let mut nonce = random::<NONCE_BYTES>()?;
            nonce[0] &= !OF_VECTOR;
            out.extend(nonce);
        }
        Ok(begin)
    }

    fn finish(&self, out: &mut Vec<u8>, begin: usize, frame_at: u64) {
        if let Some(key) = &self.key {
            let plain = begin + HEAD_BYTES + NONCE_BYTES;
            let tag = key.seal(nonce_of_payload(&out[begin..]), &frame_at.to_le_bytes(), &mut out[plain..]);
            out.extend(tag);
        }
        let length = ((out.len() - begin - HEAD_BYTES) as u32).to_le_bytes();
        let crc = frame_checksum(length, &out[begin + HEAD_BYTES..]);
        out[begin..begin + 4].copy_from_slice(&length);
        out[begin + 4..begin + HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
    }

    /// Where the vector of a row is in the log, and how many bytes it takes there.
    #[must_use]
    pub fn vector_span(&self, row: &LogRow) -> (u64, usize) {
        let payload = self.lead() + ROW_AT + row.row_bytes + self.tail();
        (row.frame_at + (HEAD_BYTES + payload) as u64, self.vectors.bytes() + self.tail())
    }

    /// Where the frame of a row and its vector are in the log.
    #[must_use]
    pub fn span(&self, row: &LogRow) -> (u64, usize) {
        let (at, bytes) = self.vector_span(row);
        (row.frame_at, (at - row.frame_at) as usize + bytes)
    }

    /// The encoded row and its vector, of the bytes at `span`; None where they do not open.
    pub fn split(&self, row: &LogRow, bytes: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
        let (frame, vector) = bytes.split_at_checked(bytes.len() - self.vectors.bytes() - self.tail())?;
        let payload = self.payload(frame, row.frame_at)?;
        Some((payload.get(ROW_AT..)?.to_vec(), self.vector(frame, vector, row.frame_at)?.into_owned()))
    }

    fn lead(&self) -> usize {
        if self.key.is_some() { NONCE_BYTES } else { 0 }
    }

    fn tail(&self) -> usize {
        if self.key.is_some() { TAG_BYTES } else { 0 }
    }

    /// The payload of a frame, opened.
    fn payload<'a>(&self, frame: &'a [u8], frame_at: u64) -> Option<Cow<'a, [u8]>> {
        let payload = frame.get(HEAD_BYTES..)?;
        let Some(key) = &self.key else { return Some(Cow::Borrowed(payload)) };
        let (sealed, tag) = payload.get(NONCE_BYTES..)?.split_last_chunk::<TAG_BYTES>()?;
        let mut plain = sealed.to_vec();
        let opened = key.open(nonce_of_payload(frame), &frame_at.to_le_bytes(), &mut plain, *tag);
        opened.then_some(Cow::Owned(plain))
    }

    /// The vector behind a frame, opened; zeros where it was erased.
    fn vector<'a>(&self, frame: &[u8], bytes: &'a [u8], frame_at: u64) -> Option<Cow<'a, [u8]>> {
        let Some(key) = &self.key else { return Some(Cow::Borrowed(bytes)) };
        let (sealed, tag) = bytes.split_last_chunk::<TAG_BYTES>()?;
        if bytes.iter().all(|&byte| byte == 0) {
            return Some(Cow::Borrowed(sealed));
        }
        let mut plain = sealed.to_vec();
        let opened = key.open(nonce_of_vector(frame), &frame_at.to_le_bytes(), &mut plain, *tag);
        opened.then_some(Cow::Owned(plain))
    }

    /// The whole frames at the beginning of `bytes`, which stand at `start` in the log.
    pub fn scan(&self, bytes: &[u8], start: u64) -> Result<Scanned> {
        let mut frames = Vec::new();
        let mut at = 0;
        while let Some((frame, length)) = self.next(&bytes[at..], start + at as u64)? {
            frames.push((start + at as u64, frame));
            at += length;
        }
        let mut end = start + at as u64;
        // A vector that is not the row's is a forgotten one, erased in whole or in part, if the log says so, else the
        // beginning of a tail that was never written; cutting there may take away a frame that forgets: look again.
        while let Some(torn) = first_torn(&frames) {
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
    fn next(&self, bytes: &[u8], at: u64) -> Result<Option<(Frame, usize)>> {
        let mut rest = bytes;
        let (Some(length), Some(crc)) = (take::<4>(&mut rest), take::<4>(&mut rest)) else { return Ok(None) };
        let Some(found) = rest.get(..u32::from_le_bytes(length) as usize) else { return Ok(None) };
        if found.is_empty() || frame_checksum(length, found) != u32::from_le_bytes(crc) {
            return Ok(None);
        }
        // From here on the frame is what somebody wrote; what does not fit is no accident of a torn write.
        let wrong = || StorageError::corrupt(format!("the log holds something else at byte {at}"));
        let (frame, behind) = bytes.split_at(HEAD_BYTES + found.len());
        let payload = self.payload(frame, at).ok_or_else(wrong)?;
        match payload.first() {
            Some(&FORGET) => {
                let ids = forgotten_ids(&payload[1..]).ok_or_else(wrong)?;
                Ok(Some((Frame::Forget(ids), frame.len())))
            }
            Some(&REMEMBER) => {
                let Some(bytes) = behind.get(..self.vectors.bytes() + self.tail()) else { return Ok(None) };
                let row = row_of(&payload, at).ok_or_else(wrong)?;
                let vector = self.vector(frame, bytes, at);
                let sound = |vector: &[u8]| record::checksum(&payload[ROW_AT..], vector) == row.checksum;
                let lost = !vector.is_some_and(|vector| sound(&vector));
                Ok(Some((Frame::Row { row, lost }, frame.len() + bytes.len())))
            }
            _ => Err(wrong()),
        }
    }
}

/// The first row whose vector is lost although nothing forgot it.
fn first_torn(frames: &[(u64, Frame)]) -> Option<usize> {
    let forgotten: HashSet<u64> = frames
        .iter()
        .filter_map(|(_, frame)| if let Frame::Forget(ids) = frame { Some(ids) } else { None })
        .flatten()
        .copied()
        .collect();
    frames.iter().position(
        |(_, frame)| matches!(frame, Frame::Row { row, lost: true } if !forgotten.contains(&row.id)),
    )
}

fn forgotten_ids(payload: &[u8]) -> Option<Vec<u64>> {
    let (ids, odd) = payload.as_chunks::<8>();
    let ids: Vec<u64> = ids.iter().map(|id| u64::from_le_bytes(*id)).collect();
    let sound = odd.is_empty() && ids.len() <= GROUP_MAX && ids.iter().all(|&id| 0 < id && id <= IDS_MAX);
    sound.then_some(ids)
}

/// The row of a payload that remembers.
fn row_of(payload: &[u8], frame_at: u64) -> Option<LogRow> {
    let (head, encoded) = payload.split_at_checked(ROW_AT)?;
    let checksum = u32::from_le_bytes(head[1..].try_into().ok()?);
    let (found, sealed_bytes) = record::decode(encoded)?;
    let (id, time, clear, row_bytes) = (found.id, found.time, found.clear, encoded.len());
    let sound = 0 < id && id <= IDS_MAX;
    sound.then_some(LogRow { id, time, clear, checksum, sealed_bytes, frame_at, row_bytes })
}

/// The length is in it, so that a run of zeros is no frame.
fn frame_checksum(length: [u8; 4], payload: &[u8]) -> u32 {
    aios_crc32c::crc32c(payload, aios_crc32c::crc32c(&length, 0))
}

fn nonce_of_payload(frame: &[u8]) -> [u8; NONCE_BYTES] {
    let mut nonce = [0; NONCE_BYTES];
    nonce.copy_from_slice(&frame[HEAD_BYTES..][..NONCE_BYTES]);
    nonce
}

fn nonce_of_vector(frame: &[u8]) -> [u8; NONCE_BYTES] {
    let mut nonce = nonce_of_payload(frame);
    nonce[0] |= OF_VECTOR;
    nonce
}
