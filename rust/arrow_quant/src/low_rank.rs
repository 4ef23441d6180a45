//! A residual of low rank: the best `left @ right` for what quantisation lost.
//!
//! Minimises ||(E - L R) C||_F for the loss E = W - Q, where C C^T is the Hessian (the identity without one), by a
//! randomised singular value decomposition: a random sketch of E C, sharpened by subspace iterations, then the exact
//! decomposition within it. L = U sqrt(S), R = sqrt(S) V^T C^-1.
//! Source: Halko, Martinsson, Tropp (2011), "Finding Structure with Randomness", algorithms 4.4 and 5.1.

use crate::fault::{Fault, length};
use crate::half;
use crate::hessian;
use crate::isa::{Work, fastest};
use crate::order::RANK_MAX;
use crate::rtn::check;
use crate::threads::each_chunk;

/// Columns of the sketch beyond the rank.
const OVERSAMPLING: usize = 8;
/// Quantisation losses have flat spectra, which takes a few iterations to sort out.
const ITERATIONS: usize = 4;
/// Rows of a product that share each reading of the right factor; their sums stay in the second cache.
const TOGETHER: usize = 16;
/// Sweeps of Jacobi rotations; convergence is quadratic, these are more than enough.
const SWEEPS: usize = 16;

/// Writes f16 factors (rows x rank) and (rank x columns) of the loss `lost` (rows x columns), weighted by `hessian`
/// with `damping` of its mean diagonal added.
pub fn factors(
    lost: &[f32],
    columns: usize,
    hessian: Option<(&[f64], f64)>,
    left: &mut [u16],
    right: &mut [u16],
) -> Result<(), Fault> {
    let rows = lost.len().checked_div(columns).unwrap_or(0);
    let rank = left.len().checked_div(rows).unwrap_or(0);
    if rank == 0 || rank > RANK_MAX || rank > rows.min(columns) {
        return Err(Fault::Rank(rank));
    }
    length("the loss", rows * columns, lost.len())?;
    length("the left factor", rows * rank, left.len())?;
    length("the right factor", rank * columns, right.len())?;
    lost.chunks_exact(columns).enumerate().try_for_each(|(row, lost)| check(lost, row))?;
    let root = hessian.map(|(hessian, share)| root(hessian, share, columns)).transpose()?;
    let lost: Vec<f64> = lost.iter().map(|&value| f64::from(value)).collect();
    let lost = Matrix { rows, columns, values: lost };
    let weighted = root.as_ref().map(|root| lost.times(root));
    let (basis, within) =
        sketch(weighted.as_ref().unwrap_or(&lost), (rank + OVERSAMPLING).min(rows.min(columns)));
    let (values, vectors) = eigen(&within.times_transposed(&within));
    let mut tall = Matrix::zeros(rank, rows);
    let mut wide = Matrix::zeros(rank, columns);
    let within = within.transposed();
    for index in 0..rank {
        let size = values[index].max(0.0).sqrt(); // the singular value
        let vector = &vectors[index];
        let scale = if size > 0.0 { size.sqrt() } else { 0.0 };
        let inverse = if size > 0.0 { 1.0 / scale } else { 0.0 };
        fill(tall.row_mut(index), |at| scale * plain_dot(vector, basis.row(at)));
        fill(wide.row_mut(index), |at| inverse * plain_dot(vector, within.row(at)));
    }
    if let Some(root) = &root {
        solve_lower_transposed(&mut wide, root);
    }
    let tall = tall.transposed();
    left.iter_mut().zip(&tall.values).for_each(|(half, &value)| *half = stored(value));
    right.iter_mut().zip(&wide.values).for_each(|(half, &value)| *half = stored(value));
    Ok(())
}

/// The nearest finite f16.
fn stored(value: f64) -> u16 {
    half::narrow((value as f32).clamp(-half::MAX, half::MAX))
}

/// C, lower triangular, with C C^T the damped Hessian.
fn root(values: &[f64], share: f64, columns: usize) -> Result<Matrix, Fault> {
    let diagonal = hessian::diagonal(values, columns)?;
    let order: Vec<usize> = (0..columns).collect();
    let values = hessian::cholesky(values, &order, hessian::damping(&diagonal, share))?;
    Ok(Matrix { rows: columns, columns, values })
}

/// An orthonormal basis, (rows x width), of nearly the dominant range of `of`, and `of` within it, (width x columns).
fn sketch(of: &Matrix, width: usize) -> (Matrix, Matrix) {
    let turned = of.transposed();
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let noise = (0..of.columns * width).map(|_| gaussian(&mut state)).collect();
    let mut basis = of.times(&Matrix { rows: of.columns, columns: width, values: noise });
    basis = orthonormal(&basis);
    for _ in 0..ITERATIONS {
        basis = orthonormal(&turned.times(&basis));
        basis = orthonormal(&of.times(&basis));
    }
    let within = turned.times(&basis).transposed();
    (basis, within)
}

/// A pseudo-random number near a standard normal one: the sum of four uniform ones. (SplitMix64.)
fn gaussian(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut bits = *state;
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^= bits >> 31;
    (0..4).map(|part| f64::from((bits >> (16 * part)) as u16)).sum::<f64>() / 65536.0 - 2.0
}

