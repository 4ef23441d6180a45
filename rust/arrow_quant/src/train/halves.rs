//! Weight gradients: sums over tokens of two activations, as integers of 12 bits with a scale for each column and 512
//! tokens.
//!
//! A sum of products over tokens cannot take out a scale of each token. Over a round of tokens it can take out one of
//! each column; 512 products of such integers fit a word, so that sums are exact, and sums of rounds are f32. Rounding
//! to 1/2047 of a column's largest value lies far below the noise of a gradient.
//! Source: Drumond et al. 2018, "Training DNNs with hybrid block floating point".

#![allow(unsafe_code)]

use std::ops::Range;

use super::pack::{magnitude, nearest, scale_of};
use super::{WIDTH, foresee};
use crate::isa::{Work, fastest};
use crate::matmul::Isa;

/// Tokens that share a scale: 512 * 2047^2 < 2^31.
pub(super) const TOKENS: usize = 512;
const PAIRS: usize = TOKENS / 2;
/// The largest integer; the smallest is its negative.
const LEVELS: f32 = 2047.0;
/// Rows of a tile: with two vectors of columns its sums take twelve of sixteen registers.
const HEIGHT: usize = 6;
/// Rows of a weight gradient that one thread takes at a time: their integers take 48 KiB of its second-level cache.
pub(super) const ROWS: usize = 8 * HEIGHT;
/// Panels that are made at a time: what lies side by side shares cache lines and pages.
pub(super) const PANELS: usize = 4;

type Sums = [[i32; WIDTH]; HEIGHT];

/// Words of a panel's columns, on a cache line of their own: a load across two of them takes twice as long.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
pub(super) struct Line([u32; WIDTH]);

/// Words of a pair of tokens for the rows of a tile.
type Words = [u32; HEIGHT];

/// The integers of some columns of g in one round, strip after strip of `PAIRS` words, and their scales.
pub(super) struct Columns {
    words: Vec<Words>,
    scales: [f32; ROWS],
}

impl Default for Columns {
    fn default() -> Self {
        Columns { words: vec![Words::default(); ROWS / HEIGHT * PAIRS], scales: [0.0; ROWS] }
    }
}

/// Some columns, from `first` on, of some tokens of a row-major matrix.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    /// Whole tokens, at most `TOKENS`.
    pub values: &'a [f32],
    pub columns: usize,
    pub first: usize,
}

impl Part<'_> {
    /// Sixteen values of a token from this column on; zeros where there are none.
    #[inline(always)]
    fn values(&self, token: usize, column: usize) -> [f32; WIDTH] {
        let row = self.values.get(token * self.columns..(token + 1) * self.columns).unwrap_or(&[]);
        let row = row.get(column..).unwrap_or(&[]);
        row.first_chunk().copied().unwrap_or_else(|| {
            let mut values = [0.0; WIDTH];
            values[..row.len()].copy_from_slice(row);
            values
        })
    }

    /// The scale of each of N times sixteen columns, and its inverse.
    #[inline(always)]
    fn scales<const N: usize>(&self) -> [([f32; WIDTH], [f32; WIDTH]); N] {
        let mut largest = [[0; WIDTH]; N];
        for token in 0..self.values.len() / self.columns {
            for (at, largest) in largest.iter_mut().enumerate() {
                let values = self.values(token, self.first + at * WIDTH);
                for i in 0..WIDTH {
                    largest[i] = magnitude(values[i]).max(largest[i]);
                }
            }
        }
        largest.map(|largest| {
            let (mut scales, mut inverses) = ([0.0; WIDTH], [0.0; WIDTH]);
            for i in 0..WIDTH {
                (scales[i], inverses[i]) = scale_of(f32::from_bits(largest[i]), LEVELS);
            }
            (scales, inverses)
        })
    }

    /// Words of a pair of tokens.
    #[inline(always)]
    fn words(&self, pair: usize, column: usize, inverses: &[f32; WIDTH]) -> [u32; WIDTH] {
        let (even, odd) = (self.values(2 * pair, column), self.values(2 * pair + 1, column));
        let mut words = [0; WIDTH];
        for i in 0..WIDTH {
            words[i] = nearest(even[i] * inverses[i], 0) & 0xffff | nearest(odd[i] * inverses[i], 0) << 16;
        }
        words
    }

    /// How many pairs of tokens there are.
    fn pairs(&self) -> usize {
        (self.values.len() / self.columns).div_ceil(2)
    }

    /// Lines of a panel: one for each pair of tokens, and the scales.
    pub fn lines(&self) -> usize {
        self.pairs() + 1
    }
}

