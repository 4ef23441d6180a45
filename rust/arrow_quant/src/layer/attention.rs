//! One token's queries of a group of heads against the keys that they share.

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

impl Work for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let factor = 1.0 / (self.head_dim as f32).sqrt();
        let count = self.keys.len() / self.head_dim;
        let mut scores = vec![0.0; count];
        let rows = self.query.chunks_exact(self.head_dim).zip(self.out.chunks_exact_mut(self.head_dim));
        for (query, out) in rows {
            for (score, key) in scores.iter_mut().zip(self.keys.chunks_exact(self.head_dim)) {
                *score = factor * dot(query, key);
            }
            let largest = scores.iter().fold(f32::NEG_INFINITY, |largest, score| largest.max(*score));
            for score in &mut scores {
                *score = exp(*score - largest);
            }
            let share = 1.0 / sum(&scores);
            out.fill(0.0);
            for (score, value) in scores.iter().zip(self.values.chunks_exact(self.head_dim)) {
                let share = share * score;
                for (out, value) in out.iter_mut().zip(value) {
                    *out += share * value;
                }
            }
        }
    }
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const WIDTH: usize = 16;
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<WIDTH>(), b.as_chunks::<WIDTH>());
    let mut sums = [0.0; WIDTH];
    for (a, b) in a.iter().zip(b) {
        for i in 0..WIDTH {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sum(&sums) + rest
}
