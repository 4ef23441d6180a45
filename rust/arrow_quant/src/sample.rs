//! What rows of logits say: how sure their best token is, how open they are, and a draw from them.
//!
//! One token is barred: its probability is 0, whatever its logit. A row is read twice and nothing of its size is
//! written but the weights of one row, which stay in the cache.

use crate::fault::{Fault, length};
use crate::isa::{Work, fastest};
use crate::layer::maths::{exp, sum};
use crate::matmul::{each_chunk, worth};

/// Logits that make a second thread worth waking: some 10 us of them.
const LOGITS_PER_THREAD: usize = 1 << 15;
/// Logits whose weights are added in f32.
const BLOCK: usize = 512;
/// What the exponential takes for zero: below, a weight and its share of the entropy are none.
const LOWEST: f32 = -104.0;

/// Some rows of logits (n, columns), in the order in which they are asked for.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    logits: &'a [f32],
    columns: usize,
    asked: &'a [i64],
    barred: usize,
}

impl<'a> Rows<'a> {
    /// The rows `asked` of row-major `logits`, without the token `barred`.
    pub fn new(logits: &'a [f32], columns: usize, asked: &'a [i64], barred: usize) -> Result<Self, Fault> {
        if columns == 0 || !logits.len().is_multiple_of(columns) {
            return Err(Fault::Shape("logits are whole rows of at least one column"));
        }
        let rows = logits.len() / columns;
        if let Some(&id) = asked.iter().find(|&&id| !usize::try_from(id).is_ok_and(|id| id < rows)) {
            return Err(Fault::Row { id, rows });
        }
        Ok(Rows { logits, columns, asked, barred })
    }

    fn row(&self, at: usize) -> &'a [f32] {
        let row = usize::try_from(self.asked[at]).unwrap_or_default();
        &self.logits[row * self.columns..][..self.columns]
    }

    /// Writes what `ask` says of each row.
    fn each<T: Copy + Send + PartialEq>(
        &self,
        out: &mut [T],
        refused: T,
        threads: usize,
        ask: impl Fn(usize, &mut Weights) -> T + Sync,
    ) -> Result<(), Fault> {
        length("what is asked", self.asked.len(), out.len())?;
        if out.is_empty() {
            return Ok(());
        }
        let size = (LOGITS_PER_THREAD / 4).div_ceil(self.columns);
        each_chunk(out, size, worth(self.asked.len() * self.columns, LOGITS_PER_THREAD, threads), |chunk, out| {
            let mut weights = Weights::default();
            for (at, out) in out.iter_mut().enumerate() {
                *out = ask(chunk * size + at, &mut weights);
            }
        });
        if out.contains(&refused) {
            return Err(Fault::Shape("a row of logits allows no token, or holds what is no number"));
        }
        Ok(())
    }

    /// Writes the log-probability of each row's likeliest token.
    pub fn best(&self, out: &mut [f32], threads: usize) -> Result<(), Fault> {
        self.each(out, f32::INFINITY, threads, |at, weights| {
            weights.weigh(self, at, 1.0);
            if weights.usable() { -weights.total.ln() as f32 } else { f32::INFINITY }
        })
    }

    /// Writes the entropy of each row in nats.
    pub fn entropy(&self, out: &mut [f32], threads: usize) -> Result<(), Fault> {
        self.each(out, f32::INFINITY, threads, |at, weights| {
            weights.weigh(self, at, 1.0);
            if !weights.usable() {
                return f32::INFINITY;
            }
            let spread = fastest(Spread { row: self.row(at), weights });
            (weights.total.ln() - spread / weights.total).max(0.0) as f32
        })
    }

    /// Draws a token from each row, its logits divided by `temperature`; at 0 the likeliest one, of equals the first.
    ///
    /// uniforms: a number of [0, 1) for each row; the token is the one at whose place in the distribution it lies.
    pub fn draw(&self, temperature: f32, uniforms: &[f64], out: &mut [i64], threads: usize) -> Result<(), Fault> {
        length("the uniform numbers", self.asked.len(), uniforms.len())?;
        if temperature.is_nan() || uniforms.iter().any(|uniform| !(0.0..1.0).contains(uniform)) {
            return Err(Fault::Shape("a temperature is a number, and uniform numbers lie in [0, 1)"));
        }
        let inverse = Some(1.0 / temperature).filter(|inverse| *inverse > 0.0 && inverse.is_finite());
        self.each(out, -1, threads, |at, weights| {
            weights.weigh(self, at, inverse.unwrap_or(1.0));
            if !weights.usable() {
                return -1;
            }
            let likeliest = || weights.first(self.row(at), self.barred);
            inverse.map_or_else(likeliest, |_| weights.place(uniforms[at])) as i64
        })
    }
}