/// The columns of `of`, made orthonormal (Gram-Schmidt, twice); what depends on earlier ones becomes 0.
fn orthonormal(of: &Matrix) -> Matrix {
    let mut turned = of.transposed();
    for at in 0..turned.rows {
        let (done, rest) = turned.values.split_at_mut(at * turned.columns);
        let column = &mut rest[..turned.columns];
        let before = plain_dot(column, column).sqrt();
        for _ in 0..2 {
            for known in done.chunks_exact(turned.columns) {
                fastest(Axpy { factor: -plain_dot(column, known), from: known, to: column });
            }
        }
        let size = plain_dot(column, column).sqrt();
        let inverse = if size > 1e-12 * before { 1.0 / size } else { 0.0 };
        column.iter_mut().for_each(|value| *value *= inverse);
    }
    turned.transposed()
}

/// Eigenvalues, largest first, and unit eigenvectors of a small symmetric matrix, by cyclic Jacobi rotations.
/// Source: Golub and Van Loan, "Matrix Computations", algorithm 8.4.3.
fn eigen(of: &Matrix) -> (Vec<f64>, Vec<Vec<f64>>) {
    let n = of.rows;
    let mut a = of.values.clone();
    let mut vectors: Vec<Vec<f64>> =
        (0..n).map(|at| (0..n).map(|i| f64::from(u8::from(i == at))).collect()).collect();
    let total: f64 = a.iter().map(|value| value * value).sum();
    for _ in 0..SWEEPS {
        let off: f64 = (0..n * n).filter(|at| at / n != at % n).map(|at| a[at] * a[at]).sum();
        if off <= 1e-22 * total {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut a, &mut vectors, n, p, q);
            }
        }
    }
    let mut sorted: Vec<usize> = (0..n).collect();
    sorted.sort_by(|&i, &j| a[j * n + j].total_cmp(&a[i * n + i]));
    let values = sorted.iter().map(|&at| a[at * n + at]).collect();
    (values, sorted.iter().map(|&at| std::mem::take(&mut vectors[at])).collect())
}

/// Makes `a[p][q]` zero.
fn rotate(a: &mut [f64], vectors: &mut [Vec<f64>], n: usize, p: usize, q: usize) {
    let across = a[p * n + q];
    if across == 0.0 {
        return;
    }
    let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * across);
    let t = 1.0f64.copysign(theta) / (theta.abs() + theta.hypot(1.0));
    let c = 1.0 / t.hypot(1.0);
    let s = t * c;
    for at in 0..n {
        let (x, y) = (a[at * n + p], a[at * n + q]);
        (a[at * n + p], a[at * n + q]) = (c * x - s * y, s * x + c * y);
    }
    let (before, after) = a.split_at_mut(q * n);
    let (before_v, after_v) = vectors.split_at_mut(q);
    let turn = |first: &mut [f64], second: &mut [f64]| {
        for (x, y) in first.iter_mut().zip(second) {
            (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
        }
    };
    turn(&mut before[p * n..(p + 1) * n], &mut after[..n]);
    turn(&mut before_v[p], &mut after_v[0]);
}

/// Replaces every row r of `of` by r C^-1, C = `root` lower triangular.
fn solve_lower_transposed(of: &mut Matrix, root: &Matrix) {
    let n = root.columns;
    each_chunk(&mut of.values, n, |_, row| {
        for at in (0..n).rev() {
            let factor = root.row(at);
            row[at] /= factor[at];
            let value = row[at];
            fastest(Axpy { factor: -value, from: &factor[..at], to: &mut row[..at] });
        }
    });
}

/// Row-major.
struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f64>,
}

impl Matrix {
    fn zeros(rows: usize, columns: usize) -> Self {
        Matrix { rows, columns, values: vec![0.0; rows * columns] }
    }

    fn row(&self, at: usize) -> &[f64] {
        &self.values[at * self.columns..(at + 1) * self.columns]
    }

    fn row_mut(&mut self, at: usize) -> &mut [f64] {
        &mut self.values[at * self.columns..(at + 1) * self.columns]
    }

    fn transposed(&self) -> Matrix {
        let mut turned = Matrix::zeros(self.columns, self.rows);
        for (at, row) in self.values.chunks_exact(self.columns).enumerate() {
            for (column, &value) in row.iter().enumerate() {
                turned.values[column * self.rows + at] = value;
            }
        }
        turned
    }

    fn times(&self, other: &Matrix) -> Matrix {
        let mut product = Matrix::zeros(self.rows, other.columns);
        each_chunk(&mut product.values, TOGETHER * other.columns, |chunk, sums| {
            for (middle, from) in other.values.chunks_exact(other.columns).enumerate() {
                for (index, to) in sums.chunks_exact_mut(other.columns).enumerate() {
                    let factor = self.values[(chunk * TOGETHER + index) * self.columns + middle];
                    fastest(Axpy { factor, from, to });
                }
            }
        });
        product
    }

    fn times_transposed(&self, other: &Matrix) -> Matrix {
        self.times(&other.transposed())
    }
}

struct Axpy<'a> {
    factor: f64,
    from: &'a [f64],
    to: &'a mut [f64],
}

impl Work for Axpy<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (to, &from) in self.to.iter_mut().zip(self.from) {
            *to += self.factor * from;
        }
    }
}

fn plain_dot(a: &[f64], b: &[f64]) -> f64 {
    fastest(hessian::Dot { a, b })
}

fn fill(row: &mut [f64], value: impl Fn(usize) -> f64 + Sync + Send) {
    each_chunk(row, 1, |at, out| out[0] = value(at));
}
