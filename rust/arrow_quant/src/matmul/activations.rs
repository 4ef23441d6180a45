//! Rows of activations as integers, group by group, in the order in which the integer kernels read them.

use std::cell::Cell;
use std::ops::Range;

use super::isa::Isa;
use super::kernel::Tiling;
use super::threads::{each_chunk, worth};
use super::words::Words;
use crate::order::COLUMN_PADDING;

/// Values that make a second thread worth waking: some 10 us of them.
const VALUES_PER_THREAD: usize = 1 << 15;
/// Words that a thread keeps room for between products: 192 rows of 8192 columns.
const SPARE_MAX: usize = 1 << 20;
/// Columns that are rounded at a time.
const AT_ONCE: usize = COLUMN_PADDING;

/// How exactly activations are kept: x = scale * q with one scale for each group of columns of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// q of 16 bits: rounding far below that of the codes.
    Bits16,
    /// q of 8 bits, for which the kernels are faster.
    Bits8,
}

/// What a word holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Two halves: columns (4u, 4u + 2) in an even step, (4u + 1, 4u + 3) in the odd one behind it.
    Pairs,
    /// Four bytes, columns 4u to 4u + 3: those of q / 256 in an even step, of what is left in the odd one behind it.
    Planes,
    /// Four bytes: columns 4u to 4u + 3.
    Bytes,
    /// Four bytes, of which neither the positive nor the negative ones of columns (4u, 4u + 1) or (4u + 2, 4u + 3)
    /// exceed 128 together: their products with codes of 8 bits fit a half.
    Bounded,
}

impl Form {
    /// The form in which codes of so many bits meet `rows` rows fastest.
    pub fn of(width: Width, bits: usize, rows: usize) -> Self {
        match (width, bits, rows) {
            (Width::Bits8, 8, _) => Form::Bounded,
            (Width::Bits8, _, _) => Form::Bytes,
            (Width::Bits16, 2 | 4, 1) => Form::Planes,
            (Width::Bits16, _, _) => Form::Pairs,
        }
    }

    /// Words of four columns.
    pub fn words(self) -> usize {
        match self {
            Form::Pairs | Form::Planes => 2,
            Form::Bytes | Form::Bounded => 1,
        }
    }

    /// The largest q: such that both bytes of a plane are signed ones, or of a single byte.
    fn most(self) -> f32 {
        match self {
            Form::Pairs | Form::Planes => f32::from(i16::MAX - 128),
            Form::Bytes | Form::Bounded => f32::from(i8::MAX),
        }
    }
}

/// Rows of x, tile after tile.
pub(crate) struct Activations {
    pub form: Form,
    pub group_size: usize,
    pub tiling: Tiling,
    pub heights: Vec<usize>,
    steps: usize,
    groups: usize,
    words: Vec<u32>,
    scales: Vec<f32>,
    totals: Vec<f32>,
    reaches: Vec<u16>,
}

/// A tile's words [step][row], and its scales and totals [group][row]; a total is the sum over the group.
///
/// The reach of a group is the most that all positive, or all negative, bytes of any row of the tile add up to in one
/// half of a word, where its form is `Bytes`.
pub(crate) struct Tile<'a> {
    pub rows: Range<usize>,
    pub words: &'a [u32],
    pub scales: &'a [f32],
    pub totals: &'a [f32],
    pub reaches: &'a [u16],
}

/// A tile that is being made of rows of x.
pub(crate) struct Rows<'a> {
    form: Form,
    group_size: usize,
    height: usize,
    x: &'a [f32],
    words: &'a mut [u32],
    scales: &'a mut [f32],
    totals: &'a mut [f32],
    reaches: &'a mut [u16],
}

thread_local! {
    /// Room that the last product has left: large pieces come from the system page by page, each time anew.
    static SPARE: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
}

impl Activations {
    /// Row-major `x`, of which there is something, as integers.
    pub fn quantise(
        isa: Isa,
        x: &[f32],
        form: Form,
        group_size: usize,
        tiling: Tiling,
        threads: usize,
    ) -> Self {
        let columns = x.len() / tiling.rows;
        let steps = columns.next_multiple_of(COLUMN_PADDING) / 4 * form.words();
        let groups = columns.div_ceil(group_size);
        let mut words = SPARE.take();
        words.resize(tiling.rows * steps, 0);
        let mut made = Activations {
            form,
            group_size,
            tiling,
            heights: tiling.tiles().map(|rows| rows.len()).collect(),
            steps,
            groups,
            words,
            scales: vec![0.0; tiling.rows * groups],
            totals: vec![0.0; tiling.rows * groups],
            reaches: vec![0; tiling.tiles().count() * groups],
        };
        let mut tiles = made.rows(x, columns);
        let threads = worth(x.len(), VALUES_PER_THREAD, threads);
        each_chunk(&mut tiles, 1, threads, |_, tile| isa.quantise(&mut tile[0]));
        made
    }

