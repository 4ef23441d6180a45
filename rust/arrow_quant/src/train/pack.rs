//! Rows of f32 values as bytes: those of x unsigned and row-major, those of weights signed and panel by panel.

use super::bytes::HEIGHT;
use super::{DEPTH_MAX, QUAD, WIDTH};
use crate::fault::Fault;
use crate::isa::{Work, fastest};

/// Steps whose products are added in halves before they are widened.
pub(super) const TOGETHER: usize = 2;
/// Values that meet in two halves.
const GROUP: usize = TOGETHER * QUAD;
/// What the positive, or the negative, values that meet in a half may add up to: with two more, which rounding may
/// add, 255 times as much fits it.
const REACH: f32 = 126.0;
/// The largest magnitude of a row of x.
const LEVELS: f32 = 127.0;
/// What is added to the bytes of x, so that they have no sign.
const OFFSET: i32 = 128;
/// Rows whose largest value is below this count as zeros: their inverse scale would not be finite.
const TINY: f32 = 1e-30;
/// Bytes behind the words of a panel: a scale and a first sum for each output.
const TAIL: usize = 8 * WIDTH;

/// How the values of a weight lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The values of an output side by side.
    Outputs,
    /// The same value of all outputs side by side: the weight is stored transposed.
    Depth,
}

/// Words of a row or panel, four values each: whole rounds.
pub(super) fn steps(depth: usize) -> usize {
    depth.div_ceil(GROUP) * TOGETHER
}

/// Bytes of a panel.
pub(super) fn panel_len(depth: usize) -> usize {
    panel_len_of(steps(depth))
}

/// Bytes of a panel of so many steps.
pub(super) fn panel_len_of(steps: usize) -> usize {
    steps * QUAD * WIDTH + TAIL
}

/// Bytes of a packed weight of so many outputs and values each.
pub fn packed_len(outputs: usize, depth: usize) -> Result<usize, Fault> {
    if depth > DEPTH_MAX {
        return Err(Fault::TooLarge { rows: outputs, columns: depth });
    }
    let panels = outputs.div_ceil(WIDTH);
    panels.checked_mul(panel_len(depth)).ok_or(Fault::TooLarge { rows: outputs, columns: depth })
}

/// The words, scales and first sums of a panel: any bytes are one.
#[inline(always)]
pub(super) fn parts(panel: &[u8]) -> (&[u8], [f32; WIDTH], [i32; WIDTH]) {
    let (words, tail) = panel.split_at(panel.len() - TAIL);
    let (mut scales, mut starts) = ([0.0; WIDTH], [0; WIDTH]);
    for (i, four) in tail.as_chunks::<4>().0.iter().enumerate() {
        if i < WIDTH {
            scales[i] = f32::from_le_bytes(*four);
        } else {
            starts[i - WIDTH] = i32::from_le_bytes(*four);
        }
    }
    (words, scales, starts)
}

/// Writes the panel whose first output is `first`.
pub(super) fn panel(w: &[f32], outputs: usize, depth: usize, order: Order, first: usize, bytes: &mut [u8]) {
    fastest(Panel { w, outputs, depth, order, first, bytes });
}

/// Turns rows of x, at most a tile's, into words, step after step; writes their scales, NaN if a value is not finite.
pub(super) fn quantise(x: &[f32], depth: usize, words: &mut [u32], scales: &mut [f32]) {
    fastest(Strip { x, depth, words, scales });
}

/// The magnitude as an integer, whose order is that of magnitudes, NaN above all.
#[inline(always)]
pub(super) fn magnitude(value: f32) -> u32 {
    value.to_bits() & 0x7fff_ffff
}

/// The nearest integer of a value within 2^21 of zero, and how much more, ties to even, as the low bits of a float.
#[inline(always)]
pub(super) fn nearest(value: f32, more: i32) -> u32 {
    const SHIFT: f32 = (3u32 << 22) as f32;
    (value + SHIFT).to_bits().wrapping_add(more as u32)
}

/// The scale of values that reach this far, and its inverse.
#[inline(always)]
pub(super) fn scale_of(largest: f32, levels: f32) -> (f32, f32) {
    if !largest.is_finite() {
        (f32::NAN, 0.0)
    } else if largest < TINY {
        (0.0, 0.0)
    } else {
        (largest / levels, levels / largest)
    }
}

/// Some rows of x.
struct Strip<'a> {
    x: &'a [f32],
    depth: usize,
    words: &'a mut [u32],
    scales: &'a mut [f32],
}

