//! ggml's block types: how many elements a block holds, what they stand for, and their codes where our packed order
//! can hold them without loss.
//!
//! Every value is computed by the same f32 operations in the same order as ggml's reference, so that equal blocks
//! give equal bits. Source: the block layouts of ggml (ggml-common.h, ggml-quants.c).

use aios_half::{narrow, widen};

/// Elements of a simple quantised block, and of a group of codes.
pub const GROUP: usize = 32;
const SUPER: usize = 256;

/// How elements are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, non_camel_case_types)] // ggml's own names
pub enum BlockType {
    F32,
    F16,
    BF16,
    F64,
    I8,
    I16,
    I32,
    I64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
}

use BlockType::*;

/// (code in files, type, name, elements of a block, bytes of a block).
const TABLE: [(u32, BlockType, &str, usize, usize); 16] = [
    (0, F32, "F32", 1, 4),
    (1, F16, "F16", 1, 2),
    (30, BF16, "BF16", 1, 2),
    (28, F64, "F64", 1, 8),
    (24, I8, "I8", 1, 1),
    (25, I16, "I16", 1, 2),
    (26, I32, "I32", 1, 4),
    (27, I64, "I64", 1, 8),
    (2, Q4_0, "Q4_0", GROUP, 18),
    (3, Q4_1, "Q4_1", GROUP, 20),
    (6, Q5_0, "Q5_0", GROUP, 22),
    (7, Q5_1, "Q5_1", GROUP, 24),
    (8, Q8_0, "Q8_0", GROUP, 34),
    (12, Q4_K, "Q4_K", SUPER, 144),
    (13, Q5_K, "Q5_K", SUPER, 176),
    (14, Q6_K, "Q6_K", SUPER, 210),
];

/// Types that exist and are not read, so that the refusal can name them.
const UNREAD: [(u32, &str); 18] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

impl BlockType {
    /// The type of a code in a file; None when it is not read here.
    pub fn from_code(code: u32) -> Option<Self> {
        TABLE.iter().find(|row| row.0 == code).map(|row| row.1)
    }

    /// The type of this name; None when it is not read here.
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.2 == name).map(|row| row.1)
    }

    /// The customary name of a code, known or not.
    pub fn name_of(code: u32) -> String {
        let known = TABLE.iter().map(|row| (row.0, row.2)).chain(UNREAD).find(|(one, _)| *one == code);
        known.map_or_else(|| format!("number {code}"), |(_, name)| name.into())
    }

    /// Its customary name.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Elements of one block.
    pub fn elements(self) -> usize {
        self.row().3
    }

    /// Bytes of one block.
    pub fn bytes(self) -> usize {
        self.row().4
    }

    fn row(self) -> &'static (u32, BlockType, &'static str, usize, usize) {
        // Every variant has its row: a test walks through all codes.
        TABLE.iter().find(|row| row.1 == self).unwrap_or(&TABLE[0])
    }

    /// Bits of a code when blocks of this type can be repacked without loss: `codes` takes them.
    pub fn code_bits(self) -> Option<u32> {
        match self {
            Q4_0 | Q4_1 => Some(4),
            Q8_0 => Some(8),
            _ => None,
        }
    }

    /// Whether its codes come with a zero point of their own.
    pub fn has_zeros(self) -> bool {
        self == Q4_1
    }
}

/// Why blocks were not converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The bytes are no whole number of blocks, or the output has another number of elements.
    Length,
    /// The type does not go this way.
    Type,
    /// A finite value is too large for f16.
    Range,
}

