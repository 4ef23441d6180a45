//! Vectors as 4-bit codes, queries as 7-bit integers, and what their integer product says about the true score.
//!
//! A vector x of length |x|, rotated and scaled to length 1, becomes r = f v + e with v in {-7.5, .., 7.5}^d (a code
//! is v + 7.5) and f = 1 / <v, r>, so that the error e is orthogonal to r and the estimate f <v, q> has no bias.
//! After a random rotation <e, q> is close to normal with deviation |e| |q| / sqrt(d): `DEVIATIONS` of them bound it.
//! Source: Gao and Long, "RaBitQ" (SIGMOD 2024) and its extension to several bits (SIGMOD 2025).

use crate::dots::Dots;
use crate::fault::{Fault, Result};
use crate::rotation::Rotation;

/// Coordinates that share one step of the kernels: 32 bytes of two codes each.
pub(crate) const STEP: usize = 64;
/// A code is the coordinate on its grid plus this.
const MIDDLE: f32 = 7.5;
const CODE_MAX: f32 = 15.0;
/// Integer queries stay within this, so that 17 products of two codes each fit 16 bits.
pub(crate) const QUERY_MAX: f32 = 63.0;
/// The bound in standard deviations: a true neighbour falls outside with probability 3e-5.
const DEVIATIONS: f32 = 4.0;
/// The relative error of an integer query that the stored bounds include.
const QUERY_ERROR: f32 = 0.02;
/// The best step of 16 for a Gaussian of deviation 1. Source: Max, "Quantizing for minimum distortion" (1960).
const GAUSSIAN_STEP: f32 = 0.3352;
/// Steps tried for each vector, as multiples of that one.
const STEPS_TRIED: [f32; 8] = [0.7, 0.8, 0.88, 0.95, 1.02, 1.1, 1.2, 1.35];
/// Longer vectors overflow f32 on their way to a score.
const LENGTH_MAX: f64 = 1e15;

/// What a score is; greater is nearer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// <q, x> / (|q| |x|); 0 where a length is 0.
    Cosine,
    /// <q, x>.
    Dot,
    /// -|q - x|^2.
    L2,
}

impl Metric {
    /// The number that stands for it in a file.
    pub(crate) fn number(self) -> u32 {
        match self {
            Metric::Cosine => 0,
            Metric::Dot => 1,
            Metric::L2 => 2,
        }
    }

    /// The inverse of `number`.
    pub(crate) fn of(number: u32) -> Option<Metric> {
        [Metric::Cosine, Metric::Dot, Metric::L2].into_iter().find(|metric| metric.number() == number)
    }
}

/// What a code needs beside its product with a query: score = factor * product + offset, give or take the error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Terms {
    pub(crate) factor: f32,
    pub(crate) offset: f32,
    pub(crate) error: f32,
    pub(crate) inverse_norm: f32,
}

/// A query of the kernels: integers (padded), and how a product with a code becomes a score.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    pub(crate) codes: Vec<i8>,
    /// <v, q> = scale * sum(code * integer) + bias.
    pub(crate) scale: f32,
    pub(crate) bias: f32,
    /// The error of a score is at most this times the code's `error`.
    pub(crate) reach: f32,
    /// What all scores of this query have in common beyond `factor * product + offset`.
    pub(crate) shift: f32,
    /// 1 / |q|; 0 for a query of length 0.
    pub(crate) inverse_norm: f32,
}

impl Query {
    /// The score that a sum of products stands for, its `shift` left out.
    #[inline(always)]
    pub(crate) fn score(&self, sum: i32, factor: f32, offset: f32) -> f32 {
        factor * (self.scale * sum as f32 + self.bias) + offset
    }
}

/// How vectors of one dimension and metric become codes and queries.
pub(crate) struct Coder {
    pub(crate) dim: usize,
    pub(crate) metric: Metric,
    rotation: Rotation,
}

impl Coder {
    pub(crate) fn new(dim: usize, metric: Metric) -> Self {
        Coder { dim, metric, rotation: Rotation::new(dim) }
    }

