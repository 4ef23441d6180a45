//! The packed order of weights, version 1: its one definition.
//!
//! A matrix of n rows (outputs) and k columns (inputs) becomes codes of b = 8, 4 or 2 bits. G = 32, 64 or 128
//! columns of a row form a group, which shares an f16 scale and, unless symmetric, an f16 zero:
//!
//! ```text
//! weight = zero + scale * code          asymmetric: `zero` is the weight that code 0 stands for
//! weight = scale * (code - 2^(b-1))     symmetric: no zeros are stored; scale may be negative
//! ```
//!
//! in f32, one rounding for each operation. The last group of a row may be shorter than G.
//!
//! - **Panels.** 32 rows form a panel; rows are padded to a multiple of 32, columns as well. Any run of panels is
//!   one contiguous run of every buffer: files, conversions and kernels all stream panel by panel.
//! - **Blocks.** A panel is a sequence of blocks of 128 bytes, two cache lines. A block covers 32/b consecutive
//!   columns (4 at 8 bits, 8 at 4, 16 at 2) of the panel's 32 rows.
//! - **Words.** Row r of a block owns bytes 4r to 4r + 3, one little-endian word. Byte q of the word holds, in bits
//!   [b*u, b*(u+1)), the code of column k0 + 4u + q of the block that starts at column k0.
//! - **Scales, zeros**: f16, `[panel][group][row of the panel]`: one vector load serves the panel's rows.
//! - **Padding**: codes, scales and zeros are 0. Kernels feed zeros for padded columns and drop padded rows.
//!
//! Why words of four columns: vpdpbusd, its narrower relatives and AMX tiles all take the dot product of four
//! consecutive bytes in each 32-bit lane, so 8-bit codes are used as they lie, a register for 8 or 16 rows; 4 and 2
//! bits become that same register by one shift and one mask, without a shuffle (word >> b*u & 0x0f0f0f0f is columns
//! 4u to 4u+3). Codes are unsigned because that is the operand they enter by. Rows lie across lanes, so scales are
//! applied lane by lane and no sum crosses lanes, for one activation row as for many.

use crate::fault::Fault;

/// The version that files and carriers name.
pub const ORDER: u32 = 1;
/// Rows of a panel: four registers of 8 f32, two of 16.
pub const PANEL_ROWS: usize = 32;
/// Bytes of a block: a word for each row of the panel.
pub const BLOCK_BYTES: usize = 4 * PANEL_ROWS;
/// Columns are padded to a multiple of this; every block size and every group size agrees with it.
pub const COLUMN_PADDING: usize = 32;
/// Group sizes of this order.
pub const GROUP_SIZES: [usize; 3] = [32, 64, 128];
/// The largest group.
pub const GROUP_MAX: usize = 128;
/// The highest rank of a residual: beyond it a plain matrix is smaller or as small.
pub const RANK_MAX: usize = 256;
/// The longest axis: keeps every size below in 64 bits, and is far above any layer.
pub const AXIS_MAX: usize = 1 << 30;

/// The sizes of one packed matrix; everything else follows from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    rows: usize,
    columns: usize,
    bits: usize,
    group_size: usize,
}

impl Layout {
    /// Checks the sizes: bits 8, 4 or 2, a group size of this order, axes within `AXIS_MAX`, buffers addressable.
    pub fn new(rows: usize, columns: usize, bits: usize, group_size: usize) -> Result<Self, Fault> {
        if !matches!(bits, 2 | 4 | 8) {
            return Err(Fault::Bits(bits));
        }
        if !GROUP_SIZES.contains(&group_size) {
            return Err(Fault::GroupSize(group_size));
        }
        let most = isize::MAX as usize / 4; // of weights: copies of them in f32 stay addressable
        let padded = rows
            .max(1)
            .checked_next_multiple_of(PANEL_ROWS)
            .and_then(|rows| rows.checked_mul(columns.max(1).checked_next_multiple_of(COLUMN_PADDING)?));
        if rows > AXIS_MAX || columns > AXIS_MAX || padded.is_none_or(|count| count > most) {
            return Err(Fault::TooLarge { rows, columns });
        }
        Ok(Layout { rows, columns, bits, group_size })
    }

    /// Rows of the matrix.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the matrix.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bits of a code.
    #[must_use]
    pub fn bits(&self) -> usize {
        self.bits
    }

    /// Columns that share a scale.
    #[must_use]
    pub fn group_size(&self) -> usize {
        self.group_size
    }

    /// The largest code.
    #[must_use]
    pub fn code_max(&self) -> u8 {
        ((1u16 << self.bits) - 1) as u8
    }

    /// The code of weight 0 in a symmetric matrix.
    #[must_use]
    pub fn middle(&self) -> u8 {
        1 << (self.bits - 1)
    }

