//! The inner loops of products with integer activations.
//!
//! In a group, x = scale_x * q and w = zero + scale * code, so that
//!
//! ```text
//! sum(x * w) = scale_x * scale * sum(q * code) + zero * scale_x * sum(q)
//! ```
//!
//! The sums are exact integers, and the floating-point operations between groups are the same on every instruction
//! set, in the same order: all of them give the same bits.

use super::activations::{Activations, Form};
use super::kernel::{Registers, add_tiles};
use super::matrix::{Lanes, Matrix};
use crate::half::widen;
use crate::order::{BLOCK_BYTES, GROUP_MAX, GROUP_SIZES, PANEL_ROWS, RANK_MAX};

/// Columns that are unpacked at a time: 8 KiB of pairs.
const DEPTH: usize = GROUP_MAX;
/// The smallest group.
const GROUP_MIN: usize = GROUP_SIZES[0];
/// Words of a vector.
const WIDTH: usize = 8;
/// A vector of numbers.
type Numbers = [f32; WIDTH];
/// A step's words of all rows of a panel, on cache lines of their own: a load across two of them takes twice as long.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Step([u32; PANEL_ROWS]);

/// Eight words in a register.
pub(crate) trait Words: Copy {
    /// Words from memory.
    fn load(words: &[u32; WIDTH]) -> Self;
    /// The same word eight times.
    fn splat(word: u32) -> Self;
    /// Lane by lane, of words.
    fn add(self, other: Self) -> Self;
    /// self + a0 * b0 + a1 * b1 of the signed halves of each word.
    fn add_pairs(self, a: Self, b: Self) -> Self;
    /// Adds a0 * b0 + a1 * b1 and a2 * b2 + a3 * b3 to the halves of each word; a has unsigned bytes, b signed ones.
    fn add_bytes(self, a: Self, b: Self) -> Self;
    /// The sum of both halves of each word.
    fn across(self) -> Self;
    /// Adds `zero * total + (self as numbers * scale_x) * scale` to `into`, each product fused with its sum.
    fn finish(self, scale_x: f32, total: f32, scale: &Numbers, zero: &Numbers, into: &mut Numbers);
}

/// Any machine.
#[derive(Clone, Copy)]
pub(crate) struct Plain([u32; WIDTH]);

#[inline(always)]
fn halves(word: u32) -> [i16; 2] {
    [word as i16, (word >> 16) as i16]
}

impl Words for Plain {
    #[inline(always)]
    fn load(words: &[u32; WIDTH]) -> Self {
        Plain(*words)
    }

    #[inline(always)]
    fn splat(word: u32) -> Self {
        Plain([word; WIDTH])
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Plain(std::array::from_fn(|i| self.0[i].wrapping_add(other.0[i])))
    }

    #[inline(always)]
    fn add_pairs(self, a: Self, b: Self) -> Self {
        self.add(Plain(std::array::from_fn(|i| {
            let ([a0, a1], [b0, b1]) = (halves(a.0[i]), halves(b.0[i]));
            (i32::from(a0) * i32::from(b0)).wrapping_add(i32::from(a1) * i32::from(b1)) as u32
        })))
    }

    #[inline(always)]
    fn add_bytes(self, a: Self, b: Self) -> Self {
        Plain(std::array::from_fn(|i| {
            let (a, b) = (a.0[i].to_le_bytes(), b.0[i].to_le_bytes().map(|byte| byte as i8));
            let two =
                |at: usize| i16::from(a[at]) * i16::from(b[at]) + i16::from(a[at + 1]) * i16::from(b[at + 1]);
            let [low, high] = halves(self.0[i]);
            u32::from(low.wrapping_add(two(0)) as u16) | u32::from(high.wrapping_add(two(2)) as u16) << 16
        }))
    }

    #[inline(always)]
    fn across(self) -> Self {
        Plain(self.0.map(|word| {
            let [low, high] = halves(word);
            (i32::from(low) + i32::from(high)) as u32
        }))
    }

