//! Work shared by the calling thread and a team that stays: the host's own, or a pool of ours.
//!
//! A host whose matrix products run on OpenMP keeps its threads spinning between them; a second pool would have to
//! take the cores from them. `join` lets our work run on those very threads instead, which costs microseconds.

use std::collections::HashMap;
use std::ffi::{c_uint, c_void};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rayon::ThreadPool;

/// More threads than any machine has; a larger wish gets this many.
pub(crate) const THREADS_MAX: usize = 512;

/// `GOMP_parallel` of GNU's and LLVM's OpenMP: calls the function with the pointer on so many threads, of which the
/// caller is one, and returns when all have returned.
pub type OpenMp = unsafe extern "C" fn(unsafe extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

static TEAM: OnceLock<OpenMp> = OnceLock::new();

/// Runs all further products on the threads of an OpenMP that this process has loaded; the first call decides.
///
/// # Safety
/// `parallel` is the function of that name and stays loaded for as long as the process runs.
pub unsafe fn join(parallel: OpenMp) {
    let _ = TEAM.set(parallel);
}

/// The threads that a piece of work keeps busy: all or one, since a team that changes its size makes threads anew.
pub(crate) fn worth(work: usize, per_thread: usize, threads: usize) -> usize {
    if work > per_thread { threads } else { 1 }
}

/// Calls `work(scratch, i)` for every i below `count`, on `threads` threads of which the caller is one.
///
/// Each thread that finds work makes a scratch of its own. Where the system grants no threads, the caller does it all.
pub(crate) fn each<S>(
    count: usize,
    threads: usize,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) + Sync,
) {
    let next = AtomicUsize::new(0);
    let run = || {
        let mut i = next.fetch_add(1, Ordering::Relaxed);
        if i >= count {
            return;
        }
        let mut scratch = scratch();
        while i < count {
            work(&mut scratch, i);
            i = next.fetch_add(1, Ordering::Relaxed);
        }
    };
    let threads = threads.min(THREADS_MAX);
    if threads < 2 || count < 2 {
        run();
    } else if let Some(&parallel) = TEAM.get() {
        on_team(parallel, threads, &run);
    } else if let Some(pool) = pool(threads - 1) {
        pool.in_place_scope(|scope| {
            for _ in 1..threads.min(count) {
                scope.spawn(|_| run());
            }
            run();
        });
    } else {
        run();
    }
}

/// Calls `run` on every thread of the team at once.
fn on_team<F: Fn() + Sync>(parallel: OpenMp, threads: usize, run: &F) {
    /// # Safety
    /// `run` points to an `F` that may be called from several threads.
    unsafe extern "C" fn enter<F: Fn() + Sync>(run: *mut c_void) {
        // SAFETY: `on_team` hands over its reference, which outlives the region. A panic ends the process here.
        unsafe { (*run.cast::<F>())() }
    }
    let threads = c_uint::try_from(threads).unwrap_or(1);
    // SAFETY: the function was vouched for in `join`; it returns when all threads have left `enter`.
    unsafe { parallel(enter::<F>, ptr::from_ref(run).cast_mut().cast(), threads, 0) };
}

/// Calls `work(i, chunk)` for every chunk of `values`, on `threads` threads of which the caller is one.
pub(crate) fn each_chunk<T: Send>(
    values: &mut [T],
    size: usize,
    threads: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    let count = values.len().div_ceil(size);
    let chunks = Mutex::new(values.chunks_mut(size).enumerate());
    each(
        count,
        threads,
        || (),
        |(), _| {
            let chunk = chunks.lock().unwrap_or_else(PoisonError::into_inner).next();
            if let Some((i, chunk)) = chunk {
                work(i, chunk);
            }
        },
    );
}

/// The pool of so many threads, made at first use.
fn pool(helpers: usize) -> Option<Arc<ThreadPool>> {
    static POOLS: Mutex<Option<HashMap<usize, Arc<ThreadPool>>>> = Mutex::new(None);
    if helpers == 0 {
        return None;
    }
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    let pools = pools.get_or_insert_default();
    if let Some(pool) = pools.get(&helpers) {
        return Some(Arc::clone(pool));
    }
    let named = |index| format!("aios-matmul-{index}");
    let pool =
        Arc::new(rayon::ThreadPoolBuilder::new().num_threads(helpers).thread_name(named).build().ok()?);
    pools.insert(helpers, Arc::clone(&pool));
    Some(pool)
}
