//! The inner loops, written once over arrays of fixed size and compiled for each instruction set by `isa`.

use std::ops::Range;

use super::matrix::{Lanes, Matrix};
use crate::half::widen;
use crate::order::{BLOCK_BYTES, PANEL_ROWS, RANK_MAX};

/// Columns that are unpacked at a time: [128][32] f32 are 16 KiB, half of a first-level cache.
const DEPTH: usize = 128;

/// Rows of x cut into tiles of about equal height, the highest of which keeps its sums in registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tiling {
    pub rows: usize,
    pub height_max: usize,
}

impl Tiling {
    /// The rows of every tile.
    #[inline(always)]
    pub fn tiles(self) -> impl Iterator<Item = Range<usize>> {
        let count = self.rows.div_ceil(self.height_max);
        (0..count).map(move |tile| tile * self.rows / count..(tile + 1) * self.rows / count)
    }

    /// Row-major `x` in the order in which tiles read it: tile after tile, column after column.
    pub fn pack(self, x: &[f32]) -> Vec<f32> {
        let columns = x.len() / self.rows;
        let mut packed = Vec::with_capacity(x.len());
        for tile in self.tiles() {
            for column in 0..columns {
                packed.extend(tile.clone().map(|row| x[row * columns + column]));
            }
        }
        packed
    }
}

/// What one thread works in: unpacked weights [k][32], and sums [m][32] over one panel.
pub(crate) struct Scratch {
    weights: Vec<Lanes>,
    pub sums: Vec<Lanes>,
}

impl Scratch {
    /// Room for `rows` rows of x; one row needs no unpacked weights.
    pub fn new(rows: usize) -> Self {
        let depth = if rows == 1 { 0 } else { DEPTH.max(RANK_MAX) };
        Scratch { weights: vec![Lanes::ZERO; depth], sums: vec![Lanes::ZERO; rows] }
    }
}

/// x (m, columns), and x times the right factor of the residual (m, rank): row-major for one row, else packed.
/// `totals` are the sums over each group of a single row.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub x: &'a [f32],
    pub low: &'a [f32],
    pub totals: &'a [f32],
    pub tiling: Tiling,
}

