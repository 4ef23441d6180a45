//! The innermost loops on AVX2 as instructions: a compiler mixes the sums of several steps and runs out of registers.
//!
//! Sums of half a panel for up to six rows of x stay in ymm0 to ymm11, two for each row. Four steps make a round, of
//! which a group has eight at most: longer loops end in a branch that no machine foresees. Behind the last round the
//! sums meet their scales where they are.

use std::arch::asm;
use std::arch::x86_64::{__m256i, _mm256_setzero_si256};

/// Steps of a round; every group has a multiple of as many.
pub(super) const ROUND: usize = 4;
/// Rows that there are sums for, used or not.
pub(super) const ROWS: usize = 6;

/// Sums of two vectors of rows of the panel for each row of x; those of rows that a loop does not have mean nothing.
pub(super) type Sums = [[__m256i; 2]; ROWS];

/// What the integer sums of a group become: factors of the rows of x, what half of the panel's rows have in the group,
/// and the sums over groups [row][32] from the first of these rows on.
pub(super) struct Ends {
    pub scales_x: *const f32,
    pub totals: *const f32,
    pub scales: *const f32,
    pub zeros: *const f32,
    pub sums: *mut f32,
}

/// Products of two columns each, added as they are.
macro_rules! plain {
    ($multiply:literal $add:literal $height:literal $step:literal $($row:literal $a:literal $b:literal)*) => {
        concat!(
            "vmovdqa ymm12, [{steps} + 128*", $step, "]\n",
            "vmovdqa ymm13, [{steps} + 128*", $step, " + 32]\n",
            $(
                "vpbroadcastd ymm14, [{words} + 4*", $height, "*", $step, " + 4*", $row, "]\n",
                $multiply, " ymm15, ymm12, ymm14\n",
                $multiply, " ymm14, ymm13, ymm14\n",
                $add, " ymm", $a, ", ymm", $a, ", ymm15\n",
                $add, " ymm", $b, ", ymm", $b, ", ymm14\n",
            )*
        )
    };
}

/// Bytes that are added in halves.
macro_rules! bytes {
    () => { "" };
    (ends) => { "vpcmpeqw ymm12, ymm12, ymm12\nvpsrlw ymm12, ymm12, 15\n" };
    (across $a:literal) => { concat!("vpmaddwd ymm", $a, ", ymm", $a, ", ymm12\n") };
    ($($rest:tt)*) => { plain!("vpmaddubsw" "vpaddw" $($rest)*) };
}

/// Halves that are added in words.
macro_rules! pairs {
    () => { "" };
    (ends) => { "" };
    (across $a:literal) => { "" };
    ($($rest:tt)*) => { plain!("vpmaddwd" "vpaddd" $($rest)*) };
}

/// Bytes that are added in words, for five rows: the ones that widen them take a register.
macro_rules! products {
    () => { "vpcmpeqw ymm12, ymm12, ymm12\nvpsrlw ymm12, ymm12, 15\n" };
    (ends) => { "" };
    (across $a:literal) => { "" };
    ($height:literal $step:literal $($row:literal $a:literal $b:literal)*) => {
        concat!(
            "vmovdqa ymm10, [{steps} + 128*", $step, "]\n",
            "vmovdqa ymm11, [{steps} + 128*", $step, " + 32]\n",
            $(
                "vpbroadcastd ymm13, [{words} + 4*", $height, "*", $step, " + 4*", $row, "]\n",
                "vpmaddubsw ymm14, ymm10, ymm13\n",
                "vpmaddubsw ymm13, ymm11, ymm13\n",
                "vpmaddwd ymm14, ymm14, ymm12\n",
                "vpmaddwd ymm13, ymm13, ymm12\n",
                "vpaddd ymm", $a, ", ymm", $a, ", ymm14\n",
                "vpaddd ymm", $b, ", ymm", $b, ", ymm13\n",
            )*
        )
    };
}

