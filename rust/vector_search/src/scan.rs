//! The exact search: every code is met, bounds leave few candidates, and those are scored from their exact rows.

use crate::code::{Coder, Metric, Query};
use crate::dots::{Dots, GROUP, QUERIES};
use crate::isa::Isa;
use crate::rows::{CHUNK, Rows};
use crate::threads::Threads;
use crate::top::{Best, Candidate, Collector};

/// Spread codes of a tile: they stay in the first-level cache while many queries pass.
const TILE_BYTES: usize = 24 << 10;
/// From so many queries on, spreading a tile costs less than reading the codes once for each.
const TILED_FROM: usize = 4;
/// Queries that one thread takes through all tiles.
const BLOCK: usize = 128;
/// Slots that make another thread worth waking for one query.
const SLOTS_PER_THREAD: usize = 16_384;
/// Exact rows are this many candidates ahead of their use on their way from memory.
const AHEAD: usize = 8;

/// The `k` best slots for each query.
pub(crate) fn search(
    rows: &Rows,
    coder: &Coder,
    queries: &[(&[f32], Query)],
    k: usize,
    threads: &Threads,
) -> Vec<Best> {
    let isa = Isa::here();
    let tiled = queries.len() >= TILED_FROM;
    let block = if tiled { queries.len().div_ceil(threads.count()).clamp(QUERIES, BLOCK) } else { 1 };
    let blocks = queries.len().div_ceil(block);
    let pieces = match tiled {
        true => threads.count().div_ceil(blocks.max(1)),
        false => threads.count(),
    };
    let pieces = pieces.min(rows.slots.div_ceil(SLOTS_PER_THREAD)).max(1);
    // Pieces are whole groups of a tile: two groups meet the queries together.
    let piece = rows.slots.div_ceil(pieces).next_multiple_of(2 * GROUP).max(2 * GROUP);
    let mut found = threads.map(blocks * pieces, |item| {
        let queries = &queries[item / pieces * block..queries.len().min((item / pieces + 1) * block)];
        let (first, last) = (item % pieces * piece, rows.slots.min((item % pieces + 1) * piece));
        let mut collectors: Vec<_> = queries.iter().map(|_| Collector::new(k)).collect();
        if tiled {
            isa.tiles(rows, first, last, queries, &mut collectors);
        } else {
            isa.scan(rows, first, last, &queries[0].1, &mut collectors[0]);
        }
        collectors
    });
    let mut merged: Vec<Option<Collector>> = Vec::with_capacity(queries.len());
    for (item, collectors) in found.drain(..).enumerate() {
        for (at, collector) in collectors.into_iter().enumerate() {
            let query = item / pieces * block + at;
            match merged.get_mut(query) {
                Some(Some(there)) => there.absorb(collector),
                _ => merged.push(Some(collector)),
            }
        }
    }
    let candidates: Vec<_> = merged.into_iter().flatten().map(Collector::finish).collect();
    rescored(rows, coder, queries, candidates, k, threads)
}

/// The `k` best among `slots` (in order, live) for each query.
pub(crate) fn among(
    rows: &Rows,
    coder: &Coder,
    queries: &[(&[f32], Query)],
    slots: &[u32],
    k: usize,
    threads: &Threads,
) -> Vec<Best> {
    let isa = Isa::here();
    let candidates = threads.map(queries.len(), |at| {
        let mut collector = Collector::new(k);
        isa.visit(rows, slots, &queries[at].1, &mut collector);
        collector.finish()
    });
    rescored(rows, coder, queries, candidates, k, threads)
}

/// The `k` best of candidates by their exact scores.
pub(crate) fn rescored(
    rows: &Rows,
    coder: &Coder,
    queries: &[(&[f32], Query)],
    candidates: Vec<Vec<Candidate>>,
    k: usize,
    threads: &Threads,
) -> Vec<Best> {
    let isa = Isa::here();
    threads.map(queries.len(), |at| isa.rescore(rows, coder.metric, &queries[at], &candidates[at], k))
}

/// Candidates come with falling upper bounds: the first one that cannot enter any more ends it.
#[inline(always)]
pub(crate) fn rescore<D: Dots>(
    rows: &Rows,
    metric: Metric,
    query: &(&[f32], Query),
    candidates: &[Candidate],
    k: usize,
) -> Best {
    let mut best = Best::new(k);
    for candidate in candidates.iter().take(AHEAD) {
        prefetch(rows.vector(candidate.slot));
    }
    for (at, candidate) in candidates.iter().enumerate() {
        if candidate.upper + query.1.shift < best.least() {
            break;
        }
        if let Some(later) = candidates.get(at + AHEAD) {
            prefetch(rows.vector(later.slot));
        }
        let vector = rows.vector(candidate.slot);
        let score = match metric {
            Metric::Dot => D::product(query.0, vector),
            Metric::L2 => -D::distance(query.0, vector),
            Metric::Cosine => {
                let (chunk, at) = rows.chunk(candidate.slot);
                D::product(query.0, vector) * query.1.inverse_norm * chunk.inverse_norms[at]
            }
        };
        best.push(score, candidate.slot);
    }
    best
}

