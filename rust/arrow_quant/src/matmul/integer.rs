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

use super::activations::{Activations, Form, Tile};
use super::kernel::{Registers, add_tiles};
use super::matrix::{Lanes, Matrix};
use super::words::{Held, WIDTH, Words};
use crate::half::widen;
use crate::order::{BLOCK_BYTES, GROUP_MAX, GROUP_SIZES, PANEL_ROWS, RANK_MAX};

/// Steps that are unpacked at a time: 16 KiB, half of a first-level cache.
const STEPS: usize = 128;
/// Groups that they cover at most: all in bytes of the smallest ones.
const GROUPS: usize = STEPS * 4 / GROUP_SIZES[0];
const _: () = assert!((STEPS * 2).is_multiple_of(GROUP_MAX), "whole groups are unpacked");
/// Bytes that one prefetch brings.
const LINE: usize = 64;

/// A step's words of all rows of a panel, on cache lines of their own: a load across two of them takes twice as long.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Step([u32; PANEL_ROWS]);

impl Step {
    /// Two vectors of rows: the first or the second half of the panel.
    #[inline(always)]
    pub fn half(&self, half: usize) -> &[[u32; WIDTH]] {
        &self.0.as_chunks().0[2 * half..2 * half + 2]
    }
}

/// Scales, and weights of code 0, of a panel's rows in one group.
pub(crate) type Affine = (Lanes, Lanes);

/// What one thread works in: unpacked steps of one panel, and sums [m][32] over it.
pub(crate) struct Scratch {
    steps: Vec<Step>,
    floats: Vec<Lanes>,
    pub sums: Vec<Lanes>,
}

impl Scratch {
    /// Room for `rows` rows of x, one of which needs no unpacked steps; `rank` is that of the residual.
    pub fn new(rows: usize, rank: usize) -> Self {
        debug_assert!(rank <= RANK_MAX);
        Scratch {
            steps: vec![Step([0; PANEL_ROWS]); if rows == 1 { 0 } else { STEPS }],
            floats: vec![Lanes::ZERO; rank],
            sums: vec![Lanes::ZERO; rows],
        }
    }
}

/// The largest code of so many bits, in every byte of a word.
pub(crate) const fn byte_mask(bits: usize) -> u32 {
    ((1 << bits) - 1) * 0x0101_0101
}

/// The same in every half.
pub(crate) const fn half_mask(bits: usize) -> u32 {
    ((1 << bits) - 1) * 0x0001_0001
}

/// The steps of bytes times codes of 4 or 2 bits whose sums fit a half, whatever the bytes: two products a step.
pub(crate) const fn run(bits: usize) -> usize {
    if bits == 4 { 8 } else { 32 }
}

const _: () = assert!(run(4) * 2 * 128 * 15 <= 1 << 15 && run(2) * 2 * 128 * 3 <= 1 << 15);

/// Scale, and the weight of code 0, of a panel's rows in one group.
#[inline(always)]
pub(crate) fn affine<V: Words>(w: &Matrix<'_>, panel: usize, group: usize, into: &mut Affine) {
    let (scales, zeros) = w.halves(panel, group);
    for (into, halves) in into.0.as_chunks_mut().0.iter_mut().zip(scales.as_chunks().0) {
        *into = V::widen(halves);
    }
    match zeros {
        Some(zeros) => {
            for (into, halves) in into.1.as_chunks_mut().0.iter_mut().zip(zeros.as_chunks().0) {
                *into = V::widen(halves);
            }
        }
        None => {
            let middle = f32::from(w.packed().layout.middle());
            for (zero, scale) in into.1.iter_mut().zip(into.0.iter()) {
                *zero = -(scale * middle); // exact, as is every product of a scale (11 bits) and a code
            }
        }
    }
}

