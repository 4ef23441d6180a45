//! The integer products of codes and queries: portable code that is the truth, and vector instructions that equal it.
//!
//! The same loops are compiled for each instruction set with another implementation of `Dots`. AVX-512 VNNI would be
//! one more (`tile` has its order: four coordinates of a row side by side); it is not here because nothing lands that
//! has never run.

#![allow(unsafe_code)]

use crate::code::{Query, STEP};

/// Rows whose products are made together.
pub(crate) const GROUP: usize = 8;
/// Queries that meet two groups in registers.
pub(crate) const QUERIES: usize = 4;
/// Bytes of the codes of a step.
const STEP_BYTES: usize = STEP / 2;

/// Products of codes (0..=15, two a byte) with integer queries (-63..=63).
pub(crate) trait Dots {
    /// The products of four codes with a query.
    fn four(codes: [&[u8]; 4], query: &[i8]) -> [i32; 4];

    /// Spreads the codes of `GROUP` rows (one behind the other) into `group`: bytes, four coordinates of row 0, of
    /// row 1, and so on.
    fn spread(codes: &[u8], stride: usize, group: &mut [u8]);

    /// The products of two spread groups with four queries: first group with each query, then the second.
    fn tile(groups: [&[u8]; 2], queries: [&[i8]; QUERIES]) -> [[i32; GROUP]; 2 * QUERIES];

    /// Scores of `GROUP` products, and a bit for each row whose score may reach `least`.
    fn sift(sums: &[i32; GROUP], shapes: Shapes<'_>, query: &Query, least: f32) -> (u32, [f32; GROUP]);

    /// The product of two vectors of any length.
    fn product(a: &[f32], b: &[f32]) -> f32;

    /// The squared distance of two vectors of any length.
    fn distance(a: &[f32], b: &[f32]) -> f32;
}

/// What `GROUP` codes need beside their products.
#[derive(Clone, Copy)]
pub(crate) struct Shapes<'a> {
    pub(crate) factors: &'a [f32; GROUP],
    pub(crate) offsets: &'a [f32; GROUP],
    pub(crate) errors: &'a [f32; GROUP],
}

/// Runs everywhere.
pub(crate) struct Portable;

impl Dots for Portable {
    #[inline(always)]
    fn four(codes: [&[u8]; 4], query: &[i8]) -> [i32; 4] {
        codes.map(|code| {
            let steps = code.chunks_exact(STEP_BYTES).zip(query.chunks_exact(STEP));
            steps.map(|(bytes, query)| step_product(bytes, query)).sum()
        })
    }

    #[inline(always)]
    fn spread(codes: &[u8], stride: usize, group: &mut [u8]) {
        for (row, code) in codes.chunks_exact(stride).enumerate() {
            for (step, bytes) in code.chunks_exact(STEP_BYTES).enumerate() {
                for (at, byte) in bytes.iter().enumerate() {
                    for (coordinate, value) in [(at, byte & 15), (at + STEP_BYTES, byte >> 4)] {
                        let place = step * STEP + coordinate;
                        group[(place / 4 * GROUP + row) * 4 + place % 4] = value;
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn tile(groups: [&[u8]; 2], queries: [&[i8]; QUERIES]) -> [[i32; GROUP]; 2 * QUERIES] {
        std::array::from_fn(|at| {
            let (group, query) = (groups[at / QUERIES], queries[at % QUERIES]);
            let mut sums = [0; GROUP];
            for (quads, query) in group.chunks_exact(4 * GROUP).zip(query.chunks_exact(4)) {
                for (sum, codes) in sums.iter_mut().zip(quads.chunks_exact(4)) {
                    for (code, query) in codes.iter().zip(query) {
                        *sum += i32::from(*code) * i32::from(*query);
                    }
                }
            }
            sums
        })
    }

    #[inline(always)]
    fn sift(sums: &[i32; GROUP], shapes: Shapes<'_>, query: &Query, least: f32) -> (u32, [f32; GROUP]) {
        let mut mask = 0;
        let scores = std::array::from_fn(|at| {
            let score = query.score(sums[at], shapes.factors[at], shapes.offsets[at]);
            mask |= u32::from(score + query.reach * shapes.errors[at] >= least) << at;
            score
        });
        (mask, scores)
    }

    #[inline(always)]
    fn product(a: &[f32], b: &[f32]) -> f32 {
        lanes(a, b, |sum, a, b| sum + a * b)
    }

    #[inline(always)]
    fn distance(a: &[f32], b: &[f32]) -> f32 {
        lanes(a, b, |sum, a, b| sum + (a - b) * (a - b))
    }
}

#[inline(always)]
fn step_product(bytes: &[u8], query: &[i8]) -> i32 {
    let (low, high) = query.split_at(STEP_BYTES);
    let pairs = bytes.iter().zip(low.iter().zip(high));
    pairs
        .map(|(byte, (l, h))| i32::from(byte & 15) * i32::from(*l) + i32::from(byte >> 4) * i32::from(*h))
        .sum()
}

/// A sum over two vectors in 32 lanes, which also keeps its rounding small.
#[inline(always)]
fn lanes(a: &[f32], b: &[f32], add: impl Fn(f32, f32, f32) -> f32) -> f32 {
    const LANES: usize = 32;
    let mut sums = [0.0f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] = add(sums[lane], a[lane], b[lane]);
        }
    }
    for (lane, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        sums[lane] = add(sums[lane], *a, *b);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    sums[0]
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;

#[cfg(test)]
mod tests;
