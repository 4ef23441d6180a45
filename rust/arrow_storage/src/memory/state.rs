//! What is known of the files: open segments, the rows of the log, and which ids are gone.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use super::columns::Rows;
use super::frame::LogRow;
use super::log::LogFile;
use super::manifest::{Manifest, forgotten_path};
use super::record::{self, Clear, Record, Vectors};
use super::segment::Segment;
use super::{IDS_MAX, files};
use crate::error::{Result, StorageError};

const FORGOTTEN_MAGIC: &[u8; 16] = b"aios-forgotten1\n";

/// Ids that were forgotten, one bit each.
#[derive(Debug, Clone, Default)]
pub struct Gone {
    bits: Vec<u64>,
    count: usize,
}

impl Gone {
    /// Note ids; those beyond `IDS_MAX` were refused before.
    pub fn insert(&mut self, ids: &[u64]) {
        for &id in ids.iter().filter(|&&id| id <= IDS_MAX) {
            let (word, bit) = ((id / 64) as usize, 1 << (id % 64));
            if self.bits.len() <= word {
                self.bits.resize(word + 1, 0);
            }
            self.count += usize::from(self.bits[word] & bit == 0);
            self.bits[word] |= bit;
        }
    }

    /// Whether the memory was forgotten.
    #[must_use]
    pub fn contains(&self, id: u64) -> bool {
        self.bits.get((id / 64) as usize).is_some_and(|word| word >> (id % 64) & 1 == 1)
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// All of them, in order.
    pub fn ids(&self) -> impl Iterator<Item = u64> + '_ {
        let bits = self.bits.iter().enumerate();
        bits.flat_map(|(word, bits)| {
            (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| word as u64 * 64 + bit)
        })
    }

    /// Put the list in its place.
    pub fn write(&self, folder: &Path, number: u64) -> Result<()> {
        let mut bytes = FORGOTTEN_MAGIC.to_vec();
        self.bits.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        bytes.extend(aios_crc32c::crc32c(&bytes, 0).to_le_bytes());
        files::replace(&forgotten_path(folder, number), |out| {
            out.write_all(&bytes).map_err(StorageError::io("writing the list of forgotten ids"))
        })
    }

    /// Read the list; None if there is no such file.
    pub fn read(folder: &Path, number: u64) -> Result<Option<Self>> {
        let Some(file) = files::open(&forgotten_path(folder, number), false)? else { return Ok(None) };
        let most = IDS_MAX / 8 + 64;
        let bytes = files::read(&file, most, "the list of forgotten ids")?;
        let wrong = || StorageError::corrupt("the list of forgotten ids is damaged");
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or_else(wrong)?;
        let words = body.strip_prefix(FORGOTTEN_MAGIC).map(<[u8]>::as_chunks::<8>);
        let Some((words, [])) = words else { return Err(wrong()) };
        if *crc != aios_crc32c::crc32c(body, 0).to_le_bytes() {
            return Err(wrong());
        }
        let bits: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let count = bits.iter().map(|word| word.count_ones() as usize).sum();
        Ok(Some(Gone { bits, count }))
    }
}

/// Where a memory is.
#[derive(Debug, Clone, Copy)]
pub enum Place {
    /// Segment and row.
    Segment(usize, usize),
    /// Row of the log.
    Log(usize),
}

/// A snapshot of the store that the writer goes on changing.
pub struct State {
    /// As it was read or written last.
    pub manifest: Manifest,
    /// In the order of the manifest.
    pub segments: Vec<Arc<Segment>>,
    /// The log.
    pub log: Arc<LogFile>,
    /// Behind what is known of the log.
    pub log_end: u64,
    /// What the log holds, as it was written.
    pub rows: Vec<LogRow>,
    /// Where an id is in `rows`.
    pub by_id: HashMap<u64, usize>,
    /// What was forgotten.
    pub gone: Gone,
}

