//! Tiles of exact sums of bytes of x times bytes of a packed weight.

#![allow(unsafe_code)]

use super::pack::{TOGETHER, panel_len_of, parts, steps};
use super::{QUAD, WIDTH, foresee};
use crate::matmul::Isa;

/// Rows of a tile: with two vectors of columns its sums take ten of sixteen registers, and two steps need six.
pub(super) const HEIGHT: usize = 5;
type Sums = [[i32; WIDTH]; HEIGHT];

/// Products of so many values with the instructions at hand.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    isa: Isa,
    steps: usize,
}

impl Tiles {
    pub fn new(isa: Isa, depth: usize) -> Self {
        Tiles { isa, steps: steps(depth) }
    }

    /// Words of the rows of one tile.
    pub fn words(self) -> usize {
        self.steps * HEIGHT
    }

    /// Writes the columns of a panel, from `first` on, for all rows that have a scale.
    ///
    /// `x` holds whole tiles, step after step of one word for each row.
    pub fn panel(
        self,
        x: &[u32],
        scales: &[f32],
        packed: &[u8],
        out: &mut [f32],
        outputs: usize,
        first: usize,
    ) {
        assert!(packed.len() == panel_len_of(self.steps));
        #[cfg(target_arch = "x86_64")]
        if self.isa.name() == "avx2" {
            // SAFETY: an `Isa` of this name comes from `reachable` only, which found avx2.
            return unsafe { self.panel_avx2(x, scales, packed, out, outputs, first) };
        }
        self.panel_of(x, scales, packed, out, (outputs, first), portable);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn panel_avx2(
        self,
        x: &[u32],
        scales: &[f32],
        packed: &[u8],
        out: &mut [f32],
        outputs: usize,
        first: usize,
    ) {
        self.panel_of(x, scales, packed, out, (outputs, first), |x, words, sums| {
            assert!(x.len() == self.words() && words.len() == self.steps * QUAD * WIDTH);
            // SAFETY: this is compiled for avx2; all steps are there, which are whole rounds.
            unsafe { avx2(x.as_ptr(), words.as_ptr(), self.steps / TOGETHER, sums) }
        });
    }

    #[inline(always)]
    fn panel_of(
        self,
        x: &[u32],
        scales: &[f32],
        packed: &[u8],
        out: &mut [f32],
        (outputs, first): (usize, usize),
        tile: impl Fn(&[u32], &[u8], &mut Sums),
    ) {
        let (words, of_w, starts) = parts(packed);
        let columns = first..outputs.min(first + WIDTH);
        let tiles = x.chunks_exact(self.words()).zip(out.chunks_mut(HEIGHT * outputs));
        let mut sums = [[0; WIDTH]; HEIGHT];
        for ((x, out), scales) in tiles.zip(scales.chunks(HEIGHT)) {
            foresee(out, outputs, first);
            tile(x, words, &mut sums);
            for ((out, sums), scale) in out.chunks_exact_mut(outputs).zip(&sums).zip(scales) {
                let mut values = [0.0; WIDTH];
                for i in 0..WIDTH {
                    values[i] = sums[i].wrapping_add(starts[i]) as f32 * (scale * of_w[i]);
                }
                let out = &mut out[columns.clone()];
                match out.first_chunk_mut::<WIDTH>() {
                    Some(whole) => *whole = values,
                    None => out.copy_from_slice(&values[..out.len()]),
                }
            }
        }
    }
}

/// What the instructions do, number by number; packed bytes that `pack` did not make may saturate a half.
fn portable(x: &[u32], words: &[u8], sums: &mut Sums) {
    *sums = [[0; WIDTH]; HEIGHT];
    let x = x.as_chunks::<HEIGHT>().0.as_chunks::<TOGETHER>().0;
    for (x, words) in x.iter().zip(words.as_chunks::<{ TOGETHER * QUAD * WIDTH }>().0) {
        for row in 0..HEIGHT {
            for column in 0..WIDTH {
                let mut halves = [0i16; 2];
                for step in 0..TOGETHER {
                    let (x, w) =
                        (x[step][row].to_le_bytes(), &words[(step * WIDTH + column) * QUAD..][..QUAD]);
                    for (at, half) in halves.iter_mut().enumerate() {
                        let products =
                            [2 * at, 2 * at + 1].map(|at| i32::from(x[at]) * i32::from(w[at] as i8));
                        let two = products.iter().sum::<i32>().clamp(i16::MIN.into(), i16::MAX.into());
                        *half = half.wrapping_add(two as i16);
                    }
                }
                let sum = &mut sums[row][column];
                *sum = sum.wrapping_add(i32::from(halves[0]) + i32::from(halves[1]));
            }
        }
    }
}

/// Two steps of one row: where its words lie, and its sums.
#[cfg(target_arch = "x86_64")]
macro_rules! row {
    ($first:literal $second:literal $a:literal $b:literal) => {
        concat!(
            "vpbroadcastd ymm11, [{x} + ",
            $first,
            "]\n",
            "vpbroadcastd ymm13, [{x} + ",
            $second,
            "]\n",
            "vpmaddubsw ymm12, ymm11, ymm15\n",
            "vpmaddubsw ymm11, ymm11, [{words} + 32]\n",
            "vpmaddubsw ymm14, ymm13, [{words} + 64]\n",
            "vpmaddubsw ymm13, ymm13, [{words} + 96]\n",
            "vpaddw ymm12, ymm12, ymm14\n",
            "vpaddw ymm11, ymm11, ymm13\n",
            "vpmaddwd ymm12, ymm12, ymm10\n",
            "vpmaddwd ymm11, ymm11, ymm10\n",
            "vpaddd ymm",
            $a,
            ", ymm",
            $a,
            ", ymm12\n",
            "vpaddd ymm",
            $b,
            ", ymm",
            $b,
            ", ymm11\n",
        )
    };
}

/// As instructions: a compiler mixes the sums of several steps and runs out of registers.
///
/// # Safety
/// `x` points to two steps of five words for each round, `words` to two of sixteen.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2(x: *const u32, words: *const u8, rounds: usize, sums: &mut Sums) {
    use std::arch::x86_64::{__m256i, _mm256_setzero_si256, _mm256_storeu_si256};
    const _: () =
        assert!(TOGETHER == 2 && HEIGHT == 5 && WIDTH == 16, "what the instructions are written for");
    let mut held: [[__m256i; 2]; HEIGHT] = [[_mm256_setzero_si256(); 2]; HEIGHT];
    if rounds > 0 {
        // SAFETY: reads what the caller promised and writes no memory.
        unsafe {
            std::arch::asm!(
                "vpcmpeqw ymm10, ymm10, ymm10",
                "vpsrlw ymm10, ymm10, 15",
                "2:",
                "vmovdqu ymm15, [{words}]",
                "prefetcht0 [{x} + {next}]",
                row!("0" "20" "0" "1"),
                row!("4" "24" "2" "3"),
                row!("8" "28" "4" "5"),
                row!("12" "32" "6" "7"),
                row!("16" "36" "8" "9"),
                "add {x}, 40",
                "add {words}, 128",
                "dec {rounds}",
                "jnz 2b",
                x = inout(reg) x => _,
                words = inout(reg) words => _,
                rounds = inout(reg) rounds => _,
                next = in(reg) 40 * rounds,
                inout("ymm0") held[0][0], inout("ymm1") held[0][1],
                inout("ymm2") held[1][0], inout("ymm3") held[1][1],
                inout("ymm4") held[2][0], inout("ymm5") held[2][1],
                inout("ymm6") held[3][0], inout("ymm7") held[3][1],
                inout("ymm8") held[4][0], inout("ymm9") held[4][1],
                out("ymm10") _, out("ymm11") _, out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                options(nostack, readonly),
            );
        }
    }
    for (sums, held) in sums.iter_mut().zip(held) {
        for (sums, held) in sums.as_chunks_mut::<8>().0.iter_mut().zip(held) {
            // SAFETY: eight words are there to be written, at any alignment.
            unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), held) };
        }
    }
}
