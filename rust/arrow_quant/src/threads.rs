//! Work on a stated number of threads.

use rayon::prelude::*;

use crate::fault::Fault;

/// Beyond this, threads only wait for memory.
pub const THREADS_MAX: usize = 64;

/// Runs `work` on `count` threads, at most `THREADS_MAX`; one is the caller's own. Others are made for this call:
/// quantising is long and rare, so nothing stays behind that a forked process would miss.
pub fn on<T: Send>(count: usize, work: impl FnOnce() -> Result<T, Fault> + Send) -> Result<T, Fault> {
    if count <= 1 {
        return work();
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(count.min(THREADS_MAX))
        .thread_name(|index| format!("arrow-quant-{index}"))
        .build()
        .map_err(|error| Fault::Threads(error.to_string()))?
        .install(work)
}

/// Calls `work` with each chunk of `size` values and its number, on the threads of `on`.
pub(crate) fn each_chunk<T: Send>(
    values: &mut [T],
    size: usize,
    work: impl Fn(usize, &mut [T]) + Sync + Send,
) {
    if rayon::current_thread_index().is_none() {
        values.chunks_mut(size).enumerate().for_each(|(index, chunk)| work(index, chunk));
    } else {
        values.par_chunks_mut(size).enumerate().for_each(|(index, chunk)| work(index, chunk));
    }
}
