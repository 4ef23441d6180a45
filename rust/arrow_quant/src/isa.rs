//! The same portable code compiled twice: for the baseline, and for the vector instructions of the machine.
//!
//! Rust neither reorders float operations nor fuses a product into a sum by itself, so both copies give the same
//! bits; which one runs decides only how fast.

#![allow(unsafe_code)]

/// A computation whose `run` is `#[inline(always)]` down to its loops, so that each copy compiles them anew.
pub(crate) trait Work {
    /// What it returns.
    type Output;
    /// Do it.
    fn run(self) -> Self::Output;
}

/// Runs `work` with the widest instructions at hand; `AIOS_ISA=scalar` keeps to the baseline.
pub(crate) fn fastest<W: Work>(work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    if wide() {
        // SAFETY: `wide` found every instruction set that `with_avx2` is compiled for.
        return unsafe { with_avx2(work) };
    }
    work.run()
}

#[cfg(target_arch = "x86_64")]
fn wide() -> bool {
    use std::arch::is_x86_feature_detected as has;
    static WIDE: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
        has!("avx2") && std::env::var_os("AIOS_ISA").is_none_or(|isa| isa != "scalar")
    });
    *WIDE
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_avx2<W: Work>(work: W) -> W::Output {
    work.run()
}