/// Makes panels of x.
pub(super) fn panels(x: Part<'_>, lines: &mut [Line]) {
    fastest(MakePanels { x, lines });
}

struct MakePanels<'a> {
    x: Part<'a>,
    lines: &'a mut [Line],
}

impl Work for MakePanels<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let MakePanels { x, lines } = self;
        let scales = x.scales::<PANELS>();
        let (count, pairs) = (x.lines(), x.pairs());
        for pair in 0..pairs {
            for (at, panel) in lines.chunks_exact_mut(count).enumerate() {
                panel[pair].0 = x.words(pair, x.first + at * WIDTH, &scales[at].1);
            }
        }
        for (panel, (scales, _)) in lines.chunks_exact_mut(count).zip(&scales) {
            panel[pairs].0 = scales.map(f32::to_bits);
        }
    }
}

struct MakeColumns<'a> {
    g: Part<'a>,
    into: &'a mut Columns,
}

impl Work for MakeColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let MakeColumns { g, into } = self;
        let scales = g.scales::<{ ROWS / WIDTH }>();
        for pair in 0..g.pairs() {
            let mut words = [0; ROWS];
            for (at, words) in words.as_chunks_mut().0.iter_mut().enumerate() {
                *words = g.words(pair, g.first + at * WIDTH, &scales[at].1);
            }
            for (strip, words) in words.as_chunks().0.iter().enumerate() {
                into.words[strip * PAIRS + pair] = *words;
            }
        }
        for (into, (scales, _)) in into.scales.as_chunks_mut().0.iter_mut().zip(&scales) {
            *into = *scales;
        }
    }
}

/// Adds to some rows of out (n, k) the products of a round's columns of g with all panels of x, or begins with them.
pub(super) fn rows(
    isa: Isa,
    g: Part<'_>,
    columns: &mut Columns,
    lines: &[Line],
    begin: bool,
    k: usize,
    out: &mut [f32],
) {
    fastest(MakeColumns { g, into: columns });
    let rows = Rows { columns, lines, pairs: g.pairs(), begin, k };
    #[cfg(target_arch = "x86_64")]
    if isa.name() == "avx2" {
        // SAFETY: an `Isa` of this name comes from `reachable` only, which found avx2.
        return unsafe { rows.add_avx2(out) };
    }
    rows.add(out, portable);
}

struct Rows<'a> {
    columns: &'a Columns,
    lines: &'a [Line],
    pairs: usize,
    begin: bool,
    k: usize,
}

