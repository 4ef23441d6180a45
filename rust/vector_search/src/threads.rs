//! Work on a stated number of threads, which stay between searches: waking them costs less than one scan.

use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::fault::{Fault, Result};

/// Beyond this, threads only wait for memory.
pub const THREADS_MAX: usize = 64;

/// A pool, and the process that made it: its threads do not survive a fork.
struct Made {
    process: u32,
    threads: usize,
    pool: Arc<ThreadPool>,
}

static MADE: Mutex<Vec<Made>> = Mutex::new(Vec::new());

/// The threads that one call works on.
#[derive(Clone)]
pub(crate) struct Threads(Option<Arc<ThreadPool>>);

impl Threads {
    /// `count` of them, at most `THREADS_MAX` and one a processor; one is the caller's own.
    pub(crate) fn of(count: usize) -> Result<Threads> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let (threads, process) = (count.min(THREADS_MAX).min(processors), std::process::id());
        if threads <= 1 {
            return Ok(Threads(None));
        }
        let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = made.iter().find(|one| one.process == process && one.threads == threads) {
            return Ok(Threads(Some(Arc::clone(&found.pool))));
        }
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("vector-search-{index}"))
            .build()
            .map_err(|error| Fault::limit(format!("threads could not be started: {error}")))?;
        let pool = Arc::new(pool);
        made.push(Made { process, threads, pool: Arc::clone(&pool) });
        Ok(Threads(Some(pool)))
    }

    pub(crate) fn count(&self) -> usize {
        self.0.as_ref().map_or(1, |pool| pool.current_num_threads())
    }

    /// What `work` returns for each of 0..items, in order.
    pub(crate) fn map<T: Send>(&self, items: usize, work: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
        match &self.0 {
            Some(pool) if items > 1 => {
                pool.install(|| (0..items).into_par_iter().with_max_len(1).map(work).collect())
            }
            _ => (0..items).map(work).collect(),
        }
    }
}
