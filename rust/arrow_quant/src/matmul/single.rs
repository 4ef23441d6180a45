//! One row of integer activations: codes are taken apart in registers, and read as fast as memory gives them.

use super::activations::{Activations, Form};
use super::integer::{Affine, Scratch, affine, byte_mask, half_mask, run, words_of};
use super::kernel::{Registers, dot};
use super::matrix::{Lanes, Matrix};
use super::words::{WIDTH, Words};
use crate::order::{BLOCK_BYTES, PANEL_ROWS};

/// How far ahead of their use codes are asked for: a request to memory takes some 100 ns.
const AHEAD: usize = 4096;
/// Vectors of a block.
const PARTS: usize = PANEL_ROWS / WIDTH;

/// Sums of a panel's rows.
type Sums<V> = [V; PARTS];

/// Sums of a single row over one panel.
#[inline(always)]
pub(crate) fn single<V: Words, R: Registers, const BITS: usize>(
    w: &Matrix<'_>,
    panel: usize,
    x: &Activations,
    low: &[f32],
    scratch: &mut Scratch,
) {
    let mut sums = Lanes::ZERO;
    let mut known: Affine = (Lanes::ZERO, Lanes::ZERO);
    let group_blocks = x.group_size * BITS / 32;
    let group_words = x.group_size / 4 * x.form.words();
    let Some(tile) = x.tiles().next() else { return };
    let groups = w.blocks(panel).chunks(group_blocks).zip(tile.words.chunks(group_words));
    for (group, (blocks, words)) in groups.enumerate() {
        let held: Sums<V> = match x.form {
            Form::Pairs => pairs::<V, BITS>(blocks, words),
            Form::Planes => planes::<V, BITS>(blocks, words),
            Form::Bytes => bytes::<V, BITS>(blocks, words),
            Form::Bounded => bounded::<V>(blocks, words),
        };
        affine::<V>(w, panel, group, &mut known);
        let (scales, zeros) = (known.0.as_chunks().0, known.1.as_chunks().0);
        for (part, sum) in held.iter().enumerate() {
            let into = &mut sums.as_chunks_mut().0[part];
            sum.finish(tile.scales[group], tile.totals[group], &scales[part], &zeros[part], into);
        }
    }
    if let Some(residual) = w.residual() {
        for (sum, left) in sums.iter_mut().zip(residual.left_panel(panel)) {
            *sum += dot::<R>(left, low);
        }
    }
    scratch.sums[0] = sums;
}

/// A block's words, with a request for those far behind it.
#[inline(always)]
fn parts<V: Words>(block: &[u8; BLOCK_BYTES]) -> Sums<V> {
    let ahead = block.as_ptr().wrapping_add(AHEAD);
    V::prefetch(ahead);
    V::prefetch(ahead.wrapping_add(BLOCK_BYTES / 2));
    let mut parts = [V::splat(0); PARTS];
    for (part, into) in parts.iter_mut().enumerate() {
        *into = V::load(&words_of(block, part));
    }
    parts
}

/// 16-bit activations in pairs.
#[inline(always)]
fn pairs<V: Words, const BITS: usize>(blocks: &[[u8; BLOCK_BYTES]], words: &[u32]) -> Sums<V> {
    let mut held = [V::splat(0); PARTS];
    let mask = V::splat(half_mask(BITS));
    for (block, words) in blocks.iter().zip(words.chunks_exact(16 / BITS)) {
        let codes = parts::<V>(block);
        for (step, &x) in words.iter().enumerate() {
            let (x, shift) = (V::splat(x), 8 * (step % 2) + BITS * (step / 2));
            for (held, codes) in held.iter_mut().zip(codes) {
                *held = held.add_pairs(codes.part(shift as i32, mask), x);
            }
        }
    }
    held
}

/// 16-bit activations in bytes: 256 times the sums of one plane, and those of the other.
#[inline(always)]
fn planes<V: Words, const BITS: usize>(blocks: &[[u8; BLOCK_BYTES]], words: &[u32]) -> Sums<V> {
    let (zero, mask) = (V::splat(0), V::splat(byte_mask(BITS)));
    let (mut high, mut low) = ([zero; PARTS], [zero; PARTS]);
    let run_blocks = run(BITS) * BITS / 8;
    for (blocks, words) in blocks.chunks(run_blocks).zip(words.chunks(run_blocks * 16 / BITS)) {
        let (mut more_high, mut more_low) = ([zero; PARTS], [zero; PARTS]);
        for (block, words) in blocks.iter().zip(words.chunks_exact(16 / BITS)) {
            let codes = parts::<V>(block);
            for (step, two) in words.as_chunks::<2>().0.iter().enumerate() {
                let (x_high, x_low) = (V::splat(two[0]), V::splat(two[1]));
                for part in 0..PARTS {
                    let codes = codes[part].part((BITS * step) as i32, mask);
                    more_high[part] = more_high[part].add_bytes(codes, x_high);
                    more_low[part] = more_low[part].add_bytes(codes, x_low);
                }
            }
        }
        for part in 0..PARTS {
            high[part] = high[part].add(more_high[part].across());
            low[part] = low[part].add(more_low[part].across());
        }
    }
    for part in 0..PARTS {
        low[part] = low[part].add(high[part].times_256());
    }
    low
}

/// 8-bit activations times codes of 4 and 2 bits.
#[inline(always)]
fn bytes<V: Words, const BITS: usize>(blocks: &[[u8; BLOCK_BYTES]], words: &[u32]) -> Sums<V> {
    let (zero, mask) = (V::splat(0), V::splat(byte_mask(BITS)));
    let mut held = [zero; PARTS];
    let run_blocks = run(BITS) * BITS / 8;
    for (blocks, words) in blocks.chunks(run_blocks).zip(words.chunks(run_blocks * 8 / BITS)) {
        let mut more = [zero; PARTS];
        for (block, words) in blocks.iter().zip(words.chunks_exact(8 / BITS)) {
            let codes = parts::<V>(block);
            for (step, &x) in words.iter().enumerate() {
                let x = V::splat(x);
                for (more, codes) in more.iter_mut().zip(codes) {
                    *more = more.add_bytes(codes.part((BITS * step) as i32, mask), x);
                }
            }
        }
        for (held, more) in held.iter_mut().zip(more) {
            *held = held.add(more.across());
        }
    }
    held
}

/// 8-bit activations times codes of 8 bits.
#[inline(always)]
fn bounded<V: Words>(blocks: &[[u8; BLOCK_BYTES]], words: &[u32]) -> Sums<V> {
    let (zero, ones) = (V::splat(0), V::splat(0x0001_0001));
    let mut held = [zero; PARTS];
    for (block, &x) in blocks.iter().zip(words) {
        let x = V::splat(x);
        for (held, codes) in held.iter_mut().zip(parts::<V>(block)) {
            *held = held.add_products(codes, x, ones);
        }
    }
    held
}