/// a * b + c, rounded once where the instruction set can.
#[inline(always)]
fn fma<R: Registers>(a: f32, b: f32, c: f32) -> f32 {
    if R::FUSED { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
fn words(block: &[u8; BLOCK_BYTES]) -> [u32; PANEL_ROWS] {
    let mut words = [0; PANEL_ROWS];
    for (word, bytes) in words.iter_mut().zip(block.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    words
}

/// The weights of column `j` of a block; scale * code is exact, so that fusing changes nothing.
#[inline(always)]
fn column<const BITS: usize, R: Registers>(
    words: &[u32; PANEL_ROWS],
    j: usize,
    (scale, zero): &(Lanes, Lanes),
) -> Lanes {
    let shift = 8 * (j % 4) + BITS * (j / 4);
    let mut weights = Lanes::ZERO;
    for r in 0..PANEL_ROWS {
        let code = (words[r] >> shift) & ((1 << BITS) - 1);
        weights[r] = fma::<R>(scale[r], code as i32 as f32, zero[r]); // signed: AVX2 converts no unsigned words
    }
    weights
}

/// Unpacks a panel's columns from `from` on, `DEPTH` of them or all that are left, padding included.
#[inline(always)]
fn unpack<const BITS: usize, const PER_BLOCK: usize, R: Registers>(
    w: &Matrix<'_>,
    panel: usize,
    from: usize,
    into: &mut [Lanes],
) {
    let group_size = w.packed().layout.group_size();
    let blocks = &w.blocks(panel)[from / PER_BLOCK..];
    let groups = blocks.chunks(group_size / PER_BLOCK).zip(into[..DEPTH].chunks_mut(group_size));
    for (group, (blocks, into)) in groups.enumerate() {
        let affine = w.affine(panel, from / group_size + group);
        for (block, into) in blocks.iter().zip(into.as_chunks_mut::<PER_BLOCK>().0) {
            let words = words(block);
            for (j, weights) in into.iter_mut().enumerate() {
                *weights = column::<BITS, R>(&words, j, &affine);
            }
        }
    }
}

/// Adds x times the codes of a block, in the order of their bits.
#[inline(always)]
fn add_codes<const BITS: usize, const PER_BLOCK: usize, R: Registers>(
    block: &[u8; BLOCK_BYTES],
    x: &[f32; PER_BLOCK],
    sums: &mut Lanes,
) {
    let mut words = words(block);
    for place in 0..PER_BLOCK {
        let x = x[place / (8 / BITS) + 4 * (place % (8 / BITS))];
        for r in 0..PANEL_ROWS {
            let code = (words[r] & ((1 << BITS) - 1)) as i32 as f32;
            sums[r] = fma::<R>(x, code, sums[r]);
            words[r] >>= BITS;
        }
    }
}

/// Sums of one row of x over one panel, without unpacked weights in memory.
///
/// In a group sum(x * w) = zero * sum(x) + scale * sum(x * code), which saves most of the work on a weight.
#[inline(always)]
pub(crate) fn single<const BITS: usize, const PER_BLOCK: usize, R: Registers>(
    w: &Matrix<'_>,
    panel: usize,
    inputs: Inputs<'_>,
    scratch: &mut Scratch,
) {
    let group_size = w.packed().layout.group_size();
    let mut sums = Lanes::ZERO;
    let groups = w.blocks(panel).chunks(group_size / PER_BLOCK).zip(inputs.x.chunks(group_size));
    for (group, (blocks, x)) in groups.enumerate() {
        let mut codes = Lanes::ZERO;
        let (whole, rest) = x.as_chunks::<PER_BLOCK>();
        for (block, x) in blocks.iter().zip(whole) {
            add_codes::<BITS, PER_BLOCK, R>(block, x, &mut codes);
        }
        if !rest.is_empty() {
            let mut padded = [0.0; PER_BLOCK];
            padded[..rest.len()].copy_from_slice(rest);
            add_codes::<BITS, PER_BLOCK, R>(&blocks[whole.len()], &padded, &mut codes);
        }
        let (scale, zero) = w.affine(panel, group);
        let total = inputs.totals[group];
        for r in 0..PANEL_ROWS {
            sums[r] = fma::<R>(scale[r], codes[r], fma::<R>(zero[r], total, sums[r]));
        }
    }
    if let Some(residual) = w.residual() {
        for (sum, left) in sums.iter_mut().zip(residual.left_panel(panel)) {
            *sum += dot::<R>(left, inputs.low);
        }
    }
    scratch.sums[0] = sums;
}

/// Sum of products of halves and floats.
#[inline(always)]
pub(crate) fn dot<R: Registers>(halves: &[u16], floats: &[f32]) -> f32 {
    const WIDTH: usize = 32; // several registers of partial sums, so that additions overlap
    let ((halves, halves_rest), (floats, floats_rest)) =
        (halves.as_chunks::<WIDTH>(), floats.as_chunks::<WIDTH>());
    let mut sums = [0.0; WIDTH];
    for (halves, floats) in halves.iter().zip(floats) {
        for i in 0..WIDTH {
            sums[i] = fma::<R>(widen(halves[i]), floats[i], sums[i]);
        }
    }
    let rest: f32 = halves_rest.iter().zip(floats_rest).map(|(&half, &float)| widen(half) * float).sum();
    sums.iter().sum::<f32>() + rest
}

/// Adds the products of one tile, x [k][H] and weights [k][32], so many columns at a time that sums stay in registers.
#[inline(always)]
fn tile<const H: usize, const W: usize, R: Registers>(x: &[f32], weights: &[Lanes], sums: &mut [Lanes]) {
    for part in 0..PANEL_ROWS / W {
        let mut held = [[0.0; W]; H];
        for h in 0..H {
            held[h] = sums[h].as_chunks::<W>().0[part];
        }
        for (x, weights) in x.as_chunks::<H>().0.iter().zip(weights) {
            let weights = weights.as_chunks::<W>().0[part];
            for h in 0..H {
                for i in 0..W {
                    held[h][i] = fma::<R>(x[h], weights[i], held[h][i]);
                }
            }
        }
        for h in 0..H {
            sums[h].as_chunks_mut::<W>().0[part] = held[h];
        }
    }
}

/// How the sums of a tile are kept in the registers of an instruction set.
pub(crate) trait Registers {
    /// Rows of the highest tile.
    const HEIGHT_MAX: usize;
    /// Whether products are added without rounding in between.
    const FUSED: bool;
    /// `tile` for its height.
    fn tile(height: usize, x: &[f32], weights: &[Lanes], sums: &mut [Lanes]);
}

macro_rules! registers {
    ($(#[$doc:meta])* $name:ident, $height_max:literal, $fused:literal, $($height:literal x $width:literal)*) => {
        $(#[$doc])*
        pub(crate) struct $name;

        impl Registers for $name {
            const HEIGHT_MAX: usize = $height_max;
            const FUSED: bool = $fused;

            #[inline(always)]
            fn tile(height: usize, x: &[f32], weights: &[Lanes], sums: &mut [Lanes]) {
                match height {
                    $($height => tile::<$height, $width, Self>(x, weights, sums),)*
                    _ => unreachable!("tiles have at most {} rows", $height_max),
                }
            }
        }
    };
}

registers!(
    /// 16 registers of 4 floats.
    Narrow, 4, false, 1 x 32 2 x 16 3 x 16 4 x 8);
registers!(
    /// 16 registers of 8 floats.
    Wide, 6, true, 1 x 32 2 x 32 3 x 32 4 x 16 5 x 16 6 x 16);

/// Sums of packed rows of x over one panel.
#[inline(always)]
pub(crate) fn many<const BITS: usize, const PER_BLOCK: usize, R: Registers>(
    w: &Matrix<'_>,
    panel: usize,
    inputs: Inputs<'_>,
    scratch: &mut Scratch,
) {
    let Scratch { weights, sums } = scratch;
    sums.fill(Lanes::ZERO);
    let columns = w.columns();
    for from in (0..columns).step_by(DEPTH) {
        unpack::<BITS, PER_BLOCK, R>(w, panel, from, weights);
        add_tiles::<R>(inputs.tiling, (inputs.x, columns, from), &weights[..DEPTH.min(columns - from)], sums);
    }
    if let Some(residual) = w.residual() {
        for (r, left) in residual.left_panel(panel).enumerate() {
            for (weights, &left) in weights.iter_mut().zip(left) {
                weights[r] = widen(left);
            }
        }
        add_tiles::<R>(inputs.tiling, (inputs.low, residual.rank, 0), &weights[..residual.rank], sums);
    }
}

/// Adds the products of all rows of packed `x` with the weights of the columns `from..` of `columns`.
#[inline(always)]
pub(crate) fn add_tiles<R: Registers>(
    tiling: Tiling,
    (x, columns, from): (&[f32], usize, usize),
    weights: &[Lanes],
    sums: &mut [Lanes],
) {
    for rows in tiling.tiles() {
        let x = &x[rows.start * columns + from * rows.len()..][..weights.len() * rows.len()];
        R::tile(rows.len(), x, weights, &mut sums[rows]);
    }
}