impl State {
    /// How vectors are kept.
    #[must_use]
    pub fn vectors(&self) -> Vectors {
        self.manifest.vectors
    }

    /// Take in rows and ids that the log gained.
    pub fn extend(&mut self, rows: Vec<LogRow>, forgotten: &[u64], end: u64) {
        for row in rows {
            self.by_id.insert(row.id, self.rows.len());
            self.rows.push(row);
        }
        self.gone.insert(forgotten);
        self.log_end = end;
    }

    /// Where an id is, forgotten or not.
    #[must_use]
    pub fn find(&self, id: u64) -> Option<Place> {
        if let Some(&row) = self.by_id.get(&id) {
            return Some(Place::Log(row));
        }
        // Segments may overlap: ids are given before they are written.
        self.segments
            .iter()
            .enumerate()
            .find_map(|(index, segment)| segment.find(id).map(|row| Place::Segment(index, row)))
    }

    /// A whole memory and its vector as it is kept, checked.
    pub fn read(&self, place: Place) -> Result<(Record, Vec<u8>)> {
        match place {
            Place::Segment(segment, row) => self.segments[segment].read(row),
            Place::Log(row) => read_log_row(&self.log, &self.rows[row]),
        }
    }

    /// Memories that are not forgotten.
    #[must_use]
    pub fn live(&self) -> usize {
        self.places().filter(|(id, _)| !self.gone.contains(*id)).count()
    }

    /// Every row with its id: segments first, then the log.
    pub fn places(&self) -> impl Iterator<Item = (u64, Place)> + '_ {
        let segments = self.segments.iter().enumerate();
        let old = segments.flat_map(|(index, one)| {
            (0..one.count()).map(move |row| (one.id(row), Place::Segment(index, row)))
        });
        old.chain(self.rows.iter().enumerate().map(|(row, one)| (one.id, Place::Log(row))))
    }
}

/// A row of the log with its vector, checked.
pub fn read_log_row(log: &LogFile, row: &LogRow) -> Result<(Record, Vec<u8>)> {
    let read = |encoded: &mut Vec<u8>, vector: &[u8]| {
        let sound = record::checksum(encoded, vector) == row.checksum;
        let (mut record, sealed) = record::decode(encoded)
            .filter(|(record, sealed)| sound && record.id == row.id && *sealed == row.sealed_bytes)?;
        record.sealed = encoded.split_off(encoded.len() - sealed);
        Some(record)
    };
    let found = log.read(row)?.and_then(|(mut encoded, vector)| Some((read(&mut encoded, &vector)?, vector)));
    found.ok_or_else(|| StorageError::corrupt(format!("memory {} is damaged in the log", row.id)))
}

/// Chosen places of a state, as the rows of a new segment.
pub struct Chosen<'a> {
    /// Where they come from.
    pub state: &'a State,
    /// In the order of their ids.
    pub places: &'a [Place],
}

impl Rows for Chosen<'_> {
    fn count(&self) -> usize {
        self.places.len()
    }

    fn clear(&self, row: usize) -> Result<(u64, i64, Clear, u32)> {
        match self.places[row] {
            Place::Segment(segment, row) => self.state.segments[segment].clear(row),
            Place::Log(row) => {
                let row = &self.state.rows[row];
                Ok((row.id, row.time, row.clear.clone(), row.checksum))
            }
        }
    }

    fn sealed_bytes(&self, row: usize) -> Result<u64> {
        match self.places[row] {
            Place::Segment(segment, row) => {
                self.state.segments[segment].sealed_range(row).map(|(from, to)| to - from)
            }
            Place::Log(row) => Ok(self.state.rows[row].sealed_bytes as u64),
        }
    }

    fn content(&self, row: usize) -> Result<(Vec<u8>, Vec<u8>)> {
        let (record, vector) = self.state.read(self.places[row])?;
        Ok((record.sealed, vector))
    }
}
