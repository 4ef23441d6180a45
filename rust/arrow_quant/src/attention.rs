//! What the attention of layers and of the encoder share: a few queries side by side against the keys of a text.

use crate::layer::maths::{exp, sum};

/// Rows of queries that look at their text together: each key and value that is read serves all of them.
pub(crate) const QUERIES: usize = 4;
/// Floats of a vector that are summed side by side.
pub(crate) const LANES: usize = 8;

/// For each of four rows: the sum over i of row[i] times eight neighbours, from `column` on, of row i of a matrix.
///
/// Of twice as many neighbours the compiler makes single floats.
#[inline(always)]
pub(crate) fn product(
    rows: [&[f32]; QUERIES],
    matrix: &[f32],
    stride: usize,
    column: usize,
) -> [[f32; LANES]; QUERIES] {
    let mut sums = [[0.0; LANES]; QUERIES];
    let [a, b, c, d] = rows;
    let factors = a.iter().zip(b).zip(c).zip(d);
    for ((((a, b), c), d), line) in factors.zip(matrix.chunks(stride)) {
        let line = &line[column..].as_chunks::<LANES>().0[0];
        for (sums, factor) in sums.iter_mut().zip([a, b, c, d]) {
            for lane in 0..LANES {
                sums[lane] += factor * line[lane];
            }
        }
    }
    sums
}

/// Turns scores into their exponentials, the largest of which is 1, and returns the sum of these.
#[inline(always)]
pub(crate) fn softmax(scores: &mut [f32]) -> f32 {
    let mut largest = [f32::MIN; LANES];
    let (parts, rest) = scores.as_chunks::<LANES>();
    for scores in parts {
        for lane in 0..LANES {
            largest[lane] = if scores[lane] > largest[lane] { scores[lane] } else { largest[lane] };
        }
    }
    let largest = largest.iter().chain(rest).fold(f32::MIN, |largest, &score| largest.max(score));
    for score in &mut *scores {
        *score = exp(*score - largest);
    }
    sum(scores)
}

/// Puts rows of `width` floats in the order in which scores read them: turned [width][padded], padded with zeros to a
/// multiple of `LANES`. Row i begins at `rows[i * stride]`.
#[inline(always)]
pub(crate) fn turn(rows: &[f32], stride: usize, width: usize, turned: &mut [f32]) {
    let padded = turned.len() / width;
    for (block, rows) in rows.chunks(LANES * stride).enumerate() {
        let count = rows.len().div_ceil(stride);
        for (column, turned) in turned.chunks_exact_mut(padded).enumerate() {
            let turned = &mut turned.as_chunks_mut::<LANES>().0[block];
            for (i, turned) in turned.iter_mut().enumerate() {
                *turned = if i < count { rows[i * stride + column] } else { 0.0 };
            }
        }
    }
}
