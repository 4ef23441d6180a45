//! The triangular factor of an inverse Hessian: how an error in one column is best made up for in the later ones.
//!
//! GPTQ needs the upper Cholesky factor U of H^-1 = U^T U, row by row, each divided by its diagonal. No inverse is
//! formed: with H = V E V^T, V unit upper triangular and E diagonal (Cholesky from the last column to the first),
//! H^-1 = V^-T E^-1 V^-1, so that the rows wanted are those of V^-1. In f64, because layers are ill-conditioned.

use crate::fault::{Fault, length};
use crate::isa::{Work, fastest};
use crate::threads::each_chunk;

/// Columns that are factored together: 64 rows of f64 of a wide layer stay in the second cache.
const BLOCK: usize = 64;
/// Columns of the inverse that are solved for together: eight registers of four f64.
const SOLVED: usize = 32;

/// Checks a Hessian's size and entries; returns its diagonal.
pub(crate) fn diagonal(hessian: &[f64], columns: usize) -> Result<Vec<f64>, Fault> {
    length("the Hessian", columns * columns, hessian.len())?;
    for (column, row) in hessian.chunks_exact(columns.max(1)).enumerate() {
        if row[column] < 0.0 || !row.iter().all(|value| value.is_finite()) {
            return Err(Fault::Hessian(column));
        }
    }
    Ok((0..columns).map(|at| hessian[at * columns + at]).collect())
}

/// What is added to the diagonal: `damping` of its mean, so that the factor exists and trusts no tiny direction.
pub(crate) fn damping(diagonal: &[f64], damping: f64) -> f64 {
    let mean = diagonal.iter().sum::<f64>() / diagonal.len().max(1) as f64;
    if mean > 0.0 { damping * mean } else { 1.0 }
}

/// The lower Cholesky factor, row-major, of the Hessian with `added` on its diagonal and its columns in `order`.
pub(crate) fn cholesky(hessian: &[f64], order: &[usize], added: f64) -> Result<Vec<f64>, Fault> {
    let n = order.len();
    let mut factor = vec![0f64; n * n];
    each_chunk(&mut factor, n.max(1), |at, row| {
        for (value, &column) in row[..=at].iter_mut().zip(order) {
            *value = hessian[order[at] * n + column];
        }
        row[at] += added;
    });
    for start in (0..n).step_by(BLOCK) {
        let end = (start + BLOCK).min(n);
        let (above, below) = factor.split_at_mut(end * n);
        for at in start..end {
            let (done, row) = above.split_at_mut(at * n);
            let row = &mut row[..n];
            fastest(SolveRow { done: &done[start * n..], n, start, end: at, row: &mut row[..] });
            let pivot = row[at] - fastest(Dot { a: &row[..at], b: &row[..at] });
            if pivot.is_nan() || pivot <= 0.0 {
                return Err(Fault::Hessian(order[at]));
            }
            row[at] = pivot.sqrt();
        }
        let done = &above[start * n..];
        each_chunk(below, n, |_, row| fastest(SolveRow { done, n, start, end, row }));
    }
    Ok(factor)
}

/// Solves for columns start..end of one row of the factor; `done` holds the factor's rows from `start` on.
struct SolveRow<'a> {
    done: &'a [f64],
    n: usize,
    start: usize,
    end: usize,
    row: &'a mut [f64],
}

impl Work for SolveRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (at, other) in (self.start..self.end).zip(self.done.chunks_exact(self.n)) {
            let known = dot(&self.row[..at], &other[..at]);
            self.row[at] = (self.row[at] - known) / other[at];
        }
    }
}

pub(crate) struct Dot<'a> {
    pub a: &'a [f64],
    pub b: &'a [f64],
}

impl Work for Dot<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        dot(self.a, self.b)
    }
}

/// The inner product, summed in sixteen lanes on every machine.
#[inline(always)]
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let mut lanes = [0f64; 16];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..16 {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f64>() + rest
}

