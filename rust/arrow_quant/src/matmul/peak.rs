//! What the machine could do at best: exact products of bytes from registers, and reading memory.
//!
//! With AVX2 an exact sum of products of 8-bit codes and 8-bit activations is made in two ways: of halves (pmaddwd,
//! paddd) or of bytes whose products of two fit a half (pmaddubsw, pmaddwd, paddd), which is the faster one. Both run
//! here without loads, on twelve sums, which hide the latency.

use std::sync::atomic::{AtomicU64, Ordering};

use super::threads::each;

/// Bytes that a thread reads at a time.
const PIECE: usize = 1 << 20;

/// How products are summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sequence {
    /// pmaddwd, paddd.
    Halves,
    /// pmaddubsw, pmaddwd, paddd.
    Bytes,
}

/// Makes products for `rounds` rounds on each of so many threads; returns how many, 0 on a machine without AVX2.
#[must_use]
pub fn products(sequence: Sequence, rounds: u64, threads: usize) -> u64 {
    let made = AtomicU64::new(0);
    each(
        threads,
        threads,
        || (),
        |(), _| {
            made.fetch_add(run(sequence, rounds), Ordering::Relaxed);
        },
    );
    made.into_inner()
}

#[cfg(not(target_arch = "x86_64"))]
fn run(_: Sequence, _: u64) -> u64 {
    0
}

#[cfg(target_arch = "x86_64")]
fn run(sequence: Sequence, rounds: u64) -> u64 {
    if rounds == 0 || !std::arch::is_x86_feature_detected!("avx2") {
        return 0;
    }
    // SAFETY: avx2 was found, and there is a round to be done.
    unsafe {
        match sequence {
            Sequence::Halves => halves(rounds),
            Sequence::Bytes => bytes(rounds),
        }
    }
    let products = match sequence {
        Sequence::Halves => 16,
        Sequence::Bytes => 32,
    };
    rounds.saturating_mul(12 * products)
}

