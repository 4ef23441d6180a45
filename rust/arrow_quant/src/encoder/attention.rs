//! Attention of a few neighbouring tokens over their whole text.

use crate::attention::{LANES, QUERIES, product, softmax, turn};
use crate::isa::Work;


/// Puts the keys of a text in the order in which scores read them: keys [hidden][tokens], padded with zeros.
pub(super) struct Turn<'a> {
    pub wide: &'a [f32],
    pub hidden: usize,
    pub keys: &'a mut [f32],
}

impl Work for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        turn(&self.wide[self.hidden..], 3 * self.hidden, self.hidden, self.keys);
    }
}

/// out (at most 4, hidden) = softmax(q k^T / sqrt(head dim)) v, head by head, for the tokens of a text from `first` on.
///
/// wide (tokens, 3 hidden): queries, keys and values of the text.
pub(super) struct Attend<'a> {
    pub wide: &'a [f32],
    pub keys: &'a [f32],
    pub first: usize,
    pub hidden: usize,
    pub head_dim: usize,
    pub scores: &'a mut Vec<f32>,
    pub out: &'a mut [f32],
}

impl Work for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Attend { wide, keys, first, hidden, head_dim, scores, out } = self;
        let (tokens, padded) = (wide.len() / (3 * hidden), keys.len() / hidden);
        scores.resize(QUERIES * padded, 0.0);
        let rows = out.len() / hidden;
        let factor = 1.0 / (head_dim as f32).sqrt();
        // Where fewer tokens are left, the last one stands in for the missing ones.
        let token = |row: usize| first + row.min(rows - 1);
        for head in (0..hidden).step_by(head_dim) {
            let queries: [&[f32]; QUERIES] =
                std::array::from_fn(|row| &wide[token(row) * 3 * hidden + head..][..head_dim]);
            let keys = &keys[head * padded..][..head_dim * padded];
            for part in 0..padded / LANES {
                let sums = product(queries, keys, padded, part * LANES);
                for (sums, scores) in sums.iter().zip(scores.chunks_exact_mut(padded)) {
                    for (score, sum) in scores.as_chunks_mut::<LANES>().0[part].iter_mut().zip(sums) {
                        *score = sum * factor;
                    }
                }
            }
            let mut shares = [0.0; QUERIES];
            for (share, scores) in shares.iter_mut().zip(scores.chunks_exact_mut(padded)) {
                scores[tokens..].fill(f32::MIN);
                *share = 1.0 / softmax(scores);
            }
            let weights: [&[f32]; QUERIES] = std::array::from_fn(|row| &scores[row * padded..][..tokens]);
            let values = &wide[2 * hidden + head..];
            for part in 0..head_dim / LANES {
                let sums = product(weights, values, 3 * hidden, part * LANES);
                let mixed = out.chunks_exact_mut(hidden).zip(sums.iter().zip(shares));
                for (out, (sums, share)) in mixed {
                    for (out, sum) in out[head..].as_chunks_mut::<LANES>().0[part].iter_mut().zip(sums) {
                        *out = sum * share;
                    }
                }
            }
        }
    }
}
