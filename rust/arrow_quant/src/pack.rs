//! Plain codes into the packed order and back, and the weights that packed codes stand for.

use crate::fault::{Fault, length};
use crate::grid::ROWS;
use crate::half;
use crate::isa::{Work, fastest};
use crate::order::{BLOCK_BYTES, GROUP_MAX, Layout, PANEL_ROWS, spread, word};
use crate::threads::each_chunk;

/// A packed matrix, borrowed; the residual is separate.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    /// Its sizes.
    pub layout: Layout,
    /// Codes in the packed order.
    pub codes: &'a [u8],
    /// f16, `[panel][group][row]`.
    pub scales: &'a [u16],
    /// f16, like the scales; none: symmetric.
    pub zeros: Option<&'a [u16]>,
}

/// The buffers of a packed matrix that is being made.
#[derive(Debug)]
pub struct PackedMut<'a> {
    /// Its sizes.
    pub layout: Layout,
    /// Codes in the packed order.
    pub codes: &'a mut [u8],
    /// f16, `[panel][group][row]`.
    pub scales: &'a mut [u16],
    /// f16, like the scales; none: symmetric.
    pub zeros: Option<&'a mut [u16]>,
}

/// One panel of a packed matrix that is being made.
pub(crate) struct PanelMut<'a> {
    pub panel: usize,
    pub layout: Layout,
    pub codes: &'a mut [u8],
    pub scales: &'a mut [u16],
    pub zeros: Option<&'a mut [u16]>,
}

impl<'a> Packed<'a> {
    /// Checks the buffers' lengths.
    pub fn new(
        layout: Layout,
        codes: &'a [u8],
        scales: &'a [u16],
        zeros: Option<&'a [u16]>,
    ) -> Result<Self, Fault> {
        length("the codes' buffer", layout.codes_bytes(), codes.len())?;
        length("the scales' buffer", layout.scales(), scales.len())?;
        zeros.map_or(Ok(()), |zeros| length("the zeros' buffer", layout.scales(), zeros.len()))?;
        Ok(Packed { layout, codes, scales, zeros })
    }

    /// The scale of a row's group and the weight that its code 0 stands for.
    #[inline(always)]
    fn scale_zero(&self, panel: usize, group: usize, row: usize) -> (f32, f32) {
        let at = panel * self.layout.panel_scales() + group * PANEL_ROWS + row;
        let scale = half::widen(self.scales[at]);
        let zero = match self.zeros {
            Some(zeros) => half::widen(zeros[at]),
            None => -(scale * f32::from(self.layout.middle())), // a power of two: scale * (c - middle) exactly
        };
        (scale, zero)
    }
}

impl<'a> PackedMut<'a> {
    /// Checks the buffers' lengths.
    pub fn new(
        layout: Layout,
        codes: &'a mut [u8],
        scales: &'a mut [u16],
        zeros: Option<&'a mut [u16]>,
    ) -> Result<Self, Fault> {
        Packed::new(layout, codes, scales, zeros.as_deref())?;
        Ok(PackedMut { layout, codes, scales, zeros })
    }

