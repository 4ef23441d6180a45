//! AVX2. Only functions compiled for avx2, fma and f16c may reach these methods: see `isa`.

mod loops;

use std::arch::x86_64::*;

use super::super::activations::Form;
use super::super::integer::{Chunk, Ends, Step, tile};
use super::super::kernel::{Registers, Wide};
use super::super::matrix::Lanes;
use super::{Held, Numbers, WIDTH, Words};

/// A register of AVX2.
#[derive(Clone, Copy)]
pub(crate) struct Ymm(__m256i);

/// The nearest integers of x * inverse.
///
/// # Safety
/// The caller was compiled for avx2.
#[inline(always)]
unsafe fn nearest(x: &[f32; WIDTH], inverse: f32) -> __m256i {
    // SAFETY: eight floats are there to be read, at any alignment; the caller was compiled for avx2.
    unsafe { _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x.as_ptr()), _mm256_set1_ps(inverse))) }
}

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
    fn part(self, shift: i32, mask: Self) -> Self {
        // SAFETY: the caller was compiled for avx2.
        Ymm(unsafe { _mm256_and_si256(_mm256_srl_epi32(self.0, _mm_cvtsi32_si128(shift)), mask.0) })
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the caller was compiled for avx2.
        Ymm(unsafe { _mm256_add_epi32(self.0, other.0) })
    }

    #[inline(always)]
    fn times_256(self) -> Self {
        // SAFETY: the caller was compiled for avx2.
        Ymm(unsafe { _mm256_slli_epi32::<8>(self.0) })
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
    fn add_products(self, a: Self, b: Self, ones: Self) -> Self {
        // SAFETY: the caller was compiled for avx2.
        Ymm(unsafe { _mm256_add_epi32(self.0, _mm256_madd_epi16(_mm256_maddubs_epi16(a.0, b.0), ones.0)) })
    }

    #[inline(always)]
    fn positive_bytes(self) -> Self {
        // SAFETY: the caller was compiled for avx2.
        Ymm(unsafe { _mm256_max_epi8(self.0, _mm256_setzero_si256()) })
    }

    #[inline(always)]
    fn fold(self) -> [i16; 2] {
        // SAFETY: the caller was compiled for avx2.
        let word = unsafe {
            let four = _mm_add_epi16(_mm256_castsi256_si128(self.0), _mm256_extracti128_si256::<1>(self.0));
            let two = _mm_add_epi16(four, _mm_shuffle_epi32::<0b_00_00_11_10>(four));
            _mm_cvtsi128_si32(_mm_add_epi16(two, _mm_shuffle_epi32::<1>(two)))
        };
        [word as i16, (word >> 16) as i16]
    }

    #[inline(always)]
    fn finish(self, scale_x: f32, total: f32, scale: &Numbers, zero: &Numbers, into: &mut Numbers) {
        // SAFETY: eight floats are there to be read, and to be written, at any alignment; the caller was compiled for
        // avx2 and fma.
        unsafe {
            let sum = _mm256_mul_ps(_mm256_cvtepi32_ps(self.0), _mm256_set1_ps(scale_x));
            let (scale, zero) = (_mm256_loadu_ps(scale.as_ptr()), _mm256_loadu_ps(zero.as_ptr()));
            let known = _mm256_fmadd_ps(zero, _mm256_set1_ps(total), _mm256_loadu_ps(into.as_ptr()));
            _mm256_storeu_ps(into.as_mut_ptr(), _mm256_fmadd_ps(sum, scale, known));
        }
    }

    #[inline(always)]
    fn round_bytes(x: &[f32; 4 * WIDTH], inverse: f32) -> Self {
        // SAFETY: the caller was compiled for avx2.
        unsafe {
            let x = x.as_chunks().0;
            let low = _mm256_packs_epi32(nearest(&x[0], inverse), nearest(&x[1], inverse));
            let high = _mm256_packs_epi32(nearest(&x[2], inverse), nearest(&x[3], inverse));
            let bytes = _mm256_packs_epi16(low, high);
            Ymm(_mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)))
        }
    }

    #[inline(always)]
    fn round_halves(x: &[f32; 2 * WIDTH], inverse: f32) -> Self {
        // SAFETY: the caller was compiled for avx2.
        unsafe {
            let x = x.as_chunks().0;
            let halves = _mm256_packs_epi32(nearest(&x[0], inverse), nearest(&x[1], inverse));
            let halves = _mm256_permute4x64_epi64::<0b_11_01_10_00>(halves);
            let order = _mm256_broadcastsi128_si256(_mm_setr_epi8(
                0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15,
            ));
            Ymm(_mm256_shuffle_epi8(halves, order))
        }
    }

    #[inline(always)]
    fn store(self, into: &mut [u32; WIDTH]) {
        // SAFETY: 32 bytes are there to be written, at any alignment; the caller was compiled for avx2.
        unsafe { _mm256_storeu_si256(into.as_mut_ptr().cast(), self.0) }
    }

    #[inline(always)]
    fn widen(halves: &[u16; WIDTH]) -> Numbers {
        let mut numbers = [0.0; WIDTH];
        // SAFETY: 16 bytes are there to be read and 32 to be written, at any alignment; the caller was compiled for
        // f16c.
        unsafe {
            let halves = _mm_loadu_si128(halves.as_ptr().cast());
            _mm256_storeu_ps(numbers.as_mut_ptr(), _mm256_cvtph_ps(halves));
        }
        numbers
    }

    #[inline(always)]
    fn prefetch(address: *const u8) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[inline(always)]
    fn sum_bytes<const H: usize>(words: &[[u32; H]], steps: &[Step], half: usize) -> Held<Self, H> {
        let (steps, words, rounds) = rounds(words, steps, half);
        // SAFETY: the caller was compiled for avx2; `rounds` says what is there.
        held(unsafe { loops::sum_bytes(H, steps, words, rounds) })
    }

    #[inline(always)]
    fn pairs<const H: usize>(words: &[[u32; H]], steps: &[Step], half: usize, ends: Ends<'_, H>) {
        let (steps, words, rounds) = rounds(words, steps, half);
        // SAFETY: the caller was compiled for avx2 and fma; `rounds` and `pointers` say what is there.
        unsafe { loops::pairs(H, steps, words, rounds, &pointers(ends, half)) }
    }

    #[inline(always)]
    fn bytes<const H: usize>(words: &[[u32; H]], steps: &[Step], half: usize, ends: Ends<'_, H>) {
        let (steps, words, rounds) = rounds(words, steps, half);
        // SAFETY: the caller was compiled for avx2 and fma; `rounds` and `pointers` say what is there.
        unsafe { loops::bytes(H, steps, words, rounds, &pointers(ends, half)) }
    }

    #[inline(always)]
    fn products<const H: usize>(words: &[[u32; H]], steps: &[Step], half: usize, ends: Ends<'_, H>) {
        let (steps, words, rounds) = rounds(words, steps, half);
        // SAFETY: the caller was compiled for avx2 and fma; `rounds` and `pointers` say what is there.
        unsafe { loops::products(H, steps, words, rounds, &pointers(ends, half)) }
    }

    #[inline(always)]
    fn height_max(form: Form) -> usize {
        if form == Form::Bounded { Wide::HEIGHT_MAX - 1 } else { Wide::HEIGHT_MAX } // it needs two registers more
    }

    #[inline(always)]
    fn tile(height: usize, steps: &[Step], chunk: &Chunk<'_>, sums: &mut [Lanes]) {
        // SAFETY: the caller was compiled for avx2 and fma, which the machine therefore has.
        unsafe {
            match height {
                1 => tile_avx2::<1>(steps, chunk, sums),
                2 => tile_avx2::<2>(steps, chunk, sums),
                3 => tile_avx2::<3>(steps, chunk, sums),
                4 => tile_avx2::<4>(steps, chunk, sums),
                5 => tile_avx2::<5>(steps, chunk, sums),
                6 => tile_avx2::<6>(steps, chunk, sums),
                _ => unreachable!("tiles of eight registers have at most 6 rows"),
            }
        }
    }
}