impl Rows<'_> {
    #[inline(always)]
    fn add(&self, out: &mut [f32], tile: impl Fn(&[Words], &[Line], &mut Sums)) {
        let mut sums = [[0; WIDTH]; HEIGHT];
        for (panel, lines) in self.lines.chunks_exact(self.pairs + 1).enumerate() {
            let scales = lines[self.pairs].0.map(f32::from_bits);
            let columns = panel * WIDTH..self.k.min((panel + 1) * WIDTH);
            let of_strips = self.columns.scales.as_chunks::<HEIGHT>().0;
            let strips = self.columns.words.chunks_exact(PAIRS).zip(of_strips);
            for (out, (words, of_strip)) in out.chunks_mut(HEIGHT * self.k).zip(strips) {
                foresee(out, self.k, columns.start);
                tile(&words[..self.pairs], &lines[..self.pairs], &mut sums);
                for ((out, sums), scale) in out.chunks_exact_mut(self.k).zip(&sums).zip(of_strip) {
                    self.finish(sums, *scale, &scales, columns.clone(), out);
                }
            }
        }
    }

    #[inline(always)]
    fn finish(
        &self,
        sums: &[i32; WIDTH],
        scale: f32,
        scales: &[f32; WIDTH],
        columns: Range<usize>,
        out: &mut [f32],
    ) {
        let out = &mut out[columns];
        let mut values = [0.0; WIDTH];
        for i in 0..WIDTH {
            values[i] = sums[i] as f32 * (scale * scales[i]);
        }
        if let Some(out) = out.first_chunk_mut::<WIDTH>() {
            for i in 0..WIDTH {
                out[i] = if self.begin { values[i] } else { out[i] + values[i] };
            }
        } else {
            for (out, value) in out.iter_mut().zip(values) {
                *out = if self.begin { value } else { *out + value };
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn add_avx2(&self, out: &mut [f32]) {
        self.add(out, |words, lines, sums| {
            assert!(words.len() == lines.len());
            // SAFETY: this is compiled for avx2; there are as many words as lines.
            unsafe { avx2(words.as_ptr(), lines.as_ptr(), lines.len(), sums) }
        });
    }
}

/// What the instructions do, number by number.
fn portable(words: &[Words], lines: &[Line], sums: &mut Sums) {
    *sums = [[0; WIDTH]; HEIGHT];
    for (words, line) in words.iter().zip(lines) {
        for (sums, &g) in sums.iter_mut().zip(words) {
            for (sum, &x) in sums.iter_mut().zip(&line.0) {
                let low = i32::from(g as i16) * i32::from(x as i16);
                *sum += low + i32::from((g >> 16) as i16) * i32::from((x >> 16) as i16);
            }
        }
    }
}

/// One row of a pair: where its word lies, and its sums.
#[cfg(target_arch = "x86_64")]
macro_rules! row {
    ($at:literal $a:literal $b:literal) => {
        concat!(
            "vpbroadcastd ymm14, [{words} + ",
            $at,
            "]\n",
            "vpmaddwd ymm15, ymm14, ymm12\n",
            "vpmaddwd ymm14, ymm14, ymm13\n",
            "vpaddd ymm",
            $a,
            ", ymm",
            $a,
            ", ymm15\n",
            "vpaddd ymm",
            $b,
            ", ymm",
            $b,
            ", ymm14\n",
        )
    };
}

/// # Safety
/// There are `pairs` words and lines.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2(words: *const Words, lines: *const Line, pairs: usize, sums: &mut Sums) {
    use std::arch::x86_64::{__m256i, _mm256_setzero_si256, _mm256_storeu_si256};
    const _: () = assert!(HEIGHT == 6 && WIDTH == 16, "what the instructions are written for");
    let mut held: [[__m256i; 2]; HEIGHT] = [[_mm256_setzero_si256(); 2]; HEIGHT];
    if pairs > 0 {
        // SAFETY: reads what the caller promised and writes no memory; lines are aligned.
        unsafe {
            std::arch::asm!(
                "2:",
                "vmovdqa ymm12, [{lines}]",
                "vmovdqa ymm13, [{lines} + 32]",
                "prefetcht0 [{words} + 24 * 256]",
                row!("0" "0" "1"),
                row!("4" "2" "3"),
                row!("8" "4" "5"),
                row!("12" "6" "7"),
                row!("16" "8" "9"),
                row!("20" "10" "11"),
                "add {words}, 24",
                "add {lines}, 64",
                "dec {pairs}",
                "jnz 2b",
                words = inout(reg) words => _,
                lines = inout(reg) lines => _,
                pairs = inout(reg) pairs => _,
                inout("ymm0") held[0][0], inout("ymm1") held[0][1],
                inout("ymm2") held[1][0], inout("ymm3") held[1][1],
                inout("ymm4") held[2][0], inout("ymm5") held[2][1],
                inout("ymm6") held[3][0], inout("ymm7") held[3][1],
                inout("ymm8") held[4][0], inout("ymm9") held[4][1],
                inout("ymm10") held[5][0], inout("ymm11") held[5][1],
                out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                options(nostack, readonly),
            );
        }
    }
    for (sums, held) in sums.iter_mut().zip(held) {
        for (sums, held) in sums.as_chunks_mut::<8>().0.iter_mut().zip(held) {
            // SAFETY: eight words are there to be written, at any alignment.
            unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), held) };
        }
    }
}