/// Unpacks blocks into steps of the given form.
#[inline(always)]
fn unpack<V: Words, const BITS: usize>(blocks: &[[u8; BLOCK_BYTES]], form: Form, into: &mut [Step]) {
    if form.words() == 2 {
        for (block, into) in blocks.iter().zip(into.chunks_exact_mut(16 / BITS)) {
            for part in 0..PANEL_ROWS / WIDTH {
                let words = V::load(&words_of(block, part));
                for (step, into) in into.iter_mut().enumerate() {
                    let pair =
                        words.part((8 * (step % 2) + BITS * (step / 2)) as i32, V::splat(half_mask(BITS)));
                    pair.store(&mut into.0.as_chunks_mut().0[part]);
                }
            }
        }
    } else {
        for (block, into) in blocks.iter().zip(into.chunks_exact_mut(8 / BITS)) {
            for part in 0..PANEL_ROWS / WIDTH {
                let words = V::load(&words_of(block, part));
                for (step, into) in into.iter_mut().enumerate() {
                    let bytes = words.part((BITS * step) as i32, V::splat(byte_mask(BITS)));
                    bytes.store(&mut into.0.as_chunks_mut().0[part]);
                }
            }
        }
    }
}

/// Eight words of a block.
#[inline(always)]
pub(crate) fn words_of(block: &[u8; BLOCK_BYTES], part: usize) -> [u32; WIDTH] {
    let mut words = [0; WIDTH];
    for (word, bytes) in words.iter_mut().zip(&block.as_chunks::<4>().0[part * WIDTH..]) {
        *word = u32::from_le_bytes(*bytes);
    }
    words
}

/// A chunk of columns of a tile, group by group: words, what they stand for, and the panel's affines.
pub(crate) struct Chunk<'a> {
    form: Form,
    words: &'a [u32],
    scales: &'a [f32],
    totals: &'a [f32],
    reaches: &'a [u16],
    affines: &'a [Affine],
    group_steps: usize,
    /// Steps whose sums fit a half, whatever the bytes.
    run: usize,
    /// The largest reach with which a whole group fits.
    reach: u16,
}

/// What the sums of a group become: the factors of H rows of x, the group's affines, and the sums over groups.
pub(crate) struct Ends<'a, const H: usize> {
    pub scales_x: &'a [f32; H],
    pub totals: &'a [f32; H],
    pub affine: &'a Affine,
    pub sums: &'a mut [Lanes; H],
}

impl<const H: usize> Ends<'_, H> {
    /// Adds the integer sums of one half of the panel.
    #[inline(always)]
    pub fn add<V: Words>(self, held: &Held<V, H>, half: usize) {
        let (scales, zeros) = (self.affine.0.as_chunks().0, self.affine.1.as_chunks().0);
        for part in 2 * half..2 * half + 2 {
            for h in 0..H {
                let into = &mut self.sums[h].as_chunks_mut().0[part];
                let held = held[h][part - 2 * half];
                held.finish(self.scales_x[h], self.totals[h], &scales[part], &zeros[part], into);
            }
        }
    }
}

/// One way of adding a group's products, `run` steps of which fit a half.
trait Products {
    /// Adds those of half of the panel's rows.
    fn add<V: Words, const H: usize>(
        words: &[[u32; H]],
        steps: &[Step],
        half: usize,
        run: usize,
        ends: Ends<'_, H>,
    );
}

/// Adds the products of a chunk of columns and a tile of H rows.
#[inline(always)]
pub(crate) fn tile<V: Words, const H: usize>(steps: &[Step], chunk: &Chunk<'_>, sums: &mut [Lanes]) {
    match chunk.form {
        Form::Pairs | Form::Planes => groups::<V, Pairs, H>(steps, chunk, sums),
        Form::Bounded => groups::<V, Bounded, H>(steps, chunk, sums),
        Form::Bytes if chunk.reaches.iter().all(|reach| *reach <= chunk.reach) => {
            groups::<V, Bytes, H>(steps, chunk, sums);
        }
        Form::Bytes => groups::<V, Runs, H>(steps, chunk, sums),
    }
}

/// The same in one way of summing: where several meet in a loop, sums pass through memory.
#[inline(always)]
fn groups<V: Words, P: Products, const H: usize>(steps: &[Step], chunk: &Chunk<'_>, sums: &mut [Lanes]) {
    let (sums, _) = sums.as_chunks_mut::<H>();
    let (words, scales, totals) =
        (chunk.words.as_chunks::<H>().0, chunk.scales.as_chunks::<H>().0, chunk.totals.as_chunks::<H>().0);
    let groups = words.chunks(chunk.group_steps).zip(steps.chunks(chunk.group_steps));
    let known = scales.iter().zip(totals).zip(chunk.affines);
    for ((words, steps), ((scales_x, totals), affine)) in groups.zip(known) {
        for half in 0..2 {
            let ends = Ends { scales_x, totals, affine, sums: &mut sums[0] };
            P::add::<V, H>(words, steps, half, chunk.run, ends);
        }
    }
}

