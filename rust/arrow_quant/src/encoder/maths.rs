//! The small operators between the products of an encoder.

use super::Norm;
use crate::isa::Work;
use crate::layer::maths::sum;

/// x += bias, row by row.
pub(super) struct Add<'a> {
    pub x: &'a mut [f32],
    pub bias: &'a [f32],
}

impl Work for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for x in self.x.chunks_exact_mut(self.bias.len()) {
            for (x, bias) in x.iter_mut().zip(self.bias) {
                *x += bias;
            }
        }
    }
}

/// x = (y - mean) / sqrt(variance + eps) * weight + bias for y = x + more + what the product left out, row by row.
/// Source: Ba et al. 2016, "Layer normalization", eq. 3.
pub(super) struct AddNorm<'a> {
    pub x: &'a mut [f32],
    pub more: &'a [f32],
    pub bias: Option<&'a [f32]>,
    pub norm: Norm<'a>,
    pub eps: f32,
}

impl Work for AddNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Norm { weight, bias } = self.norm;
        let width = weight.len();
        let count = width as f32;
        for (x, more) in self.x.chunks_exact_mut(width).zip(self.more.chunks_exact(width)) {
            for (x, more) in x.iter_mut().zip(more) {
                *x += more;
            }
            if let Some(bias) = self.bias {
                for (x, bias) in x.iter_mut().zip(bias) {
                    *x += bias;
                }
            }
            let mean = sum(x) / count;
            for x in &mut *x {
                *x -= mean;
            }
            let factor = 1.0 / (squares(x) / count + self.eps).sqrt();
            for ((x, weight), bias) in x.iter_mut().zip(weight).zip(bias) {
                *x = *x * factor * weight + bias;
            }
        }
    }
}

/// The sum of squares, in sixteen parts that become one.
#[inline(always)]
fn squares(x: &[f32]) -> f32 {
    const WIDTH: usize = 16;
    let (parts, rest) = x.as_chunks::<WIDTH>();
    let mut squares = [0.0; WIDTH];
    for part in parts {
        for i in 0..WIDTH {
            squares[i] += part[i] * part[i];
        }
    }
    sum(&squares) + rest.iter().map(|x| x * x).sum::<f32>()
}

/// x = gelu(x + bias), row by row.
pub(super) struct Gelu<'a> {
    pub x: &'a mut [f32],
    pub bias: Option<&'a [f32]>,
    pub width: usize,
}

impl Work for Gelu<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for x in self.x.chunks_exact_mut(self.width) {
            if let Some(bias) = self.bias {
                for (x, bias) in x.iter_mut().zip(bias) {
                    *x = gelu(*x + bias);
                }
            } else {
                for x in x {
                    *x = gelu(*x);
                }
            }
        }
    }
}

/// x times the normal distribution's cumulative function, within 2e-6. Source: Hendrycks and Gimpel 2016, eq. 2.
///
/// The function less 1/2 is x times a polynomial of x^2, fitted by weighted least squares on |x| <= 5 until its errors
/// in the result were level; beyond, it is 0 or 1 as far as f32 tells. The polynomial's variable is scaled to -1..1.
#[inline(always)]
pub(super) fn gelu(x: f32) -> f32 {
    const REACH: f32 = 5.0;
    const TERMS: [f32; 13] = [
        5.223_499e-4,
        -1.552_096_7e-3,
        1.947_402_8e-3,
        -2.836_514_7e-3,
        6.197_383e-3,
        -1.103_162_3e-2,
        1.649_233_3e-2,
        -2.331_851_4e-2,
        3.142_565e-2,
        -4.043_517e-2,
        5.152_156_6e-2,
        -7.029_658e-2,
        0.141_363_78,
    ];
    let near = if x > REACH { REACH } else { x };
    let near = if near < -REACH { -REACH } else { near };
    let scaled = near * near * (2.0 / (REACH * REACH)) - 1.0;
    let mut p = TERMS[0];
    for term in &TERMS[1..] {
        p = p * scaled + term;
    }
    x * (0.5 + near * p)
}

/// vector = the mean of the rows of x, of length 1; of length 0 where the mean is nothing.
pub(super) struct Mean<'a> {
    pub x: &'a [f32],
    pub vector: &'a mut [f32],
}

impl Work for Mean<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        const LENGTH_MIN: f32 = 1e-12;
        let width = self.vector.len();
        self.vector.fill(0.0);
        for x in self.x.chunks_exact(width) {
            for (sum, x) in self.vector.iter_mut().zip(x) {
                *sum += x;
            }
        }
        let share = width as f32 / self.x.len() as f32;
        for value in &mut *self.vector {
            *value *= share;
        }
        let length = squares(self.vector).sqrt();
        let factor = 1.0 / if length < LENGTH_MIN { LENGTH_MIN } else { length };
        for value in &mut *self.vector {
            *value *= factor;
        }
    }
}