/// A loop over twelve sums; what is multiplied, zeros, does not matter to the time.
#[cfg(target_arch = "x86_64")]
macro_rules! loop_of {
    ($(#[$doc:meta])* $name:ident, $($line:literal)*) => {
        $(#[$doc])*
        #[target_feature(enable = "avx2")]
        fn $name(rounds: u64) {
            // SAFETY: only the registers named here are changed, and no memory; `rounds` is not 0.
            unsafe {
                std::arch::asm!(
                    "vpxor ymm12, ymm12, ymm12",
                    "vpxor ymm13, ymm13, ymm13",
                    "2:",
                    $($line,)*
                    "dec {rounds}",
                    "jnz 2b",
                    rounds = inout(reg) rounds => _,
                    out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _,
                    out("ymm6") _, out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
                    out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                    options(nomem, nostack),
                );
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
loop_of!(
    halves,
    "vpmaddwd ymm14, ymm12, ymm13" "vpaddd ymm0, ymm0, ymm14"
    "vpmaddwd ymm15, ymm12, ymm13" "vpaddd ymm1, ymm1, ymm15"
    "vpmaddwd ymm14, ymm12, ymm13" "vpaddd ymm2, ymm2, ymm14"
    "vpmaddwd ymm15, ymm12, ymm13" "vpaddd ymm3, ymm3, ymm15"
    "vpmaddwd ymm14, ymm12, ymm13" "vpaddd ymm4, ymm4, ymm14"
    "vpmaddwd ymm15, ymm12, ymm13" "vpaddd ymm5, ymm5, ymm15"
    "vpmaddwd ymm14, ymm12, ymm13" "vpaddd ymm6, ymm6, ymm14"
    "vpmaddwd ymm15, ymm12, ymm13" "vpaddd ymm7, ymm7, ymm15"
    "vpmaddwd ymm14, ymm12, ymm13" "vpaddd ymm8, ymm8, ymm14"
    "vpmaddwd ymm15, ymm12, ymm13" "vpaddd ymm9, ymm9, ymm15"
    "vpmaddwd ymm14, ymm12, ymm13" "vpaddd ymm10, ymm10, ymm14"
    "vpmaddwd ymm15, ymm12, ymm13" "vpaddd ymm11, ymm11, ymm15"
);
#[cfg(target_arch = "x86_64")]
loop_of!(
    bytes,
    "vpmaddubsw ymm14, ymm12, ymm13" "vpmaddwd ymm14, ymm14, ymm13" "vpaddd ymm0, ymm0, ymm14"
    "vpmaddubsw ymm15, ymm12, ymm13" "vpmaddwd ymm15, ymm15, ymm13" "vpaddd ymm1, ymm1, ymm15"
    "vpmaddubsw ymm14, ymm12, ymm13" "vpmaddwd ymm14, ymm14, ymm13" "vpaddd ymm2, ymm2, ymm14"
    "vpmaddubsw ymm15, ymm12, ymm13" "vpmaddwd ymm15, ymm15, ymm13" "vpaddd ymm3, ymm3, ymm15"
    "vpmaddubsw ymm14, ymm12, ymm13" "vpmaddwd ymm14, ymm14, ymm13" "vpaddd ymm4, ymm4, ymm14"
    "vpmaddubsw ymm15, ymm12, ymm13" "vpmaddwd ymm15, ymm15, ymm13" "vpaddd ymm5, ymm5, ymm15"
    "vpmaddubsw ymm14, ymm12, ymm13" "vpmaddwd ymm14, ymm14, ymm13" "vpaddd ymm6, ymm6, ymm14"
    "vpmaddubsw ymm15, ymm12, ymm13" "vpmaddwd ymm15, ymm15, ymm13" "vpaddd ymm7, ymm7, ymm15"
    "vpmaddubsw ymm14, ymm12, ymm13" "vpmaddwd ymm14, ymm14, ymm13" "vpaddd ymm8, ymm8, ymm14"
    "vpmaddubsw ymm15, ymm12, ymm13" "vpmaddwd ymm15, ymm15, ymm13" "vpaddd ymm9, ymm9, ymm15"
    "vpmaddubsw ymm14, ymm12, ymm13" "vpmaddwd ymm14, ymm14, ymm13" "vpaddd ymm10, ymm10, ymm14"
    "vpmaddubsw ymm15, ymm12, ymm13" "vpmaddwd ymm15, ymm15, ymm13" "vpaddd ymm11, ymm11, ymm15"
);

/// Reads all of `memory` on so many threads; returns the exclusive or of its words, so that it is read.
#[must_use]
pub fn read(memory: &[u8], threads: usize) -> u64 {
    let found = AtomicU64::new(0);
    each(
        memory.len().div_ceil(PIECE),
        threads,
        || (),
        |(), at| {
            let piece = &memory[at * PIECE..][..PIECE.min(memory.len() - at * PIECE)];
            found.fetch_xor(crate::isa::fastest(Fold(piece)), Ordering::Relaxed);
        },
    );
    found.into_inner()
}

/// The exclusive or of words, several registers at a time.
struct Fold<'a>(&'a [u8]);

impl crate::isa::Work for Fold<'_> {
    type Output = u64;

    #[inline(always)]
    fn run(self) -> u64 {
        let mut folded = [0u64; 16];
        for line in self.0.as_chunks::<128>().0 {
            for (folded, word) in folded.iter_mut().zip(line.as_chunks::<8>().0) {
                *folded ^= u64::from_ne_bytes(*word);
            }
        }
        folded.iter().fold(0, |all, word| all ^ word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_makes_its_products_and_all_memory_is_read() {
        let one = products(Sequence::Bytes, 100, 1);
        assert_eq!(products(Sequence::Bytes, 100, 3), 3 * one);
        assert_eq!(products(Sequence::Halves, 0, 1), 0);
        let mut memory = vec![0u8; 3 * PIECE + 256];
        memory[2 * PIECE + 8] = 5;
        memory[3 * PIECE + 128] = 3;
        let word = |byte: u8| u64::from_ne_bytes([byte, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(read(&memory, 2), word(5) ^ word(3));
        assert_eq!(read(&[], 2), 0);
    }
}