/// The values of `blocks`, into `out`: one f32 per element.
pub fn dequantize(kind: BlockType, blocks: &[u8], out: &mut [f32]) -> Result<(), Refusal> {
    check_length(kind, blocks, out.len())?;
    let pairs = blocks.chunks_exact(kind.bytes()).zip(out.chunks_exact_mut(kind.elements()));
    match kind {
        F32 => pairs.for_each(|(block, out)| out[0] = f32::from_le_bytes(*head(block))),
        F16 => pairs.for_each(|(block, out)| out[0] = half(block)),
        BF16 => pairs.for_each(|(b, out)| out[0] = f32::from_bits(u32::from_le_bytes([0, 0, b[0], b[1]]))),
        Q4_0 => pairs.for_each(|(block, out)| q4_0(block, out)),
        Q4_1 => pairs.for_each(|(block, out)| q4_1(block, out)),
        Q5_0 => pairs.for_each(|(block, out)| q5_0(block, out)),
        Q5_1 => pairs.for_each(|(block, out)| q5_1(block, out)),
        Q8_0 => pairs.for_each(|(block, out)| q8_0(block, out)),
        Q4_K => pairs.for_each(|(block, out)| q4_k(block, out)),
        Q5_K => pairs.for_each(|(block, out)| q5_k(block, out)),
        Q6_K => pairs.for_each(|(block, out)| q6_k(block, out)),
        F64 | I8 | I16 | I32 | I64 => return Err(Refusal::Type),
    }
    Ok(())
}

/// The values of `blocks` as little-endian f32, into `out`.
pub fn dequantize_single(kind: BlockType, blocks: &[u8], out: &mut [u8]) -> Result<(), Refusal> {
    spell::<4>(kind, blocks, out, |value| Ok(value.to_le_bytes()))
}

/// The values of `blocks` rounded to little-endian f16, into `out`.
pub fn dequantize_half(kind: BlockType, blocks: &[u8], out: &mut [u8]) -> Result<(), Refusal> {
    spell::<2>(kind, blocks, out, |value| {
        let half = narrow(value);
        let overflown = half & 0x7fff == 0x7c00 && value.is_finite();
        if overflown { Err(Refusal::Range) } else { Ok(half.to_le_bytes()) }
    })
}

fn spell<const WIDTH: usize>(
    kind: BlockType,
    blocks: &[u8],
    out: &mut [u8],
    bytes: impl Fn(f32) -> Result<[u8; WIDTH], Refusal>,
) -> Result<(), Refusal> {
    let (out, rest) = out.as_chunks_mut::<WIDTH>();
    if !rest.is_empty() {
        return Err(Refusal::Length);
    }
    check_length(kind, blocks, out.len())?;
    let mut values = [0.0; SUPER];
    for (block, out) in blocks.chunks_exact(kind.bytes()).zip(out.chunks_exact_mut(kind.elements())) {
        let values = &mut values[..kind.elements()];
        dequantize(kind, block, values)?;
        for (value, out) in values.iter().zip(out) {
            *out = bytes(*value)?;
        }
    }
    Ok(())
}

/// The unsigned codes of `blocks`, one byte each, and per group of 32 the f16 bits of its scale and zero.
///
/// A weight is zero + scale * code where the type has zeros, else scale * (code - 2^(bits - 1)); `zeros` is left alone
/// then.
pub fn codes(
    kind: BlockType,
    blocks: &[u8],
    codes: &mut [u8],
    scales: &mut [u16],
    zeros: &mut [u16],
) -> Result<(), Refusal> {
    if kind.code_bits().is_none() {
        return Err(Refusal::Type);
    }
    check_length(kind, blocks, codes.len())?;
    let groups = codes.len() / GROUP;
    if scales.len() != groups || (kind.has_zeros() && zeros.len() != groups) {
        return Err(Refusal::Length);
    }
    for (group, block) in blocks.chunks_exact(kind.bytes()).enumerate() {
        let out = &mut codes[group * GROUP..][..GROUP];
        scales[group] = u16::from_le_bytes(*head(block));
        match kind {
            Q4_1 => {
                zeros[group] = u16::from_le_bytes(*head(&block[2..]));
                nibbles(&block[4..], out);
            }
            Q4_0 => nibbles(&block[2..], out),
            // Signed bytes with their sign bit flipped count from -128 up.
            _ => out.iter_mut().zip(&block[2..]).for_each(|(out, code)| *out = code ^ 0x80),
        }
    }
    Ok(())
}

fn check_length(kind: BlockType, blocks: &[u8], elements: usize) -> Result<(), Refusal> {
    let count = blocks.len() / kind.bytes();
    let fits =
        blocks.len().is_multiple_of(kind.bytes()) && count.checked_mul(kind.elements()) == Some(elements);
    if fits { Ok(()) } else { Err(Refusal::Length) }
}

