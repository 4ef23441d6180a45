//! Eight words at a time: the operations of the integer kernels, for any machine and for AVX2.
//!
//! A word is one row's four bytes, two halves, or one sum. All operations are exact integers or single roundings, so
//! that every implementation gives the same bits.

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;

use super::activations::Form;
use super::integer::{Chunk, Ends, Step, tile};
use super::kernel::{Narrow, Registers};
use super::matrix::Lanes;
use crate::half::widen;

/// Words of a vector.
pub(crate) const WIDTH: usize = 8;
/// A vector of numbers.
pub(crate) type Numbers = [f32; WIDTH];
/// Sums of two vectors of rows of the panel for each of H rows of x.
pub(crate) type Held<V, const H: usize> = [[V; 2]; H];

/// Eight words in a register.
pub(crate) trait Words: Copy {
    /// Words from memory.
    fn load(words: &[u32; WIDTH]) -> Self;
    /// The same word eight times.
    fn splat(word: u32) -> Self;
    /// The words (w >> shift) & mask.
    fn part(self, shift: i32, mask: Self) -> Self;
    /// Lane by lane, of words.
    fn add(self, other: Self) -> Self;
    /// 256 times each word.
    fn times_256(self) -> Self;
    /// self + a0 * b0 + a1 * b1 of the signed halves of each word.
    fn add_pairs(self, a: Self, b: Self) -> Self;
    /// Adds a0 * b0 + a1 * b1 and a2 * b2 + a3 * b3 to the halves of each word; a has unsigned bytes, b signed ones.
    /// Both sums of two fit a half.
    fn add_bytes(self, a: Self, b: Self) -> Self;
    /// The sum of both halves of each word.
    fn across(self) -> Self;
    /// self and all four products of each word, of which two fit a half; `ones` are halves.
    fn add_products(self, a: Self, b: Self, ones: Self) -> Self;
    /// Negative bytes become 0.
    fn positive_bytes(self) -> Self;
    /// The sums of the eight low halves and of the eight high ones, which fit halves.
    fn fold(self) -> [i16; 2];
    /// Adds `zero * total + (self as numbers * scale_x) * scale` to `into`, each product fused with its sum.
    fn finish(self, scale_x: f32, total: f32, scale: &Numbers, zero: &Numbers, into: &mut Numbers);
    /// The nearest integers of x * inverse, which fit bytes, in their order; ties to even.
    fn round_bytes(x: &[f32; 4 * WIDTH], inverse: f32) -> Self;
    /// The same as halves, four columns after another: (0, 2), (1, 3).
    fn round_halves(x: &[f32; 2 * WIDTH], inverse: f32) -> Self;
    /// Words to memory.
    fn store(self, into: &mut [u32; WIDTH]);
    /// The numbers that halves stand for.
    fn widen(halves: &[u16; WIDTH]) -> Numbers;
    /// Asks for the cache line of an address, which need not exist, ahead of its use.
    fn prefetch(address: *const u8);
    /// `add_bytes` of all steps: words of x [step][row] times one half of the panel's rows.
    fn sum_bytes<const H: usize>(words: &[[u32; H]], steps: &[Step], half: usize) -> Held<Self, H> {
        sum(words, steps, half, Self::add_bytes)
    }
    /// A whole group of pairs: `add_pairs` of all steps, then `Ends::add`.
    fn pairs<const H: usize>(words: &[[u32; H]], steps: &[Step], half: usize, ends: Ends<'_, H>) {
        ends.add(&sum(words, steps, half, Self::add_pairs), half);
    }
    /// The same by `add_bytes`: of bytes all of whose products fit a half together.
    fn bytes<const H: usize>(words: &[[u32; H]], steps: &[Step], half: usize, ends: Ends<'_, H>) {
        let mut held = Self::sum_bytes(words, steps, half);
        for held in &mut held {
            *held = [held[0].across(), held[1].across()]; // a closure would not be compiled for the instructions
        }
        ends.add(&held, half);
    }
    /// The same by `add_products`: of bytes of which two products fit a half.
    fn products<const H: usize>(words: &[[u32; H]], steps: &[Step], half: usize, ends: Ends<'_, H>) {
        let ones = Self::splat(0x0001_0001);
        ends.add(&sum(words, steps, half, |held: Self, codes, x| held.add_products(codes, x, ones)), half);
    }
    /// Rows of the highest tile of activations of this form.
    fn height_max(form: Form) -> usize;
    /// `integer::tile` for a height, compiled by itself: in one large function its loops would lack registers.
    fn tile(height: usize, steps: &[Step], chunk: &Chunk<'_>, sums: &mut [Lanes]);
}

/// Sums over all steps.
#[inline(always)]
fn sum<V: Words, const H: usize>(
    words: &[[u32; H]],
    steps: &[Step],
    half: usize,
    add: impl Fn(V, V, V) -> V,
) -> Held<V, H> {
    let mut held = [[V::splat(0); 2]; H];
    for (x, step) in words.iter().zip(steps) {
        for (held, &x) in held.iter_mut().zip(x) {
            for (held, codes) in held.iter_mut().zip(step.half(half)) {
                *held = add(*held, V::load(codes), V::splat(x));
            }
        }
    }
    held
}

/// Any machine.
#[derive(Clone, Copy)]
pub(crate) struct Plain([u32; WIDTH]);

#[inline(always)]
fn halves(word: u32) -> [i16; 2] {
    [word as i16, (word >> 16) as i16]
}

/// The word of two halves.
#[inline(always)]
fn word(low: i16, high: i16) -> u32 {
    u32::from(low as u16) | u32::from(high as u16) << 16
}

/// The nearest integer of a value within 2^22, ties to even: adding 3 * 2^22 leaves no room for a fraction.
#[inline(always)]
fn nearest(value: f32) -> i32 {
    const SHIFT: f32 = (3u32 << 22) as f32;
    (value + SHIFT).to_bits() as i32 - SHIFT.to_bits() as i32
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
    fn part(self, shift: i32, mask: Self) -> Self {
        Plain(std::array::from_fn(|i| self.0[i] >> shift & mask.0[i]))
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Plain(std::array::from_fn(|i| self.0[i].wrapping_add(other.0[i])))
    }

    #[inline(always)]
    fn times_256(self) -> Self {
        Plain(self.0.map(|word| word << 8))
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
            let two = |at: usize| {
                let sum = i32::from(a[at]) * i32::from(b[at]) + i32::from(a[at + 1]) * i32::from(b[at + 1]);
                debug_assert!(i16::try_from(sum).is_ok(), "a sum of two fits a half");
                sum as i16
            };
            let [low, high] = halves(self.0[i]);
            word(low.wrapping_add(two(0)), high.wrapping_add(two(2)))
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
    fn add_products(self, a: Self, b: Self, _: Self) -> Self {
        self.add(Plain([0; WIDTH]).add_bytes(a, b).across())
    }

    #[inline(always)]
    fn positive_bytes(self) -> Self {
        Plain(self.0.map(|word| u32::from_le_bytes(word.to_le_bytes().map(|byte| (byte as i8).max(0) as u8))))
    }

    #[inline(always)]
    fn fold(self) -> [i16; 2] {
        self.0.iter().fold([0, 0], |[low, high], &word| {
            let [more_low, more_high] = halves(word);
            [low.wrapping_add(more_low), high.wrapping_add(more_high)]
        })
    }

    #[inline(always)]
    fn finish(self, scale_x: f32, total: f32, scale: &Numbers, zero: &Numbers, into: &mut Numbers) {
        for i in 0..WIDTH {
            let sum = self.0[i] as i32 as f32 * scale_x;
            into[i] = sum.mul_add(scale[i], zero[i].mul_add(total, into[i]));
        }
    }

    #[inline(always)]
    fn round_bytes(x: &[f32; 4 * WIDTH], inverse: f32) -> Self {
        let mut words = [0; WIDTH];
        for (word, x) in words.iter_mut().zip(x.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(x.map(|x| nearest(x * inverse) as u8));
        }
        Plain(words)
    }

    #[inline(always)]
    fn round_halves(x: &[f32; 2 * WIDTH], inverse: f32) -> Self {
        let mut words = [0; WIDTH];
        for (two, x) in words.as_chunks_mut::<2>().0.iter_mut().zip(x.as_chunks::<4>().0) {
            let q = x.map(|x| nearest(x * inverse) as i16);
            *two = [word(q[0], q[2]), word(q[1], q[3])];
        }
        Plain(words)
    }

    #[inline(always)]
    fn store(self, into: &mut [u32; WIDTH]) {
        *into = self.0;
    }

    #[inline(always)]
    fn widen(halves: &[u16; WIDTH]) -> Numbers {
        halves.map(widen)
    }

    #[inline(always)]
    fn prefetch(_: *const u8) {}

    fn height_max(_: Form) -> usize {
        Narrow::HEIGHT_MAX
    }

    #[inline(always)]
    fn tile(height: usize, steps: &[Step], chunk: &Chunk<'_>, sums: &mut [Lanes]) {
        match height {
            1 => tile::<Self, 1>(steps, chunk, sums),
            2 => tile::<Self, 2>(steps, chunk, sums),
            3 => tile::<Self, 3>(steps, chunk, sums),
            4 => tile::<Self, 4>(steps, chunk, sums),
            _ => unreachable!("tiles of four registers have at most 4 rows"),
        }
    }
}