/// The weights of one row's tokens, e^((x - largest) / temperature), and what they add up to.
#[derive(Default)]
struct Weights {
    each: Vec<f32>,
    /// The sums of blocks.
    blocks: Vec<f32>,
    largest: f32,
    total: f64,
}

impl Weights {
    fn weigh(&mut self, rows: &Rows<'_>, at: usize, inverse: f32) {
        self.each.resize(rows.columns, 0.0);
        self.blocks.resize(rows.columns.div_ceil(BLOCK), 0.0);
        let row = rows.row(at);
        let (before, behind) = row.split_at(rows.barred.min(row.len()));
        let largest = fastest(Largest { row: before }).max(fastest(Largest { row: behind.get(1..).unwrap_or_default() }));
        self.largest = largest;
        fastest(Weigh { row, largest, inverse, each: &mut self.each });
        if let Some(weight) = self.each.get_mut(rows.barred) {
            *weight = 0.0;
        }
        fastest(Sums { each: &self.each, blocks: &mut self.blocks });
        self.total = self.blocks.iter().map(|&block| f64::from(block)).sum();
    }

    /// Whether there is a distribution: the largest weight is 1, and no weight is more.
    fn usable(&self) -> bool {
        self.largest.is_finite() && self.total.is_finite() && self.total > 0.0
    }

    /// The token at whose place `uniform` lies.
    fn place(&self, uniform: f64) -> usize {
        let mut left = uniform * self.total;
        let mut block = 0;
        while block + 1 < self.blocks.len() && left >= f64::from(self.blocks[block]) {
            left -= f64::from(self.blocks[block]);
            block += 1;
        }
        let mut last = None;
        for (at, &weight) in self.each.iter().enumerate().skip(block * BLOCK) {
            if weight > 0.0 {
                last = Some(at);
                if left < f64::from(weight) {
                    return at;
                }
                left -= f64::from(weight);
            }
        }
        // Rounding has left something over: the last token that has a weight.
        last.or_else(|| self.each.iter().rposition(|&weight| weight > 0.0)).unwrap_or_default()
    }

    /// The first token of the largest logit.
    fn first(&self, row: &[f32], barred: usize) -> usize {
        row.iter().enumerate().position(|(at, &x)| x == self.largest && at != barred).unwrap_or_default()
    }
}

/// The largest of a row, which a NaN is not.
struct Largest<'a> {
    row: &'a [f32],
}

impl Work for Largest<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        const WIDTH: usize = 32;
        let (parts, rest) = self.row.as_chunks::<WIDTH>();
        let mut largest = [f32::NEG_INFINITY; WIDTH];
        for part in parts {
            for i in 0..WIDTH {
                largest[i] = if part[i] > largest[i] { part[i] } else { largest[i] };
            }
        }
        largest.iter().chain(rest).fold(f32::NEG_INFINITY, |largest, &x| if x > largest { x } else { largest })
    }
}

struct Weigh<'a> {
    row: &'a [f32],
    largest: f32,
    inverse: f32,
    each: &'a mut [f32],
}

impl Work for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (weight, &x) in self.each.iter_mut().zip(self.row) {
            *weight = exp((x - self.largest) * self.inverse);
        }
    }
}

struct Sums<'a> {
    each: &'a [f32],
    blocks: &'a mut [f32],
}

impl Work for Sums<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (block, each) in self.blocks.iter_mut().zip(self.each.chunks(BLOCK)) {
            *block = sum(each);
        }
    }
}

/// The sum of weights times how far their logits lie below the largest one, which is no more than 0.
struct Spread<'a> {
    row: &'a [f32],
    weights: &'a Weights,
}

