//! Queries of a group of heads against the keys that they share: one token's, or those of many tokens.

use std::hint::black_box;

use super::maths::{exp, sum};
use crate::attention::{LANES, QUERIES, product, softmax, turn};
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

/// What one thread's tiles work in.
#[derive(Default)]
pub(super) struct Room {
    keys: Vec<f32>,
    values: Vec<f32>,
    scores: Vec<f32>,
    mixed: Vec<f32>,
}

/// The same as `Attend` for the tokens of a piece, of which token i sees the first `seen[i]` keys.
///
/// query (tokens, stride) holds the g queries of a token at its beginning, and so does out (tokens, g, head dim).
pub(super) struct AttendMany<'a> {
    pub query: &'a [f32],
    pub stride: usize,
    pub group: usize,
    pub keys: &'a [f32],
    pub values: &'a [f32],
    pub head_dim: usize,
    pub seen: &'a [usize],
    pub room: &'a mut Room,
    pub out: &'a mut [f32],
}

impl Work for AttendMany<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let AttendMany { query, stride, group, keys, values, head_dim, seen, room, out } = self;
        let all = keys.len() / head_dim;
        let (padded, wide) = (all.next_multiple_of(LANES), head_dim.next_multiple_of(LANES));
        room.keys.resize(head_dim * padded, 0.0);
        turn(keys, head_dim, head_dim, &mut room.keys);
        let values = if wide == head_dim { values } else { widened(values, head_dim, wide, &mut room.values) };
        room.scores.resize(QUERIES * padded, 0.0);
        room.mixed.resize(QUERIES * wide, 0.0);
        let factor = 1.0 / (head_dim as f32).sqrt();
        let rows = seen.len() * group;
        for (tile, out) in out.chunks_mut(QUERIES * head_dim).enumerate() {
            // Where fewer rows are left, the last one stands in for the missing ones.
            let row = |at: usize| (tile * QUERIES + at).min(rows - 1);
            let queries: [&[f32]; QUERIES] = std::array::from_fn(|at| {
                &query[row(at) / group * stride + row(at) % group * head_dim..][..head_dim]
            });
            let reach: [usize; QUERIES] = std::array::from_fn(|at| seen[row(at) / group]);
            let most = reach.iter().fold(0, |most, &seen| most.max(seen));
            let used = most.next_multiple_of(LANES);
            for column in (0..used).step_by(LANES) {
                let sums = product(queries, &room.keys, padded, column);
                for (sums, scores) in sums.iter().zip(room.scores.chunks_exact_mut(padded)) {
                    for (score, sum) in scores[column..column + LANES].iter_mut().zip(sums) {
                        *score = sum * factor;
                    }
                }
            }
            let mut shares = [0.0; QUERIES];
            for ((share, scores), seen) in shares.iter_mut().zip(room.scores.chunks_exact_mut(padded)).zip(reach) {
                scores[seen..used].fill(f32::MIN);
                *share = 1.0 / softmax(&mut scores[..used]);
            }
            let weights: [&[f32]; QUERIES] = std::array::from_fn(|at| &room.scores[at * padded..][..most]);
            for column in (0..wide).step_by(LANES) {
                let sums = product(weights, values, wide, column);
                for ((sums, share), mixed) in sums.iter().zip(shares).zip(room.mixed.chunks_exact_mut(wide)) {
                    for (mixed, sum) in mixed[column..column + LANES].iter_mut().zip(sums) {
                        *mixed = sum * share;
                    }
                }
            }
            for (out, mixed) in out.chunks_exact_mut(head_dim).zip(room.mixed.chunks_exact(wide)) {
                out.copy_from_slice(&mixed[..head_dim]);
            }
        }
    }
}

/// The rows of values with zeros behind each of them.
#[inline(always)]
fn widened<'a>(values: &[f32], head_dim: usize, wide: usize, into: &'a mut Vec<f32>) -> &'a [f32] {
    into.resize(values.len() / head_dim * wide, 0.0);
    for (into, value) in into.chunks_exact_mut(wide).zip(values.chunks_exact(head_dim)) {
        into[..head_dim].copy_from_slice(value);
        into[head_dim..].fill(0.0);
    }
    into
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