    /// The same, to be read.
    #[must_use]
    pub fn as_packed(&self) -> Packed<'_> {
        Packed { layout: self.layout, codes: self.codes, scales: self.scales, zeros: self.zeros.as_deref() }
    }

    /// Fills every panel by `fill`, in parallel; a panel's result may not depend on another's.
    pub(crate) fn each_panel<F>(&mut self, fill: F) -> Result<(), Fault>
    where
        F: Fn(PanelMut<'_>) -> Result<(), Fault> + Sync,
    {
        let layout = self.layout;
        if layout.rows() == 0 || layout.columns() == 0 {
            return Ok(());
        }
        let (bytes, scales) = (layout.panel_bytes(), layout.panel_scales());
        let mut zeros = self.zeros.as_deref_mut().map(|zeros| zeros.chunks_exact_mut(scales));
        let parts = self.codes.chunks_exact_mut(bytes).zip(self.scales.chunks_exact_mut(scales)).enumerate();
        let mut panels: Vec<(Option<PanelMut<'_>>, Result<(), Fault>)> = parts
            .map(|(panel, (codes, scales))| {
                let zeros = zeros.as_mut().and_then(Iterator::next);
                (Some(PanelMut { panel, layout, codes, scales, zeros }), Ok(()))
            })
            .collect();
        each_chunk(&mut panels, 1, |_, panels| {
            for (panel, result) in panels {
                *result = panel.take().map_or(Ok(()), &fill);
            }
        });
        panels.into_iter().try_for_each(|(_, result)| result) // the first fault in row order, whichever thread met it first
    }
}

impl PanelMut<'_> {
    /// Writes the codes of one row's group; `codes` has its padding to whole blocks, zeroed.
    #[inline(always)]
    pub fn put_codes(&mut self, group: usize, row: usize, codes: &[u8]) {
        let start = group * self.layout.group_size() * self.layout.bits() / 32 * BLOCK_BYTES;
        let bytes = &mut self.codes[start..];
        match self.layout.bits() {
            8 => put::<8, 4>(bytes, row, codes),
            4 => put::<4, 8>(bytes, row, codes),
            _ => put::<2, 16>(bytes, row, codes),
        }
    }

    /// Writes the scale, and the zero if the matrix has zeros, of one row's group.
    #[inline(always)]
    pub fn put_scale(&mut self, group: usize, row: usize, scale: u16, zero: u16) {
        self.scales[group * PANEL_ROWS + row] = scale;
        if let Some(zeros) = &mut self.zeros {
            zeros[group * PANEL_ROWS + row] = zero;
        }
    }

    /// Writes the scales and zeros of one group, from row `first` on.
    #[inline(always)]
    pub fn put_scales(&mut self, group: usize, first: usize, scales: &[u16; ROWS], zeros: &[u16; ROWS]) {
        let at = group * PANEL_ROWS + first;
        self.scales[at..at + ROWS].copy_from_slice(scales);
        if let Some(into) = &mut self.zeros {
            into[at..at + ROWS].copy_from_slice(zeros);
        }
    }

    /// Clears scales and zeros of the padded rows, and their codes.
    pub fn clear_padding(&mut self) {
        let real = self.layout.panel_rows(self.panel).len();
        if real == PANEL_ROWS {
            return;
        }
        self.codes.chunks_exact_mut(BLOCK_BYTES).for_each(|block| block[4 * real..].fill(0));
        self.scales.chunks_exact_mut(PANEL_ROWS).for_each(|rows| rows[real..].fill(0));
        if let Some(zeros) = &mut self.zeros {
            zeros.chunks_exact_mut(PANEL_ROWS).for_each(|rows| rows[real..].fill(0));
        }
    }
}

#[inline(always)]
fn put<const BITS: usize, const COLUMNS: usize>(bytes: &mut [u8], row: usize, codes: &[u8]) {
    let blocks = bytes.as_chunks_mut::<BLOCK_BYTES>().0;
    for (block, codes) in blocks.iter_mut().zip(codes.as_chunks::<COLUMNS>().0) {
        block[4 * row..4 * row + 4].copy_from_slice(&word::<BITS>(codes).to_le_bytes());
    }
}

/// Packs plain codes (rows x columns), scales and zeros (rows x groups); every row in parallel.
pub fn pack(
    codes: &[u8],
    scales: &[u16],
    zeros: Option<&[u16]>,
    out: &mut PackedMut<'_>,
) -> Result<(), Fault> {
    let layout = out.layout;
    length("codes", layout.rows() * layout.columns(), codes.len())?;
    length("scales", layout.rows() * layout.groups(), scales.len())?;
    zeros.map_or(Ok(()), |zeros| length("zeros", layout.rows() * layout.groups(), zeros.len()))?;
    length("zeros", usize::from(zeros.is_some()), usize::from(out.zeros.is_some()))?;
    out.each_panel(|mut panel| {
        for (row, at) in layout.panel_rows(panel.panel).enumerate() {
            for group in 0..layout.groups() {
                let columns = layout.group_columns(group);
                let mut padded = [0u8; GROUP_MAX];
                let real = &codes[at * layout.columns()..][columns.clone()];
                if let Some(bad) = real.iter().position(|&code| code > layout.code_max()) {
                    let column = columns.start + bad;
                    return Err(Fault::Code { row: at, column, value: real[bad] });
                }
                padded[..real.len()].copy_from_slice(real);
                panel.put_codes(group, row, &padded[..real.len().next_multiple_of(32)]);
                let place = at * layout.groups() + group;
                panel.put_scale(group, row, scales[place], zeros.map_or(0, |zeros| zeros[place]));
            }
        }
        panel.clear_padding();
        Ok(())
    })
}

