//! Rows of activations as integers, group by group, in the order in which the integer kernels read them.

use std::ops::Range;

use super::kernel::Tiling;
use super::threads::{each_chunk, worth};
use crate::isa::{Work, fastest};
use crate::order::COLUMN_PADDING;

/// Values that make a second thread worth waking: some 10 us of them.
const VALUES_PER_THREAD: usize = 1 << 14;

/// How exactly activations are kept: x = scale * q with one scale for each group of columns of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// q of 16 bits: rounding far below that of the codes.
    Bits16,
    /// q of 8 bits, where the kernels are faster with it: for codes of 4 and 2 bits and more than one row.
    Bits8,
}

/// What a word of four bytes holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Two halves: columns (4u, 4u + 2) in an even step, (4u + 1, 4u + 3) in the odd one behind it.
    Pairs,
    /// Four bytes: columns 4u to 4u + 3.
    Bytes,
}

impl Form {
    /// Columns that a word covers.
    pub fn columns(self) -> usize {
        match self {
            Form::Pairs => 2,
            Form::Bytes => 4,
        }
    }

    /// The largest q.
    fn most(self) -> f32 {
        match self {
            Form::Pairs => f32::from(i16::MAX),
            Form::Bytes => f32::from(i8::MAX),
        }
    }
}

/// Rows of x, tile after tile.
pub(crate) struct Activations {
    pub form: Form,
    pub group_size: usize,
    tiling: Tiling,
    tiles: Vec<Tile>,
}

/// A tile's words [step][row], and its scales and totals [group][row]; a total is the sum over the group.
pub(crate) struct Tile {
    pub rows: Range<usize>,
    pub words: Vec<u32>,
    pub scales: Vec<f32>,
    pub totals: Vec<f32>,
}

impl Activations {
    /// Row-major `x`, of which there is something, as integers.
    pub fn quantise(x: &[f32], form: Form, group_size: usize, tiling: Tiling, threads: usize) -> Self {
        let columns = x.len() / tiling.rows;
        let steps = columns.next_multiple_of(COLUMN_PADDING) / form.columns();
        let groups = columns.div_ceil(group_size);
        let empty = |rows: Range<usize>| Tile {
            words: vec![0; rows.len() * steps],
            scales: vec![0.0; rows.len() * groups],
            totals: vec![0.0; rows.len() * groups],
            rows,
        };
        let mut tiles: Vec<Tile> = tiling.tiles().map(empty).collect();
        let threads = worth(x.len(), VALUES_PER_THREAD, threads);
        each_chunk(&mut tiles, 1, threads, |_, tile| {
            let x = &x[tile[0].rows.start * columns..tile[0].rows.end * columns];
            fastest(Quantise { x, form, group_size, tile: &mut tile[0] });
        });
        Activations { form, group_size, tiling, tiles }
    }

    /// How rows are cut.
    pub fn tiling(&self) -> Tiling {
        self.tiling
    }

    /// The tiles in the order of their rows.
    #[inline(always)]
    pub fn tiles(&self) -> &[Tile] {
        &self.tiles
    }
}

/// Turns the rows of one tile into integers.
struct Quantise<'a> {
    x: &'a [f32],
    form: Form,
    group_size: usize,
    tile: &'a mut Tile,
}

impl Work for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let height = self.tile.rows.len();
        let columns = self.x.len() / height;
        let padded = columns.next_multiple_of(COLUMN_PADDING);
        // One row at a time, in memory: what stays in registers would be packed value by value.
        let (mut halves, mut bytes) = match self.form {
            Form::Pairs => (vec![0i16; padded], Vec::new()),
            Form::Bytes => (Vec::new(), vec![0i8; padded]),
        };
        for (row, x) in self.x.chunks_exact(columns).enumerate() {
            for (group, x) in x.chunks(self.group_size).enumerate() {
                let at = group * self.group_size;
                let (scale, inverse) = scale_of(x, self.form.most());
                let sum = match self.form {
                    Form::Pairs => round(x, inverse, &mut halves[at..], |q| q as i16),
                    Form::Bytes => round(x, inverse, &mut bytes[at..], |q| q as i8),
                };
                self.tile.scales[group * height + row] = scale;
                self.tile.totals[group * height + row] = scale * sum as f32;
            }
            match self.form {
                Form::Pairs => {
                    for (words, q) in
                        self.tile.words.chunks_exact_mut(2 * height).zip(halves.as_chunks::<4>().0)
                    {
                        words[row] = u32::from(q[0] as u16) | u32::from(q[2] as u16) << 16;
                        words[height + row] = u32::from(q[1] as u16) | u32::from(q[3] as u16) << 16;
                    }
                }
                Form::Bytes => {
                    for (words, q) in self.tile.words.chunks_exact_mut(height).zip(bytes.as_chunks::<4>().0) {
                        words[row] = u32::from_le_bytes(q.map(|q| q as u8));
                    }
                }
            }
        }
    }
}

/// A group's scale, NaN if a value is not finite, and what to multiply its values with.
#[inline(always)]
fn scale_of(x: &[f32], most: f32) -> (f32, f32) {
    let largest = x.iter().fold(0, |largest, x| (x.to_bits() & i32::MAX as u32).max(largest)); // NaN is the largest
    let largest = f32::from_bits(largest);
    let scale = largest / most;
    if !largest.is_finite() {
        (f32::NAN, 0.0) // a product with this row is no number
    } else if scale < f32::MIN_POSITIVE {
        (0.0, 0.0) // all but zero
    } else {
        (scale, 1.0 / scale)
    }
}

/// Writes the nearest integers of x * inverse and returns their sum.
#[inline(always)]
fn round<T>(x: &[f32], inverse: f32, q: &mut [T], narrow: impl Fn(i32) -> T) -> i32 {
    let mut sum = 0;
    for (q, x) in q.iter_mut().zip(x) {
        let nearest = nearest(x * inverse);
        *q = narrow(nearest);
        sum = i32::wrapping_add(sum, nearest); // what is no number gives anything, and its scale says so
    }
    sum
}

/// The nearest integer of a value within 2^22, ties to even: adding 3 * 2^22 leaves no room for a fraction.
#[inline(always)]
fn nearest(value: f32) -> i32 {
    const SHIFT: f32 = (3u32 << 22) as f32;
    (value + SHIFT).to_bits() as i32 - SHIFT.to_bits() as i32
}
