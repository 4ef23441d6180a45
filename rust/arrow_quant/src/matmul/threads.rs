//! Work shared by the calling thread and a pool that stays.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::ThreadPool;

/// More threads than any machine has; a larger wish gets this many.
pub(crate) const THREADS_MAX: usize = 512;

/// Calls `work(scratch, i)` for every i below `count`, on `threads` threads of which the caller is one.
///
/// Each thread makes a scratch of its own. Where the system grants no threads, the caller does it all.
pub(crate) fn each<S>(
    count: usize,
    threads: usize,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) + Sync,
) {
    let next = AtomicUsize::new(0);
    let run = || {
        let mut scratch = scratch();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= count {
                return;
            }
            work(&mut scratch, i);
        }
    };
    let helpers = threads.min(count).min(THREADS_MAX).saturating_sub(1);
    match pool(helpers) {
        Some(pool) => pool.in_place_scope(|scope| {
            for _ in 0..helpers {
                scope.spawn(|_| run());
            }
            run();
        }),
        None => run(),
    }
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