impl Work for Strip<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        const LANES: usize = 32; // several registers, so that comparisons overlap
        for (row, (x, into)) in self.x.chunks_exact(self.depth).zip(self.scales).enumerate() {
            let mut largest = [0; LANES];
            let (whole, rest) = x.as_chunks::<LANES>();
            for x in whole {
                for i in 0..LANES {
                    largest[i] = magnitude(x[i]).max(largest[i]);
                }
            }
            let largest = rest.iter().map(|x| magnitude(*x)).chain(largest).max().unwrap_or(0);
            let (scale, inverse) = scale_of(f32::from_bits(largest), LEVELS);
            *into = scale;
            let mut steps = self.words.as_chunks_mut::<HEIGHT>().0.iter_mut();
            for x in whole {
                let mut bytes = [0; LANES];
                for i in 0..LANES {
                    bytes[i] = nearest(x[i] * inverse, OFFSET) as u8;
                }
                for (bytes, step) in bytes.as_chunks().0.iter().zip(&mut steps) {
                    step[row] = u32::from_le_bytes(*bytes);
                }
            }
            for (x, step) in rest.chunks(QUAD).zip(steps) {
                let mut bytes = [0; QUAD];
                for (byte, x) in bytes.iter_mut().zip(x) {
                    *byte = nearest(x * inverse, OFFSET) as u8;
                }
                step[row] = u32::from_le_bytes(bytes);
            }
        }
    }
}

/// Sixteen outputs of a weight, scaled so that what meets in a half of a word fits it.
///
/// Products of columns 8i, 8i + 1, 8i + 4 and 8i + 5 are added in one half, those of the others in the next. Bytes of x
/// go up to 255: neither the positive nor the negative of four such bytes may exceed 128 together.
struct Panel<'a> {
    w: &'a [f32],
    outputs: usize,
    depth: usize,
    order: Order,
    first: usize,
    bytes: &'a mut [u8],
}

type Lanes = [f32; WIDTH];

impl Work for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let mut values = vec![[0.0; WIDTH]; steps(self.depth) * QUAD];
        self.gather(&mut values);
        let (words, tail) = self.bytes.split_at_mut(self.bytes.len() - TAIL);
        let (mut scales, mut inverses, mut sums) = ([0.0; WIDTH], [0.0; WIDTH], [0i32; WIDTH]);
        for (i, reach) in reaches(&values).into_iter().enumerate() {
            (scales[i], inverses[i]) = scale_of(reach, REACH);
        }
        for (values, words) in
            values.as_chunks::<QUAD>().0.iter().zip(words.as_chunks_mut::<{ QUAD * WIDTH }>().0)
        {
            let mut rounded = [0u32; WIDTH];
            for (at, values) in values.iter().enumerate() {
                for i in 0..WIDTH {
                    let byte = nearest(values[i] * inverses[i], 0) & 0xff;
                    rounded[i] |= byte << (8 * at);
                    sums[i] += i32::from(byte as i8);
                }
            }
            for (word, rounded) in words.as_chunks_mut::<4>().0.iter_mut().zip(rounded) {
                *word = rounded.to_le_bytes();
            }
        }
        for (i, four) in tail.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            *four =
                if i < WIDTH { scales[i].to_le_bytes() } else { (-OFFSET * sums[i - WIDTH]).to_le_bytes() };
        }
    }
}

impl Panel<'_> {
    /// The outputs side by side, zeros where there are none.
    #[inline(always)]
    fn gather(&self, values: &mut [Lanes]) {
        let count = WIDTH.min(self.outputs - self.first);
        match self.order {
            Order::Outputs => {
                let rows = self.w[self.first * self.depth..].chunks_exact(self.depth.max(1));
                for (i, row) in rows.take(count).enumerate() {
                    for (values, w) in values.iter_mut().zip(row) {
                        values[i] = *w;
                    }
                }
            }
            Order::Depth => {
                for (values, row) in values.iter_mut().zip(self.w.chunks_exact(self.outputs)) {
                    values[..count].copy_from_slice(&row[self.first..][..count]);
                }
            }
        }
    }
}

/// How far each output's values reach in one half of a word, NaN or infinite if one is not finite.
#[inline(always)]
fn reaches(values: &[Lanes]) -> Lanes {
    let (mut reaches, mut largest) = ([0f32; WIDTH], [0; WIDTH]);
    for group in values.as_chunks::<GROUP>().0 {
        for half in [[0, 1, 4, 5], [2, 3, 6, 7]] {
            for i in 0..WIDTH {
                let (mut sum, mut magnitudes) = (0.0, 0.0);
                for at in half {
                    let value = group[at][i];
                    largest[i] = magnitude(value).max(largest[i]);
                    sum += value;
                    magnitudes += f32::from_bits(magnitude(value));
                }
                // The positive values add up to (magnitudes + sum) / 2, the negative ones to (magnitudes - sum) / 2.
                let reach = 0.5 * (magnitudes + f32::from_bits(magnitude(sum)));
                reaches[i] = if reach > reaches[i] { reach } else { reaches[i] };
            }
        }
    }
    for i in 0..WIDTH {
        let largest = f32::from_bits(largest[i]);
        reaches[i] = if largest.is_finite() { reaches[i] } else { largest };
    }
    reaches
}
