//! Writing: groups that share one sync, and forgetting.
//!
//! Whoever finds the writer free takes along all that waits: keys are written and synced, then the log, then everybody
//! in the group is told. A frame in the log thus always has its key. After a failed sync nobody knows what the disk
//! holds, so nothing more is written until the store is opened again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::frame::LogRow;
use super::record::{Incoming, limit};
use super::store::{Store, erase};
use super::{
    GROUP_BYTES_MAX, GROUP_MAX, IDS_MAX, Key, LOG_BYTES_LIMIT, LOG_BYTES_MAX, LOG_ROWS_MAX, SEALED_BYTES_MAX,
};
use crate::error::{Result, StorageError};

/// What only the writing thread touches.
#[derive(Default)]
pub struct Writer {
    /// Turning the log into a segment failed at this size; it is tried again when it is twice as large.
    pub postponed: AtomicU64,
}

/// Some memories that wait for the next group, and where their answer goes.
pub struct Pending {
    incoming: Vec<Incoming>,
    answer: Arc<OnceLock<Result<()>>>,
}

impl Store {
    /// Give ids to memories to come; those that are not used are lost.
    pub fn reserve(&self, count: usize) -> Result<std::ops::Range<u64>> {
        self.writable()?;
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        let end = reserved.next.saturating_add(count as u64);
        if count > GROUP_MAX || reserved.open.len() + count > 4 * GROUP_MAX {
            return Err(limit(format!("{GROUP_MAX} memories at most are written at once")));
        }
        if end > IDS_MAX + 1 {
            return Err(limit(format!("a store gives {IDS_MAX} ids in its life")));
        }
        let ids = reserved.next..end;
        reserved.next = end;
        reserved.open.extend(ids.clone());
        Ok(ids)
    }

    /// Keep memories: all of them, durably, or none.
    pub fn append(&self, incoming: Vec<Incoming>) -> Result<()> {
        self.writable()?;
        self.check(&incoming)?;
        if incoming.is_empty() {
            return Ok(());
        }
        let answer = Arc::new(OnceLock::new());
        lock(&self.queue).push(Pending { incoming, answer: answer.clone() });
        let writer = self.writer()?;
        if answer.get().is_none() {
            let group = std::mem::take(&mut *lock(&self.queue));
            let done = self.commit(&group);
            for pending in group {
                let _ = pending.answer.set(done.as_ref().copied().map_err(StorageError::again));
            }
            self.flush_if_large(&writer);
        }
        drop(writer);
        answer.get().map_or(Ok(()), |done| done.as_ref().copied().map_err(StorageError::again))
    }

    /// Everything that can be refused is refused before anything is written; the ids are used up.
    fn check(&self, incoming: &[Incoming]) -> Result<()> {
        let (dim, _) = self.vectors();
        let mut bytes = 0;
        for one in incoming {
            one.clear.check()?;
            if one.vector.len() != dim || !one.vector.iter().all(|value| value.is_finite()) {
                return Err(StorageError::input(format!("a vector is {dim} finite numbers")));
            }
            if one.sealed.len() > SEALED_BYTES_MAX {
                return Err(limit(format!("text and metadata have {SEALED_BYTES_MAX} bytes at most")));
            }
            bytes += one.sealed.len() + dim * 4 + 256;
        }
        if incoming.len() > GROUP_MAX || bytes > GROUP_BYTES_MAX {
            return Err(limit(format!(
                "{GROUP_MAX} memories of {GROUP_BYTES_MAX} bytes in all are written at once"
            )));
        }
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        if !incoming.iter().all(|one| reserved.open.remove(&one.id)) {
            return Err(StorageError::input("an id was not reserved, or is used twice"));
        }
        Ok(())
    }