/// How errors travel: row j of the result holds, for every earlier place i in `order`, what an error of 1 in column i
/// takes from column j. (The transpose of V^-1; its diagonal is 1.)
pub(crate) fn propagation(hessian: &[f64], order: &[usize], added: f64) -> Result<Vec<f32>, Fault> {
    let n = order.len();
    let reversed: Vec<usize> = order.iter().rev().copied().collect();
    let mut unit = cholesky(hessian, &reversed, added)?;
    let scale: Vec<f64> = (0..n).map(|at| 1.0 / unit[at * n + at]).collect();
    each_chunk(&mut unit, n.max(1), |at, row| {
        row[..=at].iter_mut().zip(&scale).for_each(|(value, scale)| *value *= scale);
    });
    // Column c of the inverse of `unit`, reversed, is row n-1-c of the result.
    let mut travels = vec![0f32; n * n];
    each_chunk(&mut travels, SOLVED * n.max(1), |index, rows| {
        let last = n - index * SOLVED; // the rows of this chunk are columns last-1, last-2, ... of the inverse
        let first = last - rows.len() / n;
        fastest(SolveColumns { unit: &unit, n, first, last, rows });
    });
    Ok(travels)
}

struct SolveColumns<'a> {
    unit: &'a [f64],
    n: usize,
    first: usize,
    last: usize,
    rows: &'a mut [f32],
}

impl Work for SolveColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let mut solved = vec![[0f64; SOLVED]; self.n - self.first];
        for at in self.first..self.n {
            let row = &self.unit[at * self.n..][self.first..at];
            let mut sum = [0f64; SOLVED];
            for (&factor, known) in row.iter().zip(&solved) {
                for lane in 0..SOLVED {
                    sum[lane] -= factor * known[lane];
                }
            }
            if at < self.last {
                sum[at - self.first] += 1.0;
            }
            solved[at - self.first] = sum;
        }
        for (index, out) in self.rows.chunks_exact_mut(self.n).enumerate() {
            let lane = self.last - 1 - index - self.first;
            for (value, sums) in out.iter_mut().zip(solved.iter().rev()) {
                *value = sums[lane] as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// X^T X of 2n rows of fixed pseudo-random numbers.
    pub(crate) fn some_hessian(n: usize) -> Vec<f64> {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / f64::from(1 << 24) - 0.5
        };
        let x: Vec<Vec<f64>> = (0..2 * n).map(|_| (0..n).map(|_| next()).collect()).collect();
        (0..n * n).map(|at| x.iter().map(|row| row[at / n] * row[at % n]).sum()).collect()
    }

    #[test]
    fn propagation_diagonalises_the_hessian() {
        for n in [1, 2, 31, 33, 70, 130] {
            let hessian = some_hessian(n);
            let order: Vec<usize> = (0..n).map(|at| at * 7 % n).collect();
            let order = if n % 7 == 0 { (0..n).collect() } else { order };
            let travels = propagation(&hessian, &order, 0.01).unwrap();
            // V^-1 H V^-T is diagonal; the row p of V^-1 is column p of the result.
            for p in 0..n {
                for q in 0..n {
                    let mut sum = 0.0;
                    for i in 0..n {
                        for j in 0..n {
                            let h = hessian[order[i] * n + order[j]] + if i == j { 0.01 } else { 0.0 };
                            sum += f64::from(travels[i * n + p]) * h * f64::from(travels[j * n + q]);
                        }
                    }
                    assert!(p == q || sum.abs() < 1e-3 * n as f64, "{n} {p} {q}: {sum}");
                }
            }
            for p in 0..n {
                assert!((travels[p * n + p] - 1.0).abs() < 1e-6);
                assert!((p + 1..n).all(|later| travels[p * n + later] == 0.0));
            }
        }
    }

    #[test]
    fn what_is_no_hessian_is_refused() {
        assert_eq!(diagonal(&[1.0, 0.0], 2), Err(Fault::Length { what: "the Hessian", wants: 4, has: 2 }));
        assert_eq!(diagonal(&[1.0, f64::NAN, 0.0, 1.0], 2), Err(Fault::Hessian(0)));
        assert_eq!(cholesky(&[1.0, 2.0, 2.0, 1.0], &[0, 1], 0.0), Err(Fault::Hessian(1)));
    }
}