    /// The dimension as the kernels see it.
    pub(crate) fn padded(&self) -> usize {
        self.dim.next_multiple_of(STEP)
    }

    /// The bytes of a code.
    pub(crate) fn stride(&self) -> usize {
        self.padded() / 2
    }

    /// Writes the code of `x` (dim) into `code` (stride); `scratch` is anything.
    #[inline(always)]
    pub(crate) fn encode(&self, x: &[f32], scratch: &mut Vec<f32>, code: &mut [u8]) -> Result<Terms> {
        let norm = norm(x)?;
        code.fill(0);
        if norm == 0.0 {
            return Ok(Terms { factor: 0.0, offset: 0.0, error: 0.0, inverse_norm: 0.0 });
        }
        scratch.clear();
        scratch.extend(x.iter().map(|x| (f64::from(*x) / norm) as f32));
        self.rotation.apply(scratch);
        let (step, cosine, product) = best_step(scratch);
        pack(scratch, 1.0 / step, code);
        let norm = norm as f32;
        let scale = match self.metric {
            Metric::Cosine => 1.0,
            Metric::Dot => norm,
            Metric::L2 => 2.0 * norm,
        };
        let secant = 1.0 / (cosine * cosine);
        let error = ((secant - 1.0).max(0.0) + QUERY_ERROR * QUERY_ERROR * secant).sqrt();
        let offset = if self.metric == Metric::L2 { -norm * norm } else { 0.0 };
        Ok(Terms { factor: scale / product, offset, error: scale * error, inverse_norm: 1.0 / norm })
    }

    /// The query that `x` (dim) makes.
    #[inline(always)]
    pub(crate) fn query(&self, x: &[f32]) -> Result<Query> {
        let length = norm(x)?;
        let inverse_norm = if length > 0.0 { (1.0 / length) as f32 } else { 0.0 };
        let (unit, shift) = match self.metric {
            Metric::Cosine => (f64::from(inverse_norm), 0.0),
            Metric::Dot => (1.0, 0.0),
            Metric::L2 => (1.0, -(length * length) as f32),
        };
        let mut turned: Vec<f32> = x.iter().map(|x| (f64::from(*x) * unit) as f32).collect();
        self.rotation.apply(&mut turned);
        let most = turned.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let scale = most / QUERY_MAX;
        let inverse = if most > 0.0 { QUERY_MAX / most } else { 0.0 };
        let mut codes = vec![0i8; self.padded()];
        let (mut sum, mut lost, mut kept) = (0i32, 0.0f32, 0.0f32);
        for (code, x) in codes.iter_mut().zip(&turned) {
            *code = (x * inverse).clamp(-QUERY_MAX, QUERY_MAX).round_ties_even() as i8;
            sum += i32::from(*code);
            lost += (x - f32::from(*code) * scale).powi(2);
            kept += x * x;
        }
        let worse = if kept > 0.0 { ((lost / kept).sqrt() / QUERY_ERROR).max(1.0) } else { 1.0 };
        let spread = (DEVIATIONS / (self.dim as f32).sqrt()).min(std::f32::consts::SQRT_2);
        Ok(Query {
            codes,
            scale,
            bias: -MIDDLE * scale * sum as f32,
            reach: spread * kept.sqrt() * worse,
            shift,
            inverse_norm,
        })
    }

    /// The query that a stored code makes of itself: for distances among stored vectors, without a bound.
    pub(crate) fn query_of_code(&self, code: &[u8], factor: f32, offset: f32) -> Query {
        let codes = vec![0; self.padded()];
        let mut query = Query { codes, scale: 0.0, bias: 0.0, reach: 0.0, shift: 0.0, inverse_norm: 0.0 };
        self.refill(code, factor, offset, &mut query);
        query
    }