    /// What is to be filled, tile by tile.
    fn rows<'a>(&'a mut self, x: &'a [f32], columns: usize) -> Vec<Rows<'a>> {
        let (mut words, mut scales) = (self.words.as_mut_slice(), self.scales.as_mut_slice());
        let (mut totals, mut reaches) = (self.totals.as_mut_slice(), self.reaches.as_mut_slice());
        let (form, group_size, steps, groups) = (self.form, self.group_size, self.steps, self.groups);
        let tiles = self.tiling.tiles().map(|rows| {
            let height = rows.len();
            Rows {
                form,
                group_size,
                height,
                x: &x[rows.start * columns..rows.end * columns],
                words: words.split_off_mut(..height * steps).unwrap_or_default(),
                scales: scales.split_off_mut(..height * groups).unwrap_or_default(),
                totals: totals.split_off_mut(..height * groups).unwrap_or_default(),
                reaches: reaches.split_off_mut(..groups).unwrap_or_default(),
            }
        });
        tiles.collect()
    }

    /// The tiles in the order of their rows.
    #[inline(always)]
    pub fn tiles(&self) -> impl Iterator<Item = Tile<'_>> {
        let mut first = 0;
        self.heights.iter().enumerate().map(move |(at, &height)| {
            let rows = first..first + height;
            first += height;
            Tile {
                words: &self.words[rows.start * self.steps..rows.end * self.steps],
                scales: &self.scales[rows.start * self.groups..rows.end * self.groups],
                totals: &self.totals[rows.start * self.groups..rows.end * self.groups],
                reaches: &self.reaches[at * self.groups..][..self.groups],
                rows,
            }
        })
    }
}

impl Drop for Activations {
    fn drop(&mut self) {
        let words = std::mem::take(&mut self.words);
        if words.capacity() <= SPARE_MAX {
            SPARE.set(words);
        }
    }
}

/// Turns the rows of one tile into integers.
#[inline(always)]
pub(crate) fn quantise<V: Words>(tile: &mut Rows<'_>) {
    let columns = tile.x.len() / tile.height;
    let padded = columns.next_multiple_of(COLUMN_PADDING);
    // A row's words in a line of their own, then spread over those of the tile.
    let mut line = vec![0; padded / 4 * tile.form.words()];
    let of_group = tile.group_size / 4 * tile.form.words();
    for (row, x) in tile.x.chunks_exact(columns).enumerate() {
        for (group, (x, line)) in x.chunks(tile.group_size).zip(line.chunks_mut(of_group)).enumerate() {
            let (scale, inverse) = scale_of(x, tile.form);
            let sum = match tile.form {
                _ if scale.is_nan() => {
                    line.fill(0);
                    0
                }
                Form::Pairs => round_halves::<V>(x, inverse, line),
                Form::Planes => {
                    let sum = round_halves::<V>(x, inverse, line);
                    split(line);
                    sum
                }
                Form::Bytes | Form::Bounded => {
                    let (sum, reach) = round_bytes::<V>(x, inverse, line);
                    tile.reaches[group] = tile.reaches[group].max(reach);
                    sum
                }
            };
            tile.scales[group * tile.height + row] = scale;
            tile.totals[group * tile.height + row] = scale * sum as f32;
        }
        if tile.height == 1 {
            tile.words.copy_from_slice(&line);
        } else {
            for (words, word) in tile.words.chunks_exact_mut(tile.height).zip(&line) {
                words[row] = *word;
            }
        }
    }
}