/// Sums over groups += zero * total + (sum * scale_x) * scale, for one vector of a row: as `Words::finish` does.
macro_rules! end_vector {
    ($kind:ident $row:literal $sum:literal $at:literal) => {
        concat!(
            $kind!(across $sum),
            "vcvtdq2ps ymm", $sum, ", ymm", $sum, "\n",
            "vmulps ymm", $sum, ", ymm", $sum, ", ymm13\n",
            "vmovups ymm15, [{sums} + 128*", $row, " + ", $at, "]\n",
            "vfmadd231ps ymm15, ymm14, [{zeros} + ", $at, "]\n",
            "vfmadd231ps ymm15, ymm", $sum, ", [{scales} + ", $at, "]\n",
            "vmovups [{sums} + 128*", $row, " + ", $at, "], ymm15\n",
        )
    };
}

/// The same for both vectors of a row.
macro_rules! end_row {
    ($kind:ident $row:literal $a:literal $b:literal) => {
        concat!(
            "vbroadcastss ymm13, [{scales_x} + 4*", $row, "]\n",
            "vbroadcastss ymm14, [{totals} + 4*", $row, "]\n",
            end_vector!($kind $row $a 0),
            end_vector!($kind $row $b 32),
        )
    };
}

/// A whole group of a tile, sums and ends.
macro_rules! group {
    ($name:ident, $kind:ident, $height:literal, $($row:literal $a:literal $b:literal)*) => {
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn $name(steps: *const u32, words: *const u32, rounds: usize, ends: &Ends) {
            // SAFETY: reads and writes what the caller promised; a step's halves are aligned.
            unsafe {
                asm!(
                    concat!($("vpxor xmm", $a, ", xmm", $a, ", xmm", $a, "\n",
                              "vpxor xmm", $b, ", xmm", $b, ", xmm", $b, "\n",)*),
                    $kind!(),
                    "2:",
                    $kind!($height 0 $($row $a $b)*),
                    $kind!($height 1 $($row $a $b)*),
                    $kind!($height 2 $($row $a $b)*),
                    $kind!($height 3 $($row $a $b)*),
                    "add {steps}, 128*4",
                    concat!("add {words}, 4*4*", $height),
                    "dec {rounds}",
                    "jnz 2b",
                    $kind!(ends),
                    $(end_row!($kind $row $a $b),)*
                    steps = inout(reg) steps => _,
                    words = inout(reg) words => _,
                    rounds = inout(reg) rounds => _,
                    scales_x = in(reg) ends.scales_x,
                    totals = in(reg) ends.totals,
                    scales = in(reg) ends.scales,
                    zeros = in(reg) ends.zeros,
                    sums = in(reg) ends.sums,
                    out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _,
                    out("ymm6") _, out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
                    out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                    options(nostack),
                );
            }
        }
    };
}

/// The sums of a part of a group alone.
macro_rules! sums {
    ($name:ident, $kind:ident, $height:literal, $($row:literal $a:literal $b:literal)*) => {
        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn $name(steps: *const u32, words: *const u32, rounds: usize) -> Sums {
            let mut sums: Sums = [[_mm256_setzero_si256(); 2]; ROWS];
            // SAFETY: reads what the caller promised and writes no memory; a step's halves are aligned.
            unsafe {
                asm!(
                    concat!($("vpxor xmm", $a, ", xmm", $a, ", xmm", $a, "\n",
                              "vpxor xmm", $b, ", xmm", $b, ", xmm", $b, "\n",)*),
                    $kind!(),
                    "2:",
                    $kind!($height 0 $($row $a $b)*),
                    $kind!($height 1 $($row $a $b)*),
                    $kind!($height 2 $($row $a $b)*),
                    $kind!($height 3 $($row $a $b)*),
                    "add {steps}, 128*4",
                    concat!("add {words}, 4*4*", $height),
                    "dec {rounds}",
                    "jnz 2b",
                    steps = inout(reg) steps => _,
                    words = inout(reg) words => _,
                    rounds = inout(reg) rounds => _,
                    out("ymm0") sums[0][0], out("ymm1") sums[0][1],
                    out("ymm2") sums[1][0], out("ymm3") sums[1][1],
                    out("ymm4") sums[2][0], out("ymm5") sums[2][1],
                    out("ymm6") sums[3][0], out("ymm7") sums[3][1],
                    out("ymm8") sums[4][0], out("ymm9") sums[4][1],
                    out("ymm10") sums[5][0], out("ymm11") sums[5][1],
                    out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                    options(nostack, readonly),
                );
            }
            sums
        }
    };
}

