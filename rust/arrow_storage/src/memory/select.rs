//! Which memories a filter lets through: a scan over the clear columns.

use super::record::Clear;
use super::segment::Segment;
use super::state::State;
use crate::error::{Result, StorageError};

/// Conditions that all have to hold; what is empty or None lets everything through.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// One of these.
    pub namespaces: Vec<String>,
    /// All of these.
    pub tags: Vec<String>,
    /// One of these.
    pub sources: Vec<String>,
    /// One of these.
    pub provenances: Vec<String>,
    /// This time or later.
    pub since: Option<i64>,
    /// Before this time.
    pub until: Option<i64>,
}

impl Filter {
    /// The ids of memories that are not forgotten and pass.
    pub fn ids(&self, state: &State) -> Result<Vec<u64>> {
        let mut ids = Vec::new();
        for segment in &state.segments {
            for row in 0..segment.count() {
                let id = segment.id(row);
                if !state.gone.contains(id) && self.passes_row(segment, row)? {
                    ids.push(id);
                }
            }
            segment.unhurt()?;
        }
        let log =
            state.rows.iter().filter(|row| !state.gone.contains(row.id) && self.passes(row.time, &row.clear));
        ids.extend(log.map(|row| row.id));
        Ok(ids)
    }

    fn in_time(&self, time: i64) -> bool {
        self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time < until)
    }

    fn passes(&self, time: i64, clear: &Clear) -> bool {
        self.in_time(time)
            && one_of(&self.namespaces, &clear.namespace)
            && one_of(&self.sources, &clear.source)
            && one_of(&self.provenances, &clear.provenance)
            && self.tags.iter().all(|tag| clear.tags.contains(tag))
    }

    fn passes_row(&self, segment: &Segment, row: usize) -> Result<bool> {
        if (self.since.is_some() || self.until.is_some()) && !self.in_time(segment.time(row)) {
            return Ok(false);
        }
        for (column, wanted) in [(0, &self.namespaces), (2, &self.sources), (3, &self.provenances)] {
            if !wanted.is_empty() {
                let text = segment.text(column, row).ok_or_else(|| damaged(segment))?;
                if !one_of(wanted, text) {
                    return Ok(false);
                }
            }
        }
        if self.tags.is_empty() {
            return Ok(true);
        }
        let tags = segment.tags(row).ok_or_else(|| damaged(segment))?;
        let has = |wanted: &String| tags.clone().any(|tag| segment.text(1, tag) == Some(wanted));
        Ok(self.tags.iter().all(has))
    }
}

fn one_of(wanted: &[String], text: &str) -> bool {
    wanted.is_empty() || wanted.iter().any(|one| one == text)
}

fn damaged(segment: &Segment) -> StorageError {
    StorageError::corrupt(format!("segment {} is damaged in its columns", segment.sequence))
}
