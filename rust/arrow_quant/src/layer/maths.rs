//! The small operators between the products of a layer.

use crate::isa::Work;

/// out = x / rms(x) * weight, row by row. Source: Zhang and Sennrich 2019, eq. 4.
pub(super) struct Norm<'a> {
    pub x: &'a [f32],
    pub weight: &'a [f32],
    pub eps: f32,
    pub out: &'a mut [f32],
}

impl Work for Norm<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let width = self.weight.len();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let factor = factor(x, self.eps);
            for ((out, x), weight) in out.iter_mut().zip(x).zip(self.weight) {
                *out = x * factor * weight;
            }
        }
    }
}

/// `Norm` of each head, in place.
pub(super) struct NormHeads<'a> {
    pub x: &'a mut [f32],
    pub weight: &'a [f32],
    pub eps: f32,
}

impl Work for NormHeads<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for x in self.x.chunks_exact_mut(self.weight.len()) {
            let factor = factor(x, self.eps);
            for (x, weight) in x.iter_mut().zip(self.weight) {
                *x *= factor * weight;
            }
        }
    }
}

#[inline(always)]
fn factor(x: &[f32], eps: f32) -> f32 {
    const WIDTH: usize = 16;
    let (parts, rest) = x.as_chunks::<WIDTH>();
    let mut squares = [0.0; WIDTH];
    for part in parts {
        for i in 0..WIDTH {
            squares[i] += part[i] * part[i];
        }
    }
    let rest: f32 = rest.iter().map(|x| x * x).sum();
    1.0 / ((sum(&squares) + rest) / x.len() as f32 + eps).sqrt()
}

/// Rotates the heads of x (s, heads, head dim) by the angles of each token's position.
pub(super) struct Rotate<'a> {
    pub x: &'a mut [f32],
    pub cos: &'a [f32],
    pub sin: &'a [f32],
    pub head_dim: usize,
}

impl Work for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let tokens = self.cos.len() / self.head_dim;
        if tokens == 0 {
            return;
        }
        let width = self.x.len() / tokens;
        let half = self.head_dim / 2;
        let angles = self.cos.chunks_exact(self.head_dim).zip(self.sin.chunks_exact(self.head_dim));
        for (token, (cos, sin)) in self.x.chunks_exact_mut(width).zip(angles) {
            let ((cos_a, cos_b), (sin_a, sin_b)) = (cos.split_at(half), sin.split_at(half));
            for head in token.chunks_exact_mut(self.head_dim) {
                let (first, second) = head.split_at_mut(half);
                for i in 0..half {
                    let (a, b) = (first[i], second[i]);
                    first[i] = a * cos_a[i] - b * sin_a[i];
                    second[i] = b * cos_b[i] + a * sin_b[i];
                }
            }
        }
    }
}

/// gate = silu(gate) * up. Source: Shazeer 2020, "GLU variants improve transformer", eq. 6.
pub(super) struct Gate<'a> {
    pub gate: &'a mut [f32],
    pub up: &'a [f32],
}

impl Work for Gate<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (gate, up) in self.gate.iter_mut().zip(self.up) {
            *gate = *gate / (1.0 + exp(-*gate)) * up;
        }
    }
}

/// x += more.
pub(super) struct Add<'a> {
    pub x: &'a mut [f32],
    pub more: &'a [f32],
}

impl Work for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (x, more) in self.x.iter_mut().zip(self.more) {
            *x += more;
        }
    }
}

/// The sum, in eight parts that become one.
#[inline(always)]
pub(crate) fn sum(values: &[f32]) -> f32 {
    let (parts, rest) = values.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for part in parts {
        for i in 0..8 {
            sums[i] += part[i];
        }
    }
    let four = [sums[0] + sums[4], sums[1] + sums[5], sums[2] + sums[6], sums[3] + sums[7]];
    (four[0] + four[2]) + (four[1] + four[3]) + rest.iter().sum::<f32>()
}

/// e^x within two units in the last place, without a branch; NaN stays NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, e^r by its series; 2^n by halves, so that neither end leaves f32 early.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -104.0; // below, the result is zero
    const HIGHEST: f32 = 89.0; // above, it is infinite
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves no room for a fraction
    const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4); // the first with few bits, so that n times it is exact
    let bounded = if x < LOWEST { LOWEST } else { x };
    let bounded = if bounded > HIGHEST { HIGHEST } else { bounded };
    let n = (bounded * std::f32::consts::LOG2_E + SHIFT) - SHIFT;
    let r = bounded - n * LN_2.0 - n * LN_2.1;
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    let n = (n + SHIFT).to_bits() as i32 - SHIFT.to_bits() as i32;
    let (low, high) = (n >> 1, n - (n >> 1));
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32).wrapping_shl(23));
    p * power(low) * power(high)
}
