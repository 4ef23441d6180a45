//! Half-quadratic quantisation: grids that are robust to outliers, without calibration data.
//!
//! Minimises sum |w - (zero + scale * code)|^p, p < 1, by half-quadratic splitting: with the residual e set aside by
//! the shrinkage of the l_p norm, the grid is a least-squares fit to w - e; the penalty grows from step to step.
//! Source: Badri and Shaji (2023), "Half-Quadratic Quantization of Large Machine Learning Models". There the scale
//! stays and the zero, in units of codes, is averaged; our zeros are weights, in which the same step has a closed form
//! for both, so both are fitted.

use crate::fault::Fault;
use crate::grid::{Grid, Group, Kind, range};
use crate::pack::PackedMut;
use crate::rtn::{Choose, each_group};

/// The norm, and the penalty with its growth, of the source.
const NORM: f32 = 0.7;
const BETA: f32 = 10.0;
const BETA_GROWTH: f32 = 1.01;
/// Steps at most; a group stops when its error no longer falls, mostly after a few.
const STEPS: usize = 20;
/// |x|^(p-1) is unbounded at 0, where everything is shrunk to 0 anyway.
const LEAST: f32 = 1e-9;

/// Quantises `weights` (rows x columns) by half-quadratic splitting.
pub fn quantize(weights: &[f32], out: &mut PackedMut<'_>) -> Result<(), Fault> {
    each_group(weights, &HalfQuadratic, out)
}

struct HalfQuadratic;

impl Choose for HalfQuadratic {
    #[inline(always)]
    fn grid(&self, kind: Kind, weights: &[f32], _start: usize) -> Grid {
        let group = Group::new(weights, None);
        let (low, high) = range(weights);
        let mut grid = Grid::spanning(kind, low, high);
        let (mut best, mut least, mut beta) = (grid, f32::INFINITY, BETA);
        for _ in 0..STEPS {
            let (error, line) = group.measure(&grid, |error| set_aside(error, 1.0 / beta));
            if error >= least {
                break;
            }
            (best, least) = (grid, error);
            match line.grid(kind) {
                Some(next) => grid = next,
                None => break,
            }
            beta *= BETA_GROWTH;
        }
        best
    }
}

/// The error's share of the objective, and the part of it that the shrinkage of the l_p norm leaves.
#[inline(always)]
fn set_aside(error: f32, inverse_beta: f32) -> (f32, f32) {
    let size = error.abs();
    let threshold = inverse_beta * power(if size > LEAST { size } else { LEAST });
    let left = if size > threshold { size - threshold } else { 0.0 };
    (size, left.copysign(error))
}

/// x^(p-1) for positive normal x within 0.1 %: it sets a threshold, and lanes need no call to `powf`.
#[inline(always)]
fn power(x: f32) -> f32 {
    let bits = x.to_bits();
    let fraction = f32::from_bits((bits & 0x007F_FFFF) | 0x3F80_0000); // in 1..2
    let log2 =
        (bits >> 23) as f32 - 127.0 + polynomial([-2.136_232, 3.011_162, -1.026_805, 0.152_700], fraction);
    let exponent = (NORM - 1.0) * log2 + 128.0; // positive: truncation is the floor
    let whole = exponent as i32;
    let rest = polynomial([0.999_900, 0.696_325, 0.224_693, 0.078_967], exponent - whole as f32); // 2^(0..1)
    f32::from_bits(((whole - 1) as u32) << 23) * rest
}

#[inline(always)]
fn polynomial(coefficients: [f32; 4], x: f32) -> f32 {
    coefficients[0] + x * (coefficients[1] + x * (coefficients[2] + x * coefficients[3]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_power_is_close_enough() {
        for exponent in -29..10 {
            for step in 0..50 {
                let x = (1.0 + step as f32 / 50.0) * (exponent as f32).exp2();
                let exact = x.powf(NORM - 1.0);
                assert!((power(x) / exact - 1.0).abs() < 1e-3, "{x}: {} {exact}", power(x));
            }
        }
    }
}
