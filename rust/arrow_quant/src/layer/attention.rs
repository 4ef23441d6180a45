//! One token's queries of a group of heads against the keys that they share.

use std::hint::black_box;

use super::maths::{exp, sum};
use crate::isa::Work;

/// out (g, head dim) = softmax(query keys^T / sqrt(head dim)) values, for g queries (g, head dim) and one key head.
pub(super) struct Attend<'a> {
    pub query: &'a [f32],
    pub keys: &'a [f32],
    pub values: &'a [f32],
    pub head_dim: usize,
    pub out: &'a mut [f32],
}

/// Scores that need no memory from the system: of as many tokens as most canvases have.
const SCORES: usize = 256;
/// Values of a head that are summed in registers.
const WIDE: usize = 64;

impl Work for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let factor = 1.0 / (self.head_dim as f32).sqrt();
        let count = self.keys.len() / self.head_dim;
        let (mut few, mut many) = ([0.0; SCORES], Vec::new());
        let scores = if count <= SCORES {
            &mut few[..count]
        } else {
            many.resize(count, 0.0);
            many.as_mut_slice()
        };
        let rows = self.query.chunks_exact(self.head_dim).zip(self.out.chunks_exact_mut(self.head_dim));
        for (query, out) in rows {
            for (score, key) in scores.iter_mut().zip(self.keys.chunks_exact(self.head_dim)) {
                *score = factor * dot(query, key);
            }
            let largest = scores.iter().fold(f32::NEG_INFINITY, |largest, score| largest.max(*score));
            for score in scores.iter_mut() {
                *score = exp(*score - largest);
            }
            let share = 1.0 / sum(scores);
            for score in scores.iter_mut() {
                *score *= share;
            }
            mix(scores, self.values, out);
        }
    }
}

/// out (head dim) = the sum of the rows of values, each times its share.
#[inline(always)]
fn mix(shares: &[f32], values: &[f32], out: &mut [f32]) {
    let head_dim = out.len();
    let (wide, rest) = out.as_chunks_mut::<WIDE>();
    let narrow = wide.len() * WIDE;
    for (part, out) in wide.iter_mut().enumerate() {
        let mut held = [0.0; WIDE];
        for (share, value) in shares.iter().zip(values.chunks_exact(head_dim)) {
            let value = &value.as_chunks::<WIDE>().0[part];
            for i in 0..WIDE {
                held[i] += share * value[i];
            }
        }
        *out = held;
    }
    rest.fill(0.0);
    for (share, value) in shares.iter().zip(values.chunks_exact(head_dim)) {
        for (out, value) in rest.iter_mut().zip(&value[narrow..]) {
            *out += share * value;
        }
    }
}

/// The sum of products, in sixteen parts.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const WIDTH: usize = 8;
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<{ 2 * WIDTH }>(), b.as_chunks::<{ 2 * WIDTH }>());
    let (mut even, mut odd) = ([0.0; WIDTH], [0.0; WIDTH]);
    for (a, b) in a.iter().zip(b) {
        for i in 0..WIDTH {
            even[i] += a[i] * b[i];
        }
        for i in 0..WIDTH {
            odd[i] += a[i + WIDTH] * b[i + WIDTH];
        }
    }
    for i in 0..WIDTH {
        even[i] += odd[i];
    }
    // Through memory: seeing how the parts are added, the compiler would keep them in pairs, and multiply in pairs.
    let sums = black_box(even);
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sum(&sums) + rest
}