impl Work for Spread<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let Spread { row, weights } = self;
        let mut total = 0.0;
        for (row, each) in row.chunks(BLOCK).zip(weights.each.chunks(BLOCK)) {
            let mut terms = [0.0; BLOCK];
            for ((term, &x), &weight) in terms.iter_mut().zip(row).zip(each) {
                let below = x - weights.largest;
                let below = if below > LOWEST { below } else { LOWEST };
                *term = weight * below;
            }
            total += f64::from(sum(&terms));
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: usize = 1301;
    const BARRED: usize = 3;

    fn logits(rows: usize) -> Vec<f32> {
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f32 / (1u32 << 31) as f32
        };
        (0..rows * COLUMNS).map(|_| 12.0 * next() - 6.0).collect()
    }

    /// Probabilities of a row, in f64.
    fn shares(row: &[f32], temperature: f64) -> Vec<f64> {
        let weight = |(at, x): (usize, &f32)| if at == BARRED { 0.0 } else { (f64::from(*x) / temperature).exp() };
        let weights: Vec<f64> = row.iter().enumerate().map(weight).collect();
        let total: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / total).collect()
    }

    #[test]
    fn the_best_and_the_entropy_are_those_of_the_distribution() {
        let (logits, asked) = (logits(5), [4, 0, 2]);
        let rows = Rows::new(&logits, COLUMNS, &asked, BARRED).unwrap();
        let (mut best, mut entropy) = ([0.0; 3], [0.0; 3]);
        rows.best(&mut best, 3).unwrap();
        rows.entropy(&mut entropy, 1).unwrap();
        for (at, &row) in asked.iter().enumerate() {
            let shares = shares(&logits[row as usize * COLUMNS..][..COLUMNS], 1.0);
            let largest = shares.iter().fold(0.0, |a: f64, &b| a.max(b));
            let nats: f64 = shares.iter().filter(|&&p| p > 0.0).map(|p| -p * p.ln()).sum();
            assert!((f64::from(best[at]) - largest.ln()).abs() < 1e-5);
            assert!((f64::from(entropy[at]) - nats).abs() < 1e-4 * nats);
        }
    }

    #[test]
    fn a_draw_is_the_token_at_whose_place_the_uniform_number_lies() {
        let logits = logits(1);
        let uniforms: Vec<f64> = (0..997).map(|i| f64::from(i) / 997.0).collect();
        let asked = vec![0; uniforms.len()];
        let mut drawn = vec![0; uniforms.len()];
        let rows = Rows::new(&logits, COLUMNS, &asked, BARRED).unwrap();
        for temperature in [0.3, 1.0, 2.5] {
            rows.draw(temperature, &uniforms, &mut drawn, 2).unwrap();
            let shares = shares(&logits, f64::from(temperature));
            let mut known = vec![0.0; COLUMNS + 1];
            for (at, share) in shares.iter().enumerate() {
                known[at + 1] = known[at] + share;
            }
            for (uniform, &token) in uniforms.iter().zip(&drawn) {
                let token = token as usize;
                assert_ne!(token, BARRED);
                assert!(known[token] - 1e-5 <= *uniform && *uniform <= known[token + 1] + 1e-5);
            }
        }
    }

    #[test]
    fn without_temperature_the_first_of_the_likeliest_is_drawn_and_never_the_barred_one() {
        let mut logits = vec![0.0; 8];
        (logits[BARRED], logits[5], logits[6]) = (9.0, 2.0, 2.0);
        let mut drawn = [0];
        Rows::new(&logits, 8, &[0], BARRED).unwrap().draw(0.0, &[0.9], &mut drawn, 1).unwrap();
        assert_eq!(drawn, [5]);
        logits.fill(f32::NEG_INFINITY);
        logits[7] = -1e30;
        Rows::new(&logits, 8, &[0], BARRED).unwrap().draw(1.0, &[0.999_999], &mut drawn, 1).unwrap();
        assert_eq!(drawn, [7]);
    }

    #[test]
    fn rows_without_a_distribution_are_refused() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut logits = vec![0.0; 8];
            logits[2] = bad;
            let rows = Rows::new(&logits, 8, &[0], BARRED).unwrap();
            assert!(rows.best(&mut [0.0], 1).is_err() && rows.entropy(&mut [0.0], 1).is_err());
            assert!(rows.draw(1.0, &[0.5], &mut [0], 1).is_err());
        }
        let barred = [f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY, 1.0];
        assert!(Rows::new(&barred, 4, &[0], 3).unwrap().best(&mut [0.0], 1).is_err());
        assert!(Rows::new(&barred, 4, &[1], 3).is_err() && Rows::new(&barred, 4, &[-1], 3).is_err());
        assert!(Rows::new(&barred, 3, &[0], 3).is_err() && Rows::new(&[], 0, &[], 3).is_err());
        let rows = Rows::new(&barred, 4, &[0], 0).unwrap();
        assert!(rows.draw(1.0, &[1.0], &mut [0], 1).is_err() && rows.draw(f32::NAN, &[0.5], &mut [0], 1).is_err());
        assert!(rows.draw(1.0, &[], &mut [0], 1).is_err() && rows.best(&mut [], 1).is_err());
    }

    #[test]
    fn any_number_of_threads_draws_alike() {
        let logits = logits(64);
        let asked: Vec<i64> = (0..64).collect();
        let uniforms: Vec<f64> = (0..64).map(|i| f64::from(i) / 64.0).collect();
        let rows = Rows::new(&logits, COLUMNS, &asked, BARRED).unwrap();
        let (mut one, mut three) = (vec![0; 64], vec![0; 64]);
        rows.draw(0.7, &uniforms, &mut one, 1).unwrap();
        rows.draw(0.7, &uniforms, &mut three, 3).unwrap();
        assert_eq!(one, three);
    }
}