/// The first N bytes of a block that is known to be longer.
#[inline]
fn head<const N: usize>(block: &[u8]) -> &[u8; N] {
    match block.first_chunk() {
        Some(bytes) => bytes,
        None => unreachable!("blocks are cut to their size"),
    }
}

#[inline]
fn half(bytes: &[u8]) -> f32 {
    widen(u16::from_le_bytes(*head(bytes)))
}

/// 16 bytes to 32 codes: the low nibbles are the first half.
#[inline]
fn nibbles(bytes: &[u8], out: &mut [u8]) {
    let (low, high) = out.split_at_mut(GROUP / 2);
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        *low = byte & 15;
        *high = byte >> 4;
    }
}

fn q4_0(block: &[u8], out: &mut [f32]) {
    let (scale, mut codes) = (half(block), [0; GROUP]);
    nibbles(&block[2..], &mut codes);
    out.iter_mut().zip(codes).for_each(|(out, code)| *out = scale * f32::from(i16::from(code) - 8));
}

fn q4_1(block: &[u8], out: &mut [f32]) {
    let (scale, zero, mut codes) = (half(block), half(&block[2..]), [0; GROUP]);
    nibbles(&block[4..], &mut codes);
    out.iter_mut().zip(codes).for_each(|(out, code)| *out = scale * f32::from(code) + zero);
}

/// 32 codes of five bits: nibbles, and the fifth bits in a word.
fn five_bits(fifth: &[u8], bytes: &[u8]) -> [u8; GROUP] {
    let (fifth, mut codes) = (u32::from_le_bytes(*head(fifth)), [0; GROUP]);
    nibbles(bytes, &mut codes);
    for (index, code) in codes.iter_mut().enumerate() {
        *code |= ((fifth >> index & 1) << 4) as u8;
    }
    codes
}

fn q5_0(block: &[u8], out: &mut [f32]) {
    let (scale, codes) = (half(block), five_bits(&block[2..], &block[6..]));
    out.iter_mut().zip(codes).for_each(|(out, code)| *out = scale * f32::from(i16::from(code) - 16));
}

fn q5_1(block: &[u8], out: &mut [f32]) {
    let (scale, zero) = (half(block), half(&block[2..]));
    let codes = five_bits(&block[4..], &block[8..]);
    out.iter_mut().zip(codes).for_each(|(out, code)| *out = scale * f32::from(code) + zero);
}

fn q8_0(block: &[u8], out: &mut [f32]) {
    let scale = half(block);
    out.iter_mut().zip(&block[2..]).for_each(|(out, code)| *out = scale * f32::from(*code as i8));
}

/// (scale, minimum) of each of the 8 groups of a K super-block: six bits each, in 12 bytes.
fn six_bit_pairs(bytes: &[u8]) -> [(f32, f32); 8] {
    std::array::from_fn(|group| {
        let (scale, minimum) = if group < 4 {
            (bytes[group] & 63, bytes[group + 4] & 63)
        } else {
            let low = bytes[group + 4];
            (low & 15 | (bytes[group - 4] >> 6) << 4, low >> 4 | (bytes[group] >> 6) << 4)
        };
        (f32::from(scale), f32::from(minimum))
    })
}

/// Groups come in pairs that share 32 bytes: low nibbles the first, high nibbles the second.
fn q4_k(block: &[u8], out: &mut [f32]) {
    let (scale, minimum) = (half(block), half(&block[2..]));
    for (group, (s, m)) in six_bit_pairs(&block[4..]).into_iter().enumerate() {
        let (scale, minimum) = (scale * s, minimum * m);
        let bytes = &block[16 + group / 2 * GROUP..][..GROUP];
        for (out, byte) in out[group * GROUP..].iter_mut().zip(bytes) {
            *out = scale * f32::from(byte >> (group % 2 * 4) & 15) - minimum;
        }
    }
}

/// As Q4_K, with the fifth bits of group g in bit g of 32 more bytes.
fn q5_k(block: &[u8], out: &mut [f32]) {
    let (scale, minimum) = (half(block), half(&block[2..]));
    let fifth = &block[16..48];
    for (group, (s, m)) in six_bit_pairs(&block[4..]).into_iter().enumerate() {
        let (scale, minimum) = (scale * s, minimum * m);
        let bytes = &block[48 + group / 2 * GROUP..][..GROUP];
        for ((out, byte), fifth) in out[group * GROUP..].iter_mut().zip(bytes).zip(fifth) {
            let code = byte >> (group % 2 * 4) & 15 | (fifth >> group & 1) << 4;
            *out = scale * f32::from(code) - minimum;
        }
    }
}

