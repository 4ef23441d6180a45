//! From log to segment, and from old segments to new ones without what was forgotten.

use std::fs;
use std::sync::{Arc, PoisonError};

use super::log::{LogFile, START};
use super::manifest::{Manifest, log_path};
use super::segment::{self, Segment};
use super::state::{Chosen, Place, State};
use super::store::Store;
use super::{SEGMENT_ROWS_MAX, SEGMENT_SEALED_MAX, SEGMENTS_MAX, files};
use crate::error::{Result, StorageError};

impl Store {
    /// Turn the log into a segment.
    pub fn flush(&self) -> Result<()> {
        let _writer = self.writer()?;
        self.usable()?;
        self.flush_locked()
    }

    pub(super) fn flush_locked(&self) -> Result<()> {
        let state = self.state();
        if state.log_end == START {
            return Ok(());
        }
        let kept: Vec<usize> = (0..state.segments.len()).collect();
        let places = live(&state, |place| matches!(place, Place::Log(_)));
        drop(state);
        self.rewrite(&kept, &places)
    }

    /// Rewrite every segment that holds forgotten memories or is small, and the log with them; returns whether there
    /// was anything to do. Readers that have the old files open keep what these hold until they refresh.
    pub fn compact(&self) -> Result<bool> {
        let _writer = self.writer()?;
        self.usable()?;
        let state = self.state();
        let whole = |index: &usize| {
            let segment = &state.segments[*index];
            !(0..segment.count()).any(|row| state.gone.contains(segment.id(row)))
        };
        let small = |index: &usize| state.segments[*index].count() < SEGMENT_ROWS_MAX / 2;
        let mut kept: Vec<usize> =
            (0..state.segments.len()).filter(|index| whole(index) && !small(index)).collect();
        let alone = kept.len() + 1 == state.segments.len() && state.log_end == START;
        let left = (0..state.segments.len()).find(|index| !kept.contains(index));
        if alone && left.as_ref().is_some_and(whole) {
            kept = (0..state.segments.len()).collect(); // one small segment has nobody to be joined with
        }
        if kept.len() == state.segments.len() && state.log_end == START {
            return Ok(false);
        }
        let places =
            live(&state, |place| !matches!(place, Place::Segment(index, _) if kept.contains(&index)));
        drop(state);
        self.rewrite(&kept, &places)?;
        Ok(true)
    }

    /// Segments of `kept` stay, the memories at `places` become new ones, everything else goes, and a new log begins.
    fn rewrite(&self, kept: &[usize], places: &[Place]) -> Result<()> {
        let state = self.state();
        let mut manifest = state.manifest.clone();
        manifest.segments = kept.iter().map(|&index| state.segments[index].sequence).collect();
        let mut segments: Vec<Arc<Segment>> =
            kept.iter().map(|&index| state.segments[index].clone()).collect();
        let last = state.rows.iter().map(|row| row.id).max().unwrap_or(0);
        manifest.next_id = manifest.next_id.max(last + 1);
        let kept_as = state.manifest.kept(self.key.as_ref());
        let mut number = || {
            manifest.next_file += 1;
            manifest.next_file - 1
        };
        let made = (|| {
            for part in parts(&state, places)? {
                let number = number();
                let path = state.manifest.segment_path(&self.folder, number);
                segment::write(&path, number, kept_as, &Chosen { state: &state, places: part })?;
                let opened = Segment::open(&path, number, kept_as, true)?;
                segments
                    .push(Arc::new(opened.ok_or_else(|| StorageError::corrupt("a new segment is missing"))?));
            }
            let (log, forgotten) = (number(), if state.gone.count() > 0 { number() } else { 0 });
            LogFile::create(&log_path(&self.folder, log), log, kept_as)?;
            if forgotten > 0 {
                state.gone.write(&self.folder, forgotten)?;
            }
            Ok((log, forgotten))
        })();
        let old = state.manifest.clone();
        drop(state);
        let made = made.and_then(|(log, forgotten)| {
            manifest.segments = segments.iter().map(|segment| segment.sequence).collect();
            (manifest.log, manifest.forgotten) = (log, forgotten);
            if segments.len() > SEGMENTS_MAX {
                return Err(super::record::limit(format!("a store has {SEGMENTS_MAX} segments at most")));
            }
            files::sync_folder(&self.folder)?;
            LogFile::open(&log_path(&self.folder, log), log, manifest.kept(self.key.as_ref()), true)
        });
        match made {
            Ok(Some(log)) => self.adopt(manifest, segments, log, &old),
            failed => {
                let _ = old.sweep(&self.folder); // the next opening does it too
                Err(failed.err().unwrap_or_else(|| StorageError::corrupt("a new log is missing")))
            }
        }
    }

    /// The new files are there: name them, and remove the old ones.
    fn adopt(
        &self,
        manifest: Manifest,
        segments: Vec<Arc<Segment>>,
        log: LogFile,
        old: &Manifest,
    ) -> Result<()> {
        let staged = manifest.stage(&self.folder).inspect_err(|_| {
            let _ = old.sweep(&self.folder); // the next opening does it too
        })?;
        // Once the rename may have happened, only a new opening knows which manifest counts.
        Manifest::put(&staged, &self.folder).map_err(|error| self.stop(error))?;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let (rows, by_id, log) = (Vec::new(), std::collections::HashMap::new(), Arc::new(log));
        let gone = std::mem::take(&mut state.gone);
        let live = manifest.files(&self.folder);
        *state = State { manifest, segments, log, log_end: START, rows, by_id, gone };
        drop(state);
        for path in old.files(&self.folder).iter().filter(|path| !live.contains(path)) {
            fs::remove_file(path).map_err(StorageError::io("removing an old file of the store"))?;
        }
        files::sync_folder(&self.folder)
    }
}

/// Live memories at chosen places, in the order of their ids.
fn live(state: &State, chosen: impl Fn(Place) -> bool) -> Vec<Place> {
    let mut found: Vec<(u64, Place)> =
        state.places().filter(|(id, place)| chosen(*place) && !state.gone.contains(*id)).collect();
    found.sort_by_key(|(id, _)| *id);
    found.into_iter().map(|(_, place)| place).collect()
}

/// Cut places into segments.
fn parts<'a>(state: &State, places: &'a [Place]) -> Result<Vec<&'a [Place]>> {
    use super::columns::Rows;
    let chosen = Chosen { state, places };
    let (mut parts, mut begin, mut bytes) = (Vec::new(), 0, 0);
    for row in 0..places.len() {
        let more = chosen.sealed_bytes(row)?;
        if row - begin == SEGMENT_ROWS_MAX || (bytes + more > SEGMENT_SEALED_MAX && row > begin) {
            parts.push(&places[begin..row]);
            (begin, bytes) = (row, 0);
        }
        bytes += more;
    }
    if begin < places.len() {
        parts.push(&places[begin..]);
    }
    Ok(parts)
}
