//! AVX2: 32 products an instruction in 16 bits, which four codes, seven query bits and seventeen steps never overflow.

#![allow(clippy::needless_range_loop)] // indices of registers

use std::arch::x86_64::*;

use super::{Dots, GROUP, Portable, QUERIES, STEP_BYTES, Shapes};
use crate::code::{Query, STEP};

/// Steps of `STEP` coordinates whose products two 16-bit lanes hold: 8 * 2 * (2 * 15 * 63) < 2^15.
const STEPS_NARROW: usize = 8;
/// Quadruples of coordinates that a lane holds; STEP of them are a whole number of blocks.
const QUADS_NARROW: usize = 16;

/// To be inlined only into functions compiled for avx2 and fma, on machines that have them. There are no closures
/// here: each would be compiled without these instructions, and call them one by one.
pub(crate) struct Avx2;

#[inline(always)]
fn load<T>(from: &[T], bytes_at: usize) -> __m256i {
    assert!(bytes_at + 32 <= size_of_val(from));
    // SAFETY: the 32 bytes are within the slice; whoever calls this runs on a machine with avx2.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast::<u8>().add(bytes_at).cast()) }
}

#[inline(always)]
fn floats(from: &[f32; GROUP]) -> __m256 {
    // SAFETY: eight floats are 32 bytes; whoever calls this runs on a machine with avx2.
    unsafe { _mm256_loadu_ps(from.as_ptr()) }
}

impl Dots for Avx2 {
    #[inline(always)]
    fn four(codes: [&[u8]; 4], query: &[i8]) -> [i32; 4] {
        let steps = query.len() / STEP;
        assert!(codes.iter().all(|code| code.len() >= steps * STEP_BYTES));
        // SAFETY: avx2 is there; every load is within `steps` steps of a code or the query, as just checked.
        unsafe {
            let nibbles = _mm256_set1_epi8(15);
            let ones = _mm256_set1_epi16(1);
            let mut wide = [_mm256_setzero_si256(); 4];
            let mut first = 0;
            while first < steps {
                let last = (first + STEPS_NARROW).min(steps);
                let mut narrow = [_mm256_setzero_si256(); 4];
                for step in first..last {
                    let at = query.as_ptr().add(step * STEP);
                    let (low, high) =
                        (_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(STEP_BYTES).cast()));
                    for row in 0..4 {
                        let both = _mm256_loadu_si256(codes[row].as_ptr().add(step * STEP_BYTES).cast());
                        let first = _mm256_maddubs_epi16(_mm256_and_si256(both, nibbles), low);
                        let second = _mm256_and_si256(_mm256_srli_epi16::<4>(both), nibbles);
                        narrow[row] = _mm256_add_epi16(narrow[row], first);
                        narrow[row] = _mm256_add_epi16(narrow[row], _mm256_maddubs_epi16(second, high));
                    }
                }
                for row in 0..4 {
                    wide[row] = _mm256_add_epi32(wide[row], _mm256_madd_epi16(narrow[row], ones));
                }
                first = last;
            }
            let pairs = (_mm256_hadd_epi32(wide[0], wide[1]), _mm256_hadd_epi32(wide[2], wide[3]));
            let sums = _mm256_hadd_epi32(pairs.0, pairs.1);
            let sums = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
            let mut out = [0; 4];
            _mm_storeu_si128(out.as_mut_ptr().cast(), sums);
            out
        }
    }

    #[inline(always)]
    fn spread(codes: &[u8], stride: usize, group: &mut [u8]) {
        assert!(codes.len() >= GROUP * stride && group.len() >= 2 * GROUP * stride);
        for step in 0..stride / STEP_BYTES {
            // SAFETY: avx2 is there; both stores lie within the step's GROUP * STEP bytes of `group`.
            unsafe {
                let nibbles = _mm256_set1_epi8(15);
                let (mut low, mut high) = ([_mm256_setzero_si256(); GROUP], [_mm256_setzero_si256(); GROUP]);
                for row in 0..GROUP {
                    let both = load(codes, row * stride + step * STEP_BYTES);
                    low[row] = _mm256_and_si256(both, nibbles);
                    high[row] = _mm256_and_si256(_mm256_srli_epi16::<4>(both), nibbles);
                }
                let (low, high) = (transposed(low), transposed(high));
                let out = group.as_mut_ptr().add(step * STEP * GROUP);
                for at in 0..GROUP {
                    _mm256_storeu_si256(out.add(32 * at).cast(), low[at]);
                    _mm256_storeu_si256(out.add(32 * (GROUP + at)).cast(), high[at]);
                }
            }
        }
    }

    #[inline(always)]
    fn tile(groups: [&[u8]; 2], queries: [&[i8]; QUERIES]) -> [[i32; GROUP]; 2 * QUERIES] {
        let quads = queries[0].len() / 4;
        assert!(groups.iter().all(|group| group.len() >= quads * 4 * GROUP));
        assert!(queries.iter().all(|query| query.len() >= quads * 4));
        // SAFETY: avx2 is there; every load is one of the first `quads` of a group or a query, as just checked.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let mut wide = [_mm256_setzero_si256(); 2 * QUERIES];
            let mut first = 0;
            while first < quads {
                let last = (first + QUADS_NARROW).min(quads);
                let mut narrow = [_mm256_setzero_si256(); 2 * QUERIES];
                for quad in first..last {
                    let rows = [
                        _mm256_loadu_si256(groups[0].as_ptr().add(32 * quad).cast()),
                        _mm256_loadu_si256(groups[1].as_ptr().add(32 * quad).cast()),
                    ];
                    for query in 0..QUERIES {
                        let four = queries[query].as_ptr().add(4 * quad).cast::<i32>().read_unaligned();
                        let four = _mm256_set1_epi32(four);
                        for (group, rows) in rows.iter().enumerate() {
                            let at = group * QUERIES + query;
                            narrow[at] = _mm256_add_epi16(narrow[at], _mm256_maddubs_epi16(*rows, four));
                        }
                    }
                }
                for at in 0..2 * QUERIES {
                    wide[at] = _mm256_add_epi32(wide[at], _mm256_madd_epi16(narrow[at], ones));
                }
                first = last;
            }
            let mut out = [[0; GROUP]; 2 * QUERIES];
            for at in 0..2 * QUERIES {
                _mm256_storeu_si256(out[at].as_mut_ptr().cast(), wide[at]);
            }
            out
        }
    }

    #[inline(always)]
    fn sift(sums: &[i32; GROUP], shapes: Shapes<'_>, query: &Query, least: f32) -> (u32, [f32; GROUP]) {
        let sums = load(sums, 0);
        let (factors, offsets, errors) =
            (floats(shapes.factors), floats(shapes.offsets), floats(shapes.errors));
        // SAFETY: avx2 and fma are there; the store fills the array.
        unsafe {
            let dots = _mm256_fmadd_ps(
                _mm256_cvtepi32_ps(sums),
                _mm256_set1_ps(query.scale),
                _mm256_set1_ps(query.bias),
            );
            let scores = _mm256_fmadd_ps(factors, dots, offsets);
            let uppers = _mm256_fmadd_ps(errors, _mm256_set1_ps(query.reach), scores);
            let mask = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(uppers, _mm256_set1_ps(least)));
            let mut out = [0.0; GROUP];
            _mm256_storeu_ps(out.as_mut_ptr(), scores);
            (mask as u32, out)
        }
    }

    #[inline(always)]
    fn product(a: &[f32], b: &[f32]) -> f32 {
        Portable::product(a, b) // compiled for avx2 where it is inlined
    }

    #[inline(always)]
    fn distance(a: &[f32], b: &[f32]) -> f32 {
        Portable::distance(a, b)
    }
}