/// The loops of a kind for every height that it has registers for.
macro_rules! heights {
    ($(#[$doc:meta])* $name:ident, $kind:ident, $($height:literal $each:ident: $($row:literal $a:literal $b:literal)*;)*) => {
        $(group!($each, $kind, $height, $($row $a $b)*);)*

        $(#[$doc])*
        ///
        /// # Safety
        /// `rounds` is not 0; `steps` points to one half of a step, behind which lie all others of so many rounds;
        /// `words` to as many words for each of `height` rows. `ends` points to as many factors and rows of sums as
        /// the tile is high, and to what sixteen rows of the panel have in the group.
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        pub(super) unsafe fn $name(
            height: usize,
            steps: *const u32,
            words: *const u32,
            rounds: usize,
            ends: &Ends,
        ) {
            // SAFETY: as the caller promised.
            unsafe {
                match height {
                    $($height => $each(steps, words, rounds, ends),)*
                    _ => unreachable!("tiles are no higher than their registers allow"),
                }
            }
        }
    };
}

heights!(
    /// Unsigned bytes times signed ones, added in halves.
    bytes, bytes,
    1 bytes_1: 0 0 1;
    2 bytes_2: 0 0 1 1 2 3;
    3 bytes_3: 0 0 1 1 2 3 2 4 5;
    4 bytes_4: 0 0 1 1 2 3 2 4 5 3 6 7;
    5 bytes_5: 0 0 1 1 2 3 2 4 5 3 6 7 4 8 9;
    6 bytes_6: 0 0 1 1 2 3 2 4 5 3 6 7 4 8 9 5 10 11;
);
heights!(
    /// Signed halves, added in words.
    pairs, pairs,
    1 pairs_1: 0 0 1;
    2 pairs_2: 0 0 1 1 2 3;
    3 pairs_3: 0 0 1 1 2 3 2 4 5;
    4 pairs_4: 0 0 1 1 2 3 2 4 5 3 6 7;
    5 pairs_5: 0 0 1 1 2 3 2 4 5 3 6 7 4 8 9;
    6 pairs_6: 0 0 1 1 2 3 2 4 5 3 6 7 4 8 9 5 10 11;
);
heights!(
    /// Unsigned bytes times signed ones, of which two fit a half, added in words.
    products, products,
    1 products_1: 0 0 1;
    2 products_2: 0 0 1 1 2 3;
    3 products_3: 0 0 1 1 2 3 2 4 5;
    4 products_4: 0 0 1 1 2 3 2 4 5 3 6 7;
    5 products_5: 0 0 1 1 2 3 2 4 5 3 6 7 4 8 9;
);
sums!(sums_1, bytes, 1, 0 0 1);
sums!(sums_2, bytes, 2, 0 0 1 1 2 3);
sums!(sums_3, bytes, 3, 0 0 1 1 2 3 2 4 5);
sums!(sums_4, bytes, 4, 0 0 1 1 2 3 2 4 5 3 6 7);
sums!(sums_5, bytes, 5, 0 0 1 1 2 3 2 4 5 3 6 7 4 8 9);
sums!(sums_6, bytes, 6, 0 0 1 1 2 3 2 4 5 3 6 7 4 8 9 5 10 11);

/// Sums of unsigned bytes times signed ones, in halves: of a part of a group.
///
/// # Safety
/// As for `bytes`, without ends.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn sum_bytes(height: usize, steps: *const u32, words: *const u32, rounds: usize) -> Sums {
    // SAFETY: as the caller promised.
    unsafe {
        match height {
            1 => sums_1(steps, words, rounds),
            2 => sums_2(steps, words, rounds),
            3 => sums_3(steps, words, rounds),
            4 => sums_4(steps, words, rounds),
            5 => sums_5(steps, words, rounds),
            6 => sums_6(steps, words, rounds),
            _ => unreachable!("tiles are no higher than their registers allow"),
        }
    }
}