    /// `query_of_code` into a query made by it before.
    pub(crate) fn refill(&self, code: &[u8], factor: f32, offset: f32, query: &mut Query) {
        let mut sum = 0i32;
        for (bytes, codes) in code.chunks_exact(STEP / 2).zip(query.codes.chunks_exact_mut(STEP)) {
            let (low, high) = codes.split_at_mut(STEP / 2);
            for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
                *low = 2 * (byte & 15) as i8 - 15;
                *high = 2 * (byte >> 4) as i8 - 15;
            }
        }
        query.codes[self.dim..].fill(0);
        for code in &query.codes {
            sum += i32::from(*code);
        }
        let half = if self.metric == Metric::L2 { 0.5 } else { 1.0 }; // its factor doubles
        query.scale = 0.5 * half * factor;
        query.bias = -MIDDLE * query.scale * sum as f32;
        query.shift = offset;
    }
}

/// `Coder::encode`, compiled for the instruction set of `D`.
#[inline(always)]
pub(crate) fn encode<D: Dots>(
    coder: &Coder,
    x: &[f32],
    scratch: &mut Vec<f32>,
    code: &mut [u8],
) -> Result<Terms> {
    coder.encode(x, scratch, code)
}

/// `Coder::query`, compiled for the instruction set of `D`.
#[inline(always)]
pub(crate) fn query<D: Dots>(coder: &Coder, x: &[f32]) -> Result<Query> {
    coder.query(x)
}

/// The length of a vector, which must be finite and not too long.
#[inline(always)]
fn norm(x: &[f32]) -> Result<f64> {
    let norm = x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    if norm <= LENGTH_MAX {
        return Ok(if norm < 1.0 / LENGTH_MAX { 0.0 } else { norm });
    }
    Err(Fault::input(format!("a vector is not finite, or longer than {LENGTH_MAX:e}")))
}

/// (step, cosine between vector and grid point, their product) of the best of the steps tried for a unit vector.
#[inline(always)]
fn best_step(unit: &[f32]) -> (f32, f32, f32) {
    let most = unit.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let gaussian = GAUSSIAN_STEP / (unit.len() as f32).sqrt();
    let tried = STEPS_TRIED.iter().map(|multiple| multiple * gaussian).chain([most / MIDDLE]);
    let mut best = (0.0, 0.0, 0.0);
    for step in tried {
        let (product, squares) = on_grid(unit, 1.0 / step);
        let cosine = product / squares.sqrt();
        if cosine > best.1 {
            best = (step, cosine, product);
        }
    }
    best
}

/// The code of a coordinate: its place on the grid.
#[inline(always)]
fn place(x: f32, inverse: f32) -> f32 {
    // Truncation of a positive number rounds down, and is an instruction everywhere.
    (x * inverse + (MIDDLE + 0.5)).clamp(0.0, CODE_MAX) as i32 as f32
}

/// Products <v, unit> and <v, v> of the grid point v of a vector.
#[inline(always)]
fn on_grid(unit: &[f32], inverse: f32) -> (f32, f32) {
    const LANES: usize = 16;
    let (mut products, mut squares) = ([0.0f32; LANES], [0.0f32; LANES]);
    let (whole, rest) = unit.as_chunks::<LANES>();
    for x in whole {
        for lane in 0..LANES {
            let v = place(x[lane], inverse) - MIDDLE;
            products[lane] += v * x[lane];
            squares[lane] += v * v;
        }
    }
    for x in rest {
        let v = place(*x, inverse) - MIDDLE;
        products[0] += v * x;
        squares[0] += v * v;
    }
    (products.iter().sum(), squares.iter().sum())
}

/// Codes in the kernels' order: of each `STEP` coordinates the first half are low nibbles, the second high ones.
#[inline(always)]
fn pack(unit: &[f32], inverse: f32, code: &mut [u8]) {
    for (at, x) in unit.iter().enumerate() {
        let (step, within) = (at / STEP, at % STEP);
        let byte = &mut code[step * (STEP / 2) + within % (STEP / 2)];
        *byte |= (place(*x, inverse) as u8) << if within < STEP / 2 { 0 } else { 4 };
    }
}

#[cfg(test)]
pub(crate) mod tests;