/// Asks for a value's memory, which is needed soon.
#[inline(always)]
pub(crate) fn prefetch<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..size_of_val(values).div_ceil(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        #[allow(unsafe_code)]
        // SAFETY: prefetching touches nothing, wherever it points.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(values.as_ptr().cast::<i8>().wrapping_add(64 * line));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

/// One query past the slots first..last, which begin at a group.
#[inline(always)]
pub(crate) fn scan<D: Dots>(rows: &Rows, first: usize, last: usize, query: &Query, into: &mut Collector) {
    let stride = rows.stride;
    for slot in (first..last).step_by(GROUP) {
        let (chunk, at) = (&rows.chunks[slot / CHUNK], slot % CHUNK);
        let (upper, lower) = chunk.codes[at * stride..(at + GROUP) * stride].split_at(4 * stride);
        // No closures around the products: one would be compiled without the instructions.
        let [a, b, c, d] = D::four(four_of(upper, stride), &query.codes);
        let [e, f, g, h] = D::four(four_of(lower, stride), &query.codes);
        sifted::<D>(rows, slot, &[a, b, c, d, e, f, g, h], query, into);
    }
}

#[inline(always)]
fn four_of(codes: &[u8], stride: usize) -> [&[u8]; 4] {
    let (upper, lower) = codes.split_at(2 * stride);
    let ((a, b), (c, d)) = (upper.split_at(stride), lower.split_at(stride));
    [a, b, c, d]
}

/// The slots of a group that may be among the best, by their products.
#[inline(always)]
fn sifted<D: Dots>(rows: &Rows, slot: usize, sums: &[i32; GROUP], query: &Query, into: &mut Collector) {
    let (chunk, at) = (&rows.chunks[slot / CHUNK], slot % CHUNK);
    let shapes = chunk.shapes(at);
    let (mut mask, scores) = D::sift(sums, shapes, query, into.least);
    while mask != 0 {
        let row = mask.trailing_zeros() as usize;
        into.push((slot + row) as u32, scores[row], query.reach * shapes.errors[row]);
        mask &= mask - 1;
    }
}

/// Many queries past the slots first..last, which begin at a pair of groups.
#[inline(always)]
pub(crate) fn tiles<D: Dots>(
    rows: &Rows,
    first: usize,
    last: usize,
    queries: &[(&[f32], Query)],
    into: &mut [Collector],
) {
    let group_bytes = 2 * GROUP * rows.stride;
    let groups = (TILE_BYTES / group_bytes / 2 * 2).max(2);
    let mut tile = vec![0; groups * group_bytes];
    for start in (first..last).step_by(groups * GROUP) {
        // Chunks are whole pairs of groups, so that the last pair is always there, if only as empty slots.
        let count = (last - start).div_ceil(2 * GROUP).min(groups / 2) * 2;
        for (number, group) in tile.chunks_exact_mut(group_bytes).take(count).enumerate() {
            let (chunk, at) =
                (&rows.chunks[(start + number * GROUP) / CHUNK], (start + number * GROUP) % CHUNK);
            D::spread(&chunk.codes[at * rows.stride..(at + GROUP) * rows.stride], rows.stride, group);
        }
        for (queries, into) in queries.chunks(QUERIES).zip(into.chunks_mut(QUERIES)) {
            let codes = std::array::from_fn(|at| &queries[at.min(queries.len() - 1)].1.codes[..]);
            for pair in 0..count / 2 {
                let (one, two) = tile[2 * pair * group_bytes..].split_at(group_bytes);
                let sums = D::tile([one, two], codes);
                for (at, (query, into)) in queries.iter().zip(into.iter_mut()).enumerate() {
                    let slot = start + 2 * pair * GROUP;
                    sifted::<D>(rows, slot, &sums[at], &query.1, into);
                    sifted::<D>(rows, slot + GROUP, &sums[QUERIES + at], &query.1, into);
                }
            }
        }
    }
}

/// One query past these slots.
#[inline(always)]
pub(crate) fn visit<D: Dots>(rows: &Rows, slots: &[u32], query: &Query, into: &mut Collector) {
    for (number, four) in slots.chunks(4).enumerate() {
        for later in slots[4 * number..].iter().skip(2 * AHEAD).take(4) {
            prefetch(rows.code(*later));
        }
        let slot = |at: usize| four[at.min(four.len() - 1)];
        let sums = D::four(std::array::from_fn(|at| rows.code(slot(at))), &query.codes);
        for (slot, sum) in four.iter().zip(sums) {
            let (chunk, at) = rows.chunk(*slot);
            let score = query.score(sum, chunk.factors[at], chunk.offsets[at]);
            into.push(*slot, score, query.reach * chunk.errors[at]);
        }
    }
}