    /// Panels of 32 rows, the last one padded.
    #[must_use]
    pub fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL_ROWS)
    }

    /// Columns with their padding.
    #[must_use]
    pub fn columns_padded(&self) -> usize {
        self.columns.next_multiple_of(COLUMN_PADDING)
    }

    /// Groups of a row, the last one possibly shorter.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.columns.div_ceil(self.group_size)
    }

    /// The real columns of group `group`.
    #[must_use]
    pub fn group_columns(&self, group: usize) -> std::ops::Range<usize> {
        let start = group * self.group_size;
        start..(start + self.group_size).min(self.columns)
    }

    /// The real rows of panel `panel`.
    #[must_use]
    pub fn panel_rows(&self, panel: usize) -> std::ops::Range<usize> {
        let start = panel * PANEL_ROWS;
        start..(start + PANEL_ROWS).min(self.rows)
    }

    /// Columns of a block.
    #[must_use]
    pub fn block_columns(&self) -> usize {
        32 / self.bits
    }

    /// Bytes of a panel's codes.
    #[must_use]
    pub fn panel_bytes(&self) -> usize {
        self.columns_padded() / self.block_columns() * BLOCK_BYTES
    }

    /// Bytes of all codes.
    #[must_use]
    pub fn codes_bytes(&self) -> usize {
        self.panels() * self.panel_bytes()
    }

    /// Scales (or zeros) of a panel.
    #[must_use]
    pub fn panel_scales(&self) -> usize {
        self.groups() * PANEL_ROWS
    }

    /// All scales (or zeros).
    #[must_use]
    pub fn scales(&self) -> usize {
        self.panels() * self.panel_scales()
    }

    /// Where the code of (row, column) lies: the byte, and the lowest bit in it.
    #[must_use]
    pub fn place(&self, row: usize, column: usize) -> (usize, usize) {
        let (panel, row) = (row / PANEL_ROWS, row % PANEL_ROWS);
        let (block, column) = (column / self.block_columns(), column % self.block_columns());
        let byte = panel * self.panel_bytes() + block * BLOCK_BYTES + 4 * row + column % 4;
        (byte, column / 4 * self.bits)
    }
}

/// The word of one row in a block: its 32/BITS codes in column order.
#[inline(always)]
#[must_use]
pub fn word<const BITS: usize>(codes: &[u8]) -> u32 {
    let mut word = 0;
    for (u, four) in codes.as_chunks::<4>().0[..8 / BITS].iter().enumerate() {
        word |= u32::from_le_bytes(*four) << (BITS * u);
    }
    word
}

/// The 32/BITS codes of a row's word, in column order.
#[inline(always)]
pub fn spread<const BITS: usize>(word: u32, codes: &mut [u8]) {
    let mask = u32::from_ne_bytes([((1u16 << BITS) - 1) as u8; 4]);
    for (u, four) in codes.as_chunks_mut::<4>().0[..8 / BITS].iter_mut().enumerate() {
        *four = (word >> (BITS * u) & mask).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_no_buffer_could_have_are_refused() {
        assert!(Layout::new(1, 1, 3, 64).is_err());
        assert!(Layout::new(1, 1, 4, 48).is_err());
        assert!(Layout::new(AXIS_MAX + 1, 1, 4, 64).is_err());
        assert!(Layout::new(AXIS_MAX, AXIS_MAX, 8, 32).is_ok());
        assert!(Layout::new(usize::MAX, usize::MAX, 8, 32).is_err());
    }

    #[test]
    fn every_code_has_a_place_of_its_own() {
        for bits in [8, 4, 2] {
            let layout = Layout::new(37, 70, bits, 32).unwrap();
            let mut taken = vec![0u8; layout.codes_bytes()];
            for row in 0..layout.panels() * PANEL_ROWS {
                for column in 0..layout.columns_padded() {
                    let (byte, bit) = layout.place(row, column);
                    let mask = layout.code_max() << bit;
                    assert_eq!(taken[byte] & mask, 0);
                    taken[byte] |= mask;
                }
            }
            assert!(taken.iter().all(|&byte| byte == 0xFF));
        }
    }

    #[test]
    fn a_word_is_what_place_says() {
        let layout = Layout::new(32, 32, 2, 32).unwrap();
        let codes: Vec<u8> = (0..16).map(|i| (i * 7 + 1) % 4).collect();
        let bytes = word::<2>(&codes).to_le_bytes();
        for (column, &code) in codes.iter().enumerate() {
            let (byte, bit) = layout.place(0, column);
            assert_eq!(bytes[byte] >> bit & 3, code);
        }
        let mut back = [0; 16];
        spread::<2>(u32::from_le_bytes(bytes), &mut back);
        assert_eq!(back.as_slice(), codes);
    }
}