/// 16-bit activations.
struct Pairs;

impl Products for Pairs {
    #[inline(always)]
    fn add<V: Words, const H: usize>(
        words: &[[u32; H]],
        steps: &[Step],
        half: usize,
        _: usize,
        ends: Ends<'_, H>,
    ) {
        V::pairs(words, steps, half, ends);
    }
}

/// Bytes whose products of two fit a half.
struct Bounded;

impl Products for Bounded {
    #[inline(always)]
    fn add<V: Words, const H: usize>(
        words: &[[u32; H]],
        steps: &[Step],
        half: usize,
        _: usize,
        ends: Ends<'_, H>,
    ) {
        V::products(words, steps, half, ends);
    }
}

/// Bytes of which all steps fit a half.
struct Bytes;

impl Products for Bytes {
    #[inline(always)]
    fn add<V: Words, const H: usize>(
        words: &[[u32; H]],
        steps: &[Step],
        half: usize,
        _: usize,
        ends: Ends<'_, H>,
    ) {
        V::bytes(words, steps, half, ends);
    }
}

/// Bytes of which `run` steps fit a half.
struct Runs;

impl Products for Runs {
    #[inline(always)]
    fn add<V: Words, const H: usize>(
        words: &[[u32; H]],
        steps: &[Step],
        half: usize,
        run: usize,
        ends: Ends<'_, H>,
    ) {
        let mut whole = [[V::splat(0); 2]; H];
        for (words, steps) in words.chunks(run).zip(steps.chunks(run)) {
            let more = V::sum_bytes(words, steps, half);
            for h in 0..H {
                whole[h] = [whole[h][0].add(more[h][0].across()), whole[h][1].add(more[h][1].across())];
            }
        }
        ends.add(&whole, half);
    }
}

/// Sums of all rows of x over one panel; `low` is x times the right factor of the residual, packed by the tiling.
#[inline(always)]
pub(crate) fn panel<V: Words, R: Registers, const BITS: usize>(
    w: &Matrix<'_>,
    panel: usize,
    x: &Activations,
    low: &[f32],
    scratch: &mut Scratch,
) {
    let Scratch { steps: unpacked, floats, sums } = scratch;
    sums.fill(Lanes::ZERO);
    let (group_size, form) = (x.group_size, x.form);
    let blocks = w.blocks(panel);
    let group_steps = group_size / 4 * form.words();
    let mut affines = [(Lanes::ZERO, Lanes::ZERO); GROUPS];
    for (chunk, blocks) in blocks.chunks(STEPS * BITS / 8 / form.words()).enumerate() {
        unpack::<V, BITS>(blocks, form, unpacked);
        let steps = &unpacked[..blocks.len() * (8 / BITS) * form.words()];
        let first = chunk * (STEPS / group_steps);
        for (group, into) in affines[..steps.len().div_ceil(group_steps)].iter_mut().enumerate() {
            affine::<V>(w, panel, first + group, into);
        }
        let next = blocks.as_ptr_range().end.cast::<u8>();
        let ahead = (blocks.len() * BLOCK_BYTES / LINE).div_ceil(x.heights.len()); // lines of the next chunk, for each tile
        for (at, Tile { rows, words, scales, totals, reaches }) in x.tiles().enumerate() {
            for line in at * ahead..(at + 1) * ahead {
                V::prefetch(next.wrapping_add(line * LINE));
            }
            let height = rows.len();
            let chunk = Chunk {
                form,
                words: &words[first * group_steps * height..][..steps.len() * height],
                scales: &scales[first * height..],
                totals: &totals[first * height..],
                reaches: &reaches[first..],
                affines: &affines,
                group_steps,
                run: run(BITS),
                reach: i16::MAX as u16 / ((1 << BITS) - 1),
            };
            V::tile(height, steps, &chunk, &mut sums[rows]);
        }
    }
    if let Some(residual) = w.residual() {
        for (r, left) in residual.left_panel(panel).enumerate() {
            for (floats, &left) in floats.iter_mut().zip(left) {
                floats[r] = widen(left);
            }
        }
        add_tiles::<R>(x.tiling, (low, residual.rank, 0), &floats[..residual.rank], sums);
    }
}