/// Row r's quadruple q of the input is row q's quadruple r of the output.
///
/// # Safety
/// The machine has avx2.
#[inline(always)]
unsafe fn transposed(rows: [__m256i; 8]) -> [__m256i; 8] {
    // SAFETY: avx2 is there, as the caller promises; nothing here touches memory.
    unsafe {
        let (a0, a1) = (_mm256_unpacklo_epi32(rows[0], rows[1]), _mm256_unpackhi_epi32(rows[0], rows[1]));
        let (b0, b1) = (_mm256_unpacklo_epi32(rows[2], rows[3]), _mm256_unpackhi_epi32(rows[2], rows[3]));
        let (c0, c1) = (_mm256_unpacklo_epi32(rows[4], rows[5]), _mm256_unpackhi_epi32(rows[4], rows[5]));
        let (d0, d1) = (_mm256_unpacklo_epi32(rows[6], rows[7]), _mm256_unpackhi_epi32(rows[6], rows[7]));
        let (p0, p1) = (_mm256_unpacklo_epi64(a0, b0), _mm256_unpackhi_epi64(a0, b0));
        let (p2, p3) = (_mm256_unpacklo_epi64(a1, b1), _mm256_unpackhi_epi64(a1, b1));
        let (q0, q1) = (_mm256_unpacklo_epi64(c0, d0), _mm256_unpackhi_epi64(c0, d0));
        let (q2, q3) = (_mm256_unpacklo_epi64(c1, d1), _mm256_unpackhi_epi64(c1, d1));
        [
            _mm256_permute2x128_si256::<0x20>(p0, q0),
            _mm256_permute2x128_si256::<0x20>(p1, q1),
            _mm256_permute2x128_si256::<0x20>(p2, q2),
            _mm256_permute2x128_si256::<0x20>(p3, q3),
            _mm256_permute2x128_si256::<0x31>(p0, q0),
            _mm256_permute2x128_si256::<0x31>(p1, q1),
            _mm256_permute2x128_si256::<0x31>(p2, q2),
            _mm256_permute2x128_si256::<0x31>(p3, q3),
        ]
    }
}