/// The plain codes (rows x columns) of a packed matrix.
pub fn unpack_codes(packed: Packed<'_>, codes: &mut [u8]) -> Result<(), Fault> {
    let layout = packed.layout;
    length("codes", layout.rows() * layout.columns(), codes.len())?;
    each_row(layout, codes, |row, out| match layout.bits() {
        8 => spread_row::<8, 4>(packed, row, out),
        4 => spread_row::<4, 8>(packed, row, out),
        _ => spread_row::<2, 16>(packed, row, out),
    });
    Ok(())
}

fn spread_row<const BITS: usize, const COLUMNS: usize>(packed: Packed<'_>, row: usize, out: &mut [u8]) {
    for (codes, word) in out.chunks_mut(COLUMNS).zip(words(packed, row)) {
        let mut whole = [0u8; COLUMNS];
        spread::<BITS>(word, &mut whole);
        codes.copy_from_slice(&whole[..codes.len()]);
    }
}

/// Scales or zeros of the packed order as (rows x groups).
pub fn unpack_scales(layout: Layout, packed: &[u16], plain: &mut [u16]) -> Result<(), Fault> {
    length("the packed scales", layout.scales(), packed.len())?;
    length("scales", layout.rows() * layout.groups(), plain.len())?;
    if layout.groups() == 0 {
        return Ok(());
    }
    for (row, out) in plain.chunks_exact_mut(layout.groups()).enumerate() {
        let panel = &packed[row / PANEL_ROWS * layout.panel_scales()..];
        for (value, rows) in out.iter_mut().zip(panel.as_chunks::<PANEL_ROWS>().0) {
            *value = rows[row % PANEL_ROWS];
        }
    }
    Ok(())
}

/// The weights (rows x columns) that a packed matrix stands for, without its residual.
pub fn dequantize(packed: Packed<'_>, weights: &mut [f32]) -> Result<(), Fault> {
    let layout = packed.layout;
    length("weights", layout.rows() * layout.columns(), weights.len())?;
    each_row(layout, weights, |row, out| fastest(DequantizeRow { packed, row, out }));
    Ok(())
}

struct DequantizeRow<'a> {
    packed: Packed<'a>,
    row: usize,
    out: &'a mut [f32],
}

impl Work for DequantizeRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        match self.packed.layout.bits() {
            8 => self.weights::<8, 4>(),
            4 => self.weights::<4, 8>(),
            _ => self.weights::<2, 16>(),
        }
    }
}

impl DequantizeRow<'_> {
    #[inline(always)]
    fn weights<const BITS: usize, const COLUMNS: usize>(self) {
        let mut words = words(self.packed, self.row);
        for (group, out) in self.out.chunks_mut(self.packed.layout.group_size()).enumerate() {
            let (scale, zero) = self.packed.scale_zero(self.row / PANEL_ROWS, group, self.row % PANEL_ROWS);
            let (blocks, tail) = out.as_chunks_mut::<COLUMNS>();
            for (out, word) in blocks.iter_mut().zip(&mut words) {
                *out = block::<BITS, COLUMNS>(word, scale, zero);
            }
            if !tail.is_empty()
                && let Some(word) = words.next()
            {
                tail.copy_from_slice(&block::<BITS, COLUMNS>(word, scale, zero)[..tail.len()]);
            }
        }
    }
}

/// The weights of one row's word.
#[inline(always)]
fn block<const BITS: usize, const COLUMNS: usize>(word: u32, scale: f32, zero: f32) -> [f32; COLUMNS] {
    let mut codes = [0u8; COLUMNS];
    spread::<BITS>(word, &mut codes);
    codes.map(|code| zero + scale * f32::from(code))
}

/// The words of one row, block after block.
#[inline(always)]
fn words<'a>(packed: Packed<'a>, row: usize) -> impl Iterator<Item = u32> + 'a {
    let bytes = packed.layout.panel_bytes();
    let panel = &packed.codes[row / PANEL_ROWS * bytes..][..bytes];
    let at = 4 * (row % PANEL_ROWS);
    panel
        .as_chunks::<BLOCK_BYTES>()
        .0
        .iter()
        .map(move |block| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]))
}

/// Calls `fill` with every row of a plain matrix, in parallel.
fn each_row<T: Send>(layout: Layout, plain: &mut [T], fill: impl Fn(usize, &mut [T]) + Sync) {
    if layout.columns() > 0 {
        each_chunk(plain, PANEL_ROWS * layout.columns(), |panel, rows| {
            for (row, out) in rows.chunks_exact_mut(layout.columns()).enumerate() {
                fill(panel * PANEL_ROWS + row, out);
            }
        });
    }
}