/// Two halves of 128: each has 64 bytes of nibbles, 32 bytes of bit pairs, and 8 signed scales of 16 elements.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let scale = half(&block[208..]);
    for (part, out) in out.chunks_exact_mut(SUPER / 2).enumerate() {
        let (low, high) = (&block[part * 64..][..64], &block[128 + part * 32..][..32]);
        let scales: [f32; 8] = std::array::from_fn(|i| scale * f32::from(block[192 + part * 8 + i] as i8));
        for (index, out) in out.iter_mut().enumerate() {
            let quarter = index / GROUP;
            let nibble = low[index % 64] >> (quarter / 2 * 4) & 15;
            let pair = high[index % GROUP] >> (quarter * 2) & 3;
            *out = scales[index / 16] * f32::from(i16::from(nibble | pair << 4) - 32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_found_by_its_code_and_its_name() {
        for (code, kind, name, ..) in TABLE {
            assert_eq!(BlockType::from_code(code), Some(kind));
            assert_eq!(BlockType::from_name(name), Some(kind));
            assert_eq!(kind.name(), name);
        }
        assert_eq!(BlockType::from_code(10), None);
        assert_eq!(BlockType::name_of(10), "Q2_K");
        assert_eq!(BlockType::name_of(99), "number 99");
    }

    #[test]
    fn codes_stand_for_the_very_values_that_dequantisation_gives() {
        let mut seed = 1u32;
        let mut random = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 24) as u8
        };
        for kind in [Q4_0, Q4_1, Q8_0] {
            let mut blocks: Vec<u8> = (0..kind.bytes() * 64).map(|_| random()).collect();
            for block in blocks.chunks_exact_mut(kind.bytes()) {
                block[1] &= 0xbf; // finite scales and zeros
                block[3] = if kind == Q4_1 { block[3] & 0xbf } else { block[3] };
            }
            let mut values = vec![0.0; 64 * GROUP];
            dequantize(kind, &blocks, &mut values).unwrap();
            let (mut levels, mut scales, mut zeros) = (vec![0; 64 * GROUP], vec![0; 64], vec![0; 64]);
            codes(kind, &blocks, &mut levels, &mut scales, &mut zeros).unwrap();
            for (index, value) in values.iter().enumerate() {
                let (scale, code) = (widen(scales[index / GROUP]), f32::from(levels[index]));
                let ours = match kind.has_zeros() {
                    true => widen(zeros[index / GROUP]) + scale * code,
                    false => scale * (code - (1 << (kind.code_bits().unwrap() - 1)) as f32),
                };
                assert_eq!(ours.to_bits(), value.to_bits(), "{kind:?} {index}");
            }
        }
    }

    #[test]
    fn wrong_lengths_and_types_are_refused() {
        let mut out = [0.0; 32];
        assert_eq!(dequantize(Q4_0, &[0; 17], &mut out), Err(Refusal::Length));
        assert_eq!(dequantize(Q4_0, &[0; 36], &mut out), Err(Refusal::Length));
        assert_eq!(dequantize(I8, &[0; 32], &mut out), Err(Refusal::Type));
        assert_eq!(dequantize(Q4_0, &[], &mut []), Ok(()));
        assert_eq!(dequantize_half(F32, &1e6f32.to_le_bytes(), &mut [0; 2]), Err(Refusal::Range));
        assert_eq!(dequantize_half(F32, &f32::INFINITY.to_le_bytes(), &mut [0; 2]), Ok(()));
        let (mut scales, mut zeros) = ([0; 1], [0; 0]);
        assert_eq!(codes(Q6_K, &[0; 210], &mut [0; 256], &mut scales, &mut zeros), Err(Refusal::Type));
        assert_eq!(codes(Q4_1, &[0; 20], &mut [0; 32], &mut scales, &mut zeros), Err(Refusal::Length));
    }
}