/// A group's scale, NaN if a value is not finite, and what to multiply its values with.
#[inline(always)]
fn scale_of(x: &[f32], form: Form) -> (f32, f32) {
    let largest = x.iter().fold(0, |largest, x| (x.to_bits() & i32::MAX as u32).max(largest)); // NaN is the largest
    let largest = f32::from_bits(largest);
    if !largest.is_finite() {
        return (f32::NAN, 0.0); // a product with this row is no number
    }
    let scale = match form {
        Form::Bounded => largest_two(x) / (form.most() / 2.0),
        _ => largest / form.most(),
    };
    if scale < f32::MIN_POSITIVE {
        (0.0, 0.0) // all but zero
    } else {
        (scale, 1.0 / scale)
    }
}

/// Half of what the positive, or the negative, values of columns (2i, 2i + 1) add up to at most.
#[inline(always)]
fn largest_two(x: &[f32]) -> f32 {
    let (twos, one) = x.as_chunks::<2>();
    let mut largest = one.first().map_or(0.0, |x| x.abs() * 0.5);
    for two in twos {
        let positive = two[0].max(0.0) * 0.5 + two[1].max(0.0) * 0.5;
        let negative = two[0].min(0.0) * 0.5 + two[1].min(0.0) * 0.5;
        largest = largest.max(positive).max(-negative);
    }
    largest
}

/// Writes the nearest halves of x * inverse and returns their sum.
#[inline(always)]
fn round_halves<V: Words>(x: &[f32], inverse: f32, line: &mut [u32]) -> i32 {
    let ones = V::splat(0x0001_0001);
    let mut sums = V::splat(0);
    let (whole, rest) = x.as_chunks::<{ AT_ONCE / 2 }>();
    let (lines, lines_rest) = line.as_chunks_mut().0.split_at_mut(whole.len());
    for (x, line) in whole.iter().zip(lines) {
        let q = V::round_halves(x, inverse);
        q.store(line);
        sums = sums.add_pairs(ones, q);
    }
    let mut padded = [0.0; AT_ONCE / 2];
    padded[..rest.len()].copy_from_slice(rest);
    for line in lines_rest {
        let q = V::round_halves(&padded, inverse);
        q.store(line);
        sums = sums.add_pairs(ones, q);
        padded.fill(0.0);
    }
    let mut words = [0; 8];
    sums.store(&mut words);
    words.iter().map(|word| *word as i32).sum()
}

/// Halves (0, 2), (1, 3) of four columns become their bytes: all of q / 256, then all of what is left.
#[inline(always)]
fn split(line: &mut [u32]) {
    for two in line.as_chunks_mut::<2>().0 {
        let [even, odd] = *two;
        // A low byte of 128 or more stands for itself less 256, so that the high one is one more.
        let high =
            |word: u32| (((word & 0x00FF_00FF) + 0x0080_0080) >> 8 & 0x0001_0001) + (word >> 8 & 0x00FF_00FF);
        let high_bytes = (high(even) & 0x00FF_00FF) | (high(odd) & 0x00FF_00FF) << 8;
        *two = [high_bytes, (even & 0x00FF_00FF) | (odd & 0x00FF_00FF) << 8];
    }
}

/// Writes the nearest bytes of x * inverse and returns their sum and reach.
#[inline(always)]
fn round_bytes<V: Words>(x: &[f32], inverse: f32, line: &mut [u32]) -> (i32, u16) {
    const ONES: u32 = 0x0101_0101;
    let (mut sums, mut positive) = (V::splat(0), V::splat(0)); // of two columns, at most 4 times 254
    let (whole, rest) = x.as_chunks::<AT_ONCE>();
    let (lines, lines_rest) = line.as_chunks_mut().0.split_at_mut(whole.len());
    for (x, line) in whole.iter().zip(lines) {
        let q = V::round_bytes(x, inverse);
        q.store(line);
        sums = sums.add_bytes(V::splat(ONES), q);
        positive = positive.add_bytes(q.positive_bytes(), V::splat(ONES));
    }
    if let Some(line) = lines_rest.first_mut() {
        let mut padded = [0.0; AT_ONCE];
        padded[..rest.len()].copy_from_slice(rest);
        let q = V::round_bytes(&padded, inverse);
        q.store(line);
        sums = sums.add_bytes(V::splat(ONES), q);
        positive = positive.add_bytes(q.positive_bytes(), V::splat(ONES));
    }
    let ([a, b], [up_a, up_b]) = (sums.fold(), positive.fold());
    let down = i32::max(i32::from(up_a) - i32::from(a), i32::from(up_b) - i32::from(b));
    let reach = down.max(up_a.into()).max(up_b.into());
    (i32::from(a) + i32::from(b), reach as u16)
}