    #[inline(always)]
    fn finish(self, scale_x: f32, total: f32, scale: &Numbers, zero: &Numbers, into: &mut Numbers) {
        for i in 0..WIDTH {
            let sum = self.0[i] as i32 as f32 * scale_x;
            into[i] = sum.mul_add(scale[i], zero[i].mul_add(total, into[i]));
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    //! AVX2. Only functions compiled for avx2 and fma may reach these methods: see `isa`.
    #![allow(unsafe_code)]

    use std::arch::x86_64::*;

    use super::{Numbers, WIDTH, Words};

    /// A register of AVX2.
    #[derive(Clone, Copy)]
    pub(crate) struct Ymm(__m256i);

    impl Words for Ymm {
        #[inline(always)]
        fn load(words: &[u32; WIDTH]) -> Self {
            // SAFETY: 32 bytes are there to be read, at any alignment; the caller was compiled for avx2.
            Ymm(unsafe { _mm256_loadu_si256(words.as_ptr().cast()) })
        }

        #[inline(always)]
        fn splat(word: u32) -> Self {
            // SAFETY: the caller was compiled for avx2.
            Ymm(unsafe { _mm256_set1_epi32(word as i32) })
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: the caller was compiled for avx2.
            Ymm(unsafe { _mm256_add_epi32(self.0, other.0) })
        }

        #[inline(always)]
        fn add_pairs(self, a: Self, b: Self) -> Self {
            // SAFETY: the caller was compiled for avx2.
            Ymm(unsafe { _mm256_add_epi32(self.0, _mm256_madd_epi16(a.0, b.0)) })
        }

        #[inline(always)]
        fn add_bytes(self, a: Self, b: Self) -> Self {
            // SAFETY: the caller was compiled for avx2.
            Ymm(unsafe { _mm256_add_epi16(self.0, _mm256_maddubs_epi16(a.0, b.0)) })
        }

        #[inline(always)]
        fn across(self) -> Self {
            // SAFETY: the caller was compiled for avx2.
            Ymm(unsafe { _mm256_madd_epi16(self.0, _mm256_set1_epi16(1)) })
        }

        #[inline(always)]
        fn finish(self, scale_x: f32, total: f32, scale: &Numbers, zero: &Numbers, into: &mut Numbers) {
            // SAFETY: eight floats are there to be read, and to be written, at any alignment; the caller was
            // compiled for avx2 and fma.
            unsafe {
                let sum = _mm256_mul_ps(_mm256_cvtepi32_ps(self.0), _mm256_set1_ps(scale_x));
                let (scale, zero) = (_mm256_loadu_ps(scale.as_ptr()), _mm256_loadu_ps(zero.as_ptr()));
                let known = _mm256_fmadd_ps(zero, _mm256_set1_ps(total), _mm256_loadu_ps(into.as_ptr()));
                _mm256_storeu_ps(into.as_mut_ptr(), _mm256_fmadd_ps(sum, scale, known));
            }
        }
    }
}

/// What one thread works in: unpacked steps of one panel, and sums [m][32] over it.
pub(crate) struct Scratch {
    steps: Vec<Step>,
    floats: Vec<Lanes>,
    pub sums: Vec<Lanes>,
}

impl Scratch {
    /// Room for `rows` rows of x; `rank` is that of the residual.
    pub fn new(rows: usize, rank: usize) -> Self {
        debug_assert!(rank <= RANK_MAX);
        Scratch {
            steps: vec![Step([0; PANEL_ROWS]); DEPTH / 2],
            floats: vec![[0.0; PANEL_ROWS]; rank],
            sums: vec![[0.0; PANEL_ROWS]; rows],
        }
    }
}

/// The pair of columns (4u + s, 4u + s + 2) of a row's word, as halves.
#[inline(always)]
fn pair<const BITS: usize>(word: u32, u: usize, s: usize) -> u32 {
    (word >> (8 * s + BITS * u)) & (((1 << BITS) - 1) * 0x0001_0001)
}

/// The columns 4u to 4u + 3 of a row's word, as bytes.
#[inline(always)]
fn bytes<const BITS: usize>(word: u32, u: usize) -> u32 {
    (word >> (BITS * u)) & (((1 << BITS) - 1) * 0x0101_0101)
}

#[inline(always)]
fn words(block: &[u8; BLOCK_BYTES]) -> [u32; PANEL_ROWS] {
    let mut words = [0; PANEL_ROWS];
    for (word, bytes) in words.iter_mut().zip(block.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    words
}

/// Unpacks blocks into steps of the given form.
#[inline(always)]
fn unpack<const BITS: usize>(blocks: &[[u8; BLOCK_BYTES]], form: Form, into: &mut [Step]) {
    let per_block = 32 / BITS / form.columns();
    for (block, into) in blocks.iter().zip(into.chunks_exact_mut(per_block)) {
        let words = words(block);
        for (step, into) in into.iter_mut().enumerate() {
            for (into, word) in into.0.iter_mut().zip(words) {
                *into = match form {
                    Form::Pairs => pair::<BITS>(word, step / 2, step % 2),
                    Form::Bytes => bytes::<BITS>(word, step),
                };
            }
        }
    }
}

/// A chunk of columns of a tile of H rows, group by group: words, what they stand for, and the panel's affines.
struct Chunk<'a, const H: usize> {
    words: &'a [[u32; H]],
    scales: &'a [[f32; H]],
    totals: &'a [[f32; H]],
    affines: &'a [(Lanes, Lanes)],
    group_steps: usize,
}

/// Sums of two vectors of rows of the panel for each row of x.
type Held<V, const H: usize> = [[V; 2]; H];

/// Adds the integer sums of one group and one half of the panel.
#[inline(always)]
fn finish<V: Words, const H: usize>(
    held: Held<V, H>,
    scales_x: &[f32; H],
    totals: &[f32; H],
    affine: &(Lanes, Lanes),
    half: usize,
    sums: &mut [Lanes; H],
) {
    let (scales, zeros) = (affine.0.as_chunks().0, affine.1.as_chunks().0);
    for part in 2 * half..2 * half + 2 {
        for h in 0..H {
            let into = &mut sums[h].as_chunks_mut().0[part];
            held[h][part - 2 * half].finish(scales_x[h], totals[h], &scales[part], &zeros[part], into);
        }
    }
}

/// Two vectors of a step.
#[inline(always)]
fn two<V: Words>(step: &Step, half: usize) -> [V; 2] {
    let step = step.0.as_chunks::<WIDTH>().0;
    [V::load(&step[2 * half]), V::load(&step[2 * half + 1])]
}

/// 16-bit activations.
#[inline(always)]
fn tile_pairs<V: Words, const H: usize>(steps: &[Step], chunk: &Chunk<'_, H>, sums: &mut [Lanes; H]) {
    let groups = chunk.words.chunks(chunk.group_steps).zip(steps.chunks(chunk.group_steps));
    let known = chunk.scales.iter().zip(chunk.totals).zip(chunk.affines);
    for ((words, steps), ((scales, totals), affine)) in groups.zip(known) {
        for half in 0..2 {
            let mut held = [[V::splat(0); 2]; H];
            for (x, step) in words.iter().zip(steps) {
                let [a, b] = two::<V>(step, half);
                for h in 0..H {
                    let x = V::splat(x[h]);
                    held[h] = [held[h][0].add_pairs(a, x), held[h][1].add_pairs(b, x)];
                }
            }
            finish(held, scales, totals, affine, half, sums);
        }
    }
}

/// 8-bit activations, whose sums of `RUN` steps fit a half.
#[inline(always)]
fn tile_bytes<V: Words, const H: usize, const RUN: usize>(
    steps: &[Step],
    chunk: &Chunk<'_, H>,
    sums: &mut [Lanes; H],
) {
    let groups = chunk.words.chunks(chunk.group_steps).zip(steps.chunks(chunk.group_steps));
    let known = chunk.scales.iter().zip(chunk.totals).zip(chunk.affines);
    for ((words, steps), ((scales, totals), affine)) in groups.zip(known) {
        for half in 0..2 {
            let mut runs = words.chunks(RUN).zip(steps.chunks(RUN));
            let Some((words_now, steps_now)) = runs.next() else { return };
            let mut whole = run_of::<V, H>(words_now, steps_now, half);
            for (words_now, steps_now) in runs {
                let more = run_of::<V, H>(words_now, steps_now, half);
                for h in 0..H {
                    whole[h] = [whole[h][0].add(more[h][0]), whole[h][1].add(more[h][1])];
                }
            }
            finish(whole, scales, totals, affine, half, sums);
        }
    }
}

/// Sums over steps that fit a half, as words.
#[inline(always)]
fn run_of<V: Words, const H: usize>(words: &[[u32; H]], steps: &[Step], half: usize) -> Held<V, H> {
    let mut held = [[V::splat(0); 2]; H];
    for (x, step) in words.iter().zip(steps) {
        let [a, b] = two::<V>(step, half);
        for h in 0..H {
            let x = V::splat(x[h]);
            held[h] = [held[h][0].add_bytes(a, x), held[h][1].add_bytes(b, x)];
        }
    }
    for held in &mut held {
        *held = [held[0].across(), held[1].across()]; // a closure would not be compiled for the instructions
    }
    held
}

/// The steps of 8-bit activations times codes whose sums fit a half: two products a step of at most 127 * code.
const fn run(bits: usize) -> usize {
    1 << (i16::MAX as usize / (2 * 127 * ((1 << bits) - 1))).ilog2()
}

/// A chunk of columns of a tile of any height.
#[inline(always)]
fn tile<V: Words, const BITS: usize>(
    form: Form,
    steps: &[Step],
    (words, scales, totals): (&[u32], &[f32], &[f32]),
    (affines, group_steps): (&[(Lanes, Lanes)], usize),
    sums: &mut [Lanes],
) {
    macro_rules! heights {
        ($($height:literal)*) => {
            match sums.len() {
                $($height => {
                    let words = words.as_chunks().0;
                    let (scales, totals) = (scales.as_chunks().0, totals.as_chunks().0);
                    let chunk = Chunk::<$height> { words, scales, totals, affines, group_steps };
                    let sums = &mut sums.as_chunks_mut().0[0];
                    match (form, BITS) {
                        (Form::Pairs, _) => tile_pairs::<V, $height>(steps, &chunk, sums),
                        (Form::Bytes, 4) => tile_bytes::<V, $height, { run(4) }>(steps, &chunk, sums),
                        (Form::Bytes, _) => tile_bytes::<V, $height, { run(2) }>(steps, &chunk, sums),
                    }
                })*
                _ => unreachable!("tiles have at most 6 rows"),
            }
        };
    }
    heights!(1 2 3 4 5 6);
}

/// Sums of all rows of x over one panel; `low` is x times the right factor of the residual, packed by `tiling`.
#[inline(always)]
pub(crate) fn panel<V: Words, R: Registers, const BITS: usize>(
    w: &Matrix<'_>,
    panel: usize,
    x: &Activations,
    low: &[f32],
    scratch: &mut Scratch,
) {
    let Scratch { steps: unpacked, floats, sums } = scratch;
    sums.fill([0.0; PANEL_ROWS]);
    let (group_size, form) = (x.group_size, x.form);
    let group_steps = group_size / form.columns();
    let blocks = w.blocks(panel);
    let mut affines = [([0.0; PANEL_ROWS], [0.0; PANEL_ROWS]); DEPTH / GROUP_MIN];
    for (chunk, blocks) in blocks.chunks(DEPTH * BITS / 32).enumerate() {
        unpack::<BITS>(blocks, form, unpacked);
        let steps = &unpacked[..blocks.len() * (32 / BITS) / form.columns()];
        let first = chunk * (DEPTH / group_size);
        for (group, affine) in affines[..steps.len().div_ceil(group_steps)].iter_mut().enumerate() {
            *affine = w.affine(panel, first + group);
        }
        for one in x.tiles() {
            let height = one.rows.len();
            let words = &one.words[first * group_steps * height..][..steps.len() * height];
            let known = (words, &one.scales[first * height..], &one.totals[first * height..]);
            tile::<V, BITS>(form, steps, known, (&affines, group_steps), &mut sums[one.rows.clone()]);
        }
    }
    if let Some(residual) = w.residual() {
        for (r, left) in residual.left_panel(panel).enumerate() {
            for (floats, &left) in floats.iter_mut().zip(left) {
                floats[r] = widen(left);
            }
        }
        add_tiles::<R>(x.tiling(), (low, residual.rank, 0), &floats[..residual.rank], sums);
    }
}

/// Sums of a single row, codes taken apart in registers.
#[inline(always)]
pub(crate) fn single<V: Words, R: Registers, const BITS: usize>(
    w: &Matrix<'_>,
    panel: usize,
    x: &Activations,
    low: &[f32],
    scratch: &mut Scratch,
) {
    let mut sums = [0.0; PANEL_ROWS];
    let per_block = 32 / BITS / Form::Pairs.columns();
    let group_blocks = x.group_size * BITS / 32;
    let x = &x.tiles()[0];
    for (group, blocks) in w.blocks(panel).chunks(group_blocks).enumerate() {
        let mut held = [V::splat(0); PANEL_ROWS / WIDTH];
        let x_words = &x.words[group * group_blocks * per_block..];
        for (block, x_words) in blocks.iter().zip(x_words.chunks_exact(per_block)) {
            let words = words(block);
            for (step, &x) in x_words.iter().enumerate() {
                let x = V::splat(x);
                for (held, words) in held.iter_mut().zip(words.as_chunks::<WIDTH>().0) {
                    *held =
                        held.add_pairs(V::load(&words.map(|word| pair::<BITS>(word, step / 2, step % 2))), x);
                }
            }
        }
        let affine = w.affine(panel, group);
        let (scales, zeros) = (affine.0.as_chunks().0, affine.1.as_chunks().0);
        for (part, sum) in held.iter().enumerate() {
            let into = &mut sums.as_chunks_mut().0[part];
            sum.finish(x.scales[group], x.totals[group], &scales[part], &zeros[part], into);
        }
    }
    if let Some(residual) = w.residual() {
        for (sum, left) in sums.iter_mut().zip(residual.left_panel(panel)) {
            *sum += super::kernel::dot::<R>(left, low);
        }
    }
    scratch.sums[0] = sums;
}