    fn commit(&self, group: &[Pending]) -> Result<()> {
        self.usable()?;
        let state = self.state();
        let (log, end) = (state.log.clone(), state.log_end);
        drop(state);
        if end > LOG_BYTES_LIMIT {
            return Err(limit("the log cannot be turned into a segment and has become too large".to_owned()));
        }
        let (mut frames, mut rows, mut keys): (_, Vec<LogRow>, Vec<(u64, Key)>) =
            (Vec::new(), Vec::new(), Vec::new());
        for one in group.iter().flat_map(|pending| &pending.incoming) {
            rows.push(log.frames.remember(one, &mut frames, end)?);
            keys.push((one.id, one.key));
        }
        keys.sort_unstable_by_key(|key| key.0);
        self.keys.write(&keys)?; // of no use to anybody until the log names them
        self.keys.sync().map_err(|error| self.stop(error))?;
        self.write_log(&frames, end)?;
        let end = end + frames.len() as u64;
        log.set_mark(end).map_err(|error| self.stop(error))?;
        self.state.write().unwrap_or_else(PoisonError::into_inner).extend(rows, &[], end);
        Ok(())
    }

    /// Write and sync; what could not be written is cut again.
    fn write_log(&self, frames: &[u8], end: u64) -> Result<()> {
        let log = self.state().log.clone();
        if let Err(error) = log.write(frames, end) {
            log.cut(end).map_err(|error| self.stop(error))?;
            return Err(error);
        }
        log.sync().map_err(|error| self.stop(error))
    }

    /// Forget memories; returns the ids that were there. They are gone when this returns, whatever happens then.
    pub fn forget(&self, ids: &[u64]) -> Result<Vec<u64>> {
        let writer = self.writer()?;
        self.usable()?;
        let state = self.state();
        let mut live: Vec<u64> =
            ids.iter().copied().filter(|&id| state.find(id).is_some() && !state.gone.contains(id)).collect();
        live.sort_unstable();
        live.dedup();
        let (log, end) = (state.log.clone(), state.log_end);
        drop(state);
        if live.is_empty() {
            return Ok(live);
        }
        let mut frames = Vec::new();
        live.chunks(GROUP_MAX).try_for_each(|ids| log.frames.forget(ids, &mut frames, end))?;
        self.write_log(&frames, end)?;
        let end = end + frames.len() as u64;
        log.set_mark(end).map_err(|error| self.stop(error))?;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.extend(Vec::new(), &live, end);
        drop(state);
        // It is decided; if the bytes cannot be erased now, the next opening does it.
        erase(&self.state(), &self.keys, &live).map_err(|error| self.stop(error))?;
        self.flush_if_large(&writer);
        Ok(live)
    }

    /// Turn the log into a segment when it is large; a failure is no failure of what was acknowledged.
    fn flush_if_large(&self, writer: &MutexGuard<'_, Writer>) {
        let (rows, bytes) = {
            let state = self.state();
            (state.rows.len(), state.log_end)
        };
        let large = rows >= LOG_ROWS_MAX || bytes >= LOG_BYTES_MAX;
        if large && self.stopped.get().is_none() && bytes >= 2 * writer.postponed.load(Ordering::Relaxed) {
            let size = if self.flush_locked().is_ok() { 0 } else { bytes };
            writer.postponed.store(size, Ordering::Relaxed);
        }
    }

    /// The right to write, which may be waited for.
    pub(super) fn writer(&self) -> Result<MutexGuard<'_, Writer>> {
        self.writable().map(lock)
    }

    fn writable(&self) -> Result<&Mutex<Writer>> {
        self.writer.as_ref().ok_or_else(|| StorageError::input("the store is open for reading only"))
    }

    pub(super) fn usable(&self) -> Result<()> {
        self.stopped.get().map_or(Ok(()), |why| Err(StorageError::Stopped { why: why.clone() }))
    }

    /// Nothing more is written; returns the error that says so.
    pub(super) fn stop(&self, error: StorageError) -> StorageError {
        let why = self.stopped.get_or_init(|| error.to_string()).clone();
        StorageError::Stopped { why }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
