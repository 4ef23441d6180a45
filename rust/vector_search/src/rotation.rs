//! A fixed random rotation: afterwards the coordinates of any vector spread like Gaussian ones, so that one uniform
//! grid of 16 steps suits them all and errors do not line up with a query.
//!
//! Signs, then a Walsh-Hadamard transform over the first and over the last power of two of coordinates, several times.
//! Source: Ailon and Chazelle, "The fast Johnson-Lindenstrauss transform" (2009); Gao and Long, RaBitQ (2024).

/// Rounds after which every coordinate has met every other, whatever the dimension.
const ROUNDS: usize = 3;
/// Part of the file format: codes made with other signs mean something else.
const SEED: u64 = 0x5EED_0F51_6E5A_1052;

/// The rotation of vectors of one dimension.
pub(crate) struct Rotation {
    /// `ROUNDS` times one sign a coordinate.
    signs: Vec<f32>,
    /// The largest power of two that is not above the dimension.
    power: usize,
    dim: usize,
}

impl Rotation {
    pub(crate) fn new(dim: usize) -> Self {
        let power = 1 << dim.ilog2();
        let mut state = SEED;
        let signs =
            (0..ROUNDS * dim).map(|_| if splitmix(&mut state) >> 63 == 0 { 1.0 } else { -1.0 }).collect();
        Rotation { signs, power, dim }
    }

    /// Turns `x` (dim) in place; lengths and angles stay.
    #[inline(always)]
    pub(crate) fn apply(&self, x: &mut [f32]) {
        for signs in self.signs.chunks_exact(self.dim) {
            for (x, sign) in x.iter_mut().zip(signs) {
                *x *= sign;
            }
            hadamard(&mut x[..self.power]);
            if self.power < self.dim {
                hadamard(&mut x[self.dim - self.power..]);
            }
        }
    }
}

/// The transform in place; its length of 2^n keeps lengths.
#[inline(always)]
fn hadamard(x: &mut [f32]) {
    const BLOCK: usize = 16;
    let mut half = 1;
    let (blocks, rest) = x.as_chunks_mut::<BLOCK>();
    if rest.is_empty() {
        // The short strides within registers.
        for block in blocks {
            for stride in [1, 2, 4, 8] {
                let old = *block;
                for at in 0..BLOCK {
                    let other = old[at ^ stride];
                    block[at] = if at & stride == 0 { old[at] + other } else { other - old[at] };
                }
            }
        }
        half = BLOCK;
    }
    while half < x.len() {
        for pair in x.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let scale = 1.0 / (x.len() as f32).sqrt();
    for x in x {
        *x *= scale;
    }
}

/// The next of a sequence of well mixed numbers. Source: Steele, Lea, Flood (2014).
pub(crate) fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mix(*state)
}

/// The mixing of splitmix64.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_keeps_lengths_and_spreads_a_single_coordinate() {
        for dim in [1, 2, 3, 7, 64, 96, 100, 384, 768, 1000] {
            let rotation = Rotation::new(dim);
            for at in [0, dim / 2, dim - 1] {
                let mut x = vec![0.0; dim];
                x[at] = 1.0;
                rotation.apply(&mut x);
                let length: f32 = x.iter().map(|x| x * x).sum();
                assert!((length - 1.0).abs() < 1e-4, "{dim} {at} {length}");
                if dim >= 64 {
                    assert!(x.iter().all(|x| x.abs() < 6.0 / (dim as f32).sqrt()), "{dim} {at}");
                }
            }
        }
    }
}
