//! Which instruction sets this machine offers.

use pyo3::prelude::*;

/// The instruction sets that kernels may use here, by their customary names; empty where none is known.
#[pyfunction]
pub fn cpu_features() -> Vec<&'static str> {
    let mut features = Vec::new();
    #[cfg(target_arch = "x86_64")]
    x86(&mut features);
    #[cfg(target_arch = "aarch64")]
    arm(&mut features);
    features
}

#[cfg(target_arch = "x86_64")]
fn x86(features: &mut Vec<&'static str>) {
    use std::arch::is_x86_feature_detected as has;
    let detected = [
        ("sse4.2", has!("sse4.2")),
        ("avx2", has!("avx2")),
        ("fma", has!("fma")),
        ("f16c", has!("f16c")),
        ("avxvnni", has!("avxvnni")),
        ("avx512f", has!("avx512f")),
        ("avx512bw", has!("avx512bw")),
        ("avx512vl", has!("avx512vl")),
        ("avx512vnni", has!("avx512vnni")),
        ("avx512bf16", has!("avx512bf16")),
        ("avx512fp16", has!("avx512fp16")),
    ];
    features.extend(detected.iter().filter(|(_, there)| *there).map(|(name, _)| name));
    features.extend(amx());
}

/// AMX by CPUID, because detecting it is not stable Rust yet.
/// Source: Intel SDM volume 1, section 18.3 (leaf 7, EDX bits 22, 24, 25; XCR0 bits 17 and 18).
#[cfg(target_arch = "x86_64")]
fn amx() -> Vec<&'static str> {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    let os_saves_state = std::arch::is_x86_feature_detected!("xsave")
        && __cpuid(1).ecx & (1 << 27) != 0
        // SAFETY: XSAVE and OSXSAVE were checked in the two conditions before.
        && unsafe { _xgetbv(0) } & (0b11 << 17) == 0b11 << 17;
    if !os_saves_state || __cpuid(0).eax < 7 {
        return Vec::new();
    }
    let edx = __cpuid_count(7, 0).edx;
    [("amx-tile", 24), ("amx-int8", 25), ("amx-bf16", 22)]
        .into_iter()
        .filter(|(_, bit)| edx & (1 << bit) != 0)
        .map(|(name, _)| name)
        .collect()
}

#[cfg(target_arch = "aarch64")]
fn arm(features: &mut Vec<&'static str>) {
    use std::arch::is_aarch64_feature_detected as has;
    let detected = [
        ("neon", has!("neon")),
        ("dotprod", has!("dotprod")),
        ("i8mm", has!("i8mm")),
        ("bf16", has!("bf16")),
        ("fp16", has!("fp16")),
        ("sve", has!("sve")),
    ];
    features.extend(detected.iter().filter(|(_, there)| *there).map(|(name, _)| name));
}