/// Where the loops begin, and their rounds: of steps that both lists have, at least one round of them.
#[inline(always)]
fn rounds<const H: usize>(
    words: &[[u32; H]],
    steps: &[Step],
    half: usize,
) -> (*const u32, *const u32, usize) {
    let rounds = words.len().min(steps.len()) / loops::ROUND;
    assert!(rounds > 0 && half < 2 && steps.len().is_multiple_of(loops::ROUND), "groups are whole rounds");
    (steps.as_ptr().cast::<u32>().wrapping_add(2 * WIDTH * half), words.as_ptr().cast(), rounds)
}

/// The ends of a group for one half of the panel, which `rounds` has seen to be 0 or 1.
#[inline(always)]
fn pointers<const H: usize>(ends: Ends<'_, H>, half: usize) -> loops::Ends {
    let Ends { scales_x, totals, affine, sums } = ends;
    let at = 2 * WIDTH * half;
    loops::Ends {
        scales_x: scales_x.as_ptr(),
        totals: totals.as_ptr(),
        scales: affine.0.as_ptr().wrapping_add(at),
        zeros: affine.1.as_ptr().wrapping_add(at),
        sums: sums.as_mut_ptr().cast::<f32>().wrapping_add(at),
    }
}

/// The sums of the rows that there are.
#[inline(always)]
fn held<const H: usize>(sums: loops::Sums) -> Held<Ymm, H> {
    let mut held = [[Ymm(sums[0][0]); 2]; H];
    for (held, sums) in held.iter_mut().zip(sums) {
        *held = [Ymm(sums[0]), Ymm(sums[1])];
    }
    held
}

#[inline(never)]
#[target_feature(enable = "avx2,fma")]
fn tile_avx2<const H: usize>(steps: &[Step], chunk: &Chunk<'_>, sums: &mut [Lanes]) {
    tile::<Ymm, H>(steps, chunk, sums);
}
