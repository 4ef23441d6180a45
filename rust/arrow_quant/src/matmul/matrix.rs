//! A packed matrix with its residual, checked once.

use std::ops::{Deref, DerefMut};

use crate::fault::{Fault, length};
use crate::half::widen;
use crate::order::{BLOCK_BYTES, PANEL_ROWS, RANK_MAX};
use crate::pack::Packed;

/// One value for each row of a panel: a column's weights, or sums over a panel.
///
/// On cache lines of its own: vectors that lie across two of them take twice as long, and what was just stored there
/// comes back slowly.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Lanes([f32; PANEL_ROWS]);

impl Lanes {
    /// Nothing yet.
    pub const ZERO: Lanes = Lanes([0.0; PANEL_ROWS]);
}

impl Deref for Lanes {
    type Target = [f32; PANEL_ROWS];

    #[inline(always)]
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Lanes {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

/// One f16 for each row of a panel.
pub(crate) type Halves = [u16; PANEL_ROWS];

/// A packed matrix and what is added to it; its buffers are as long as its layout says.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    packed: Packed<'a>,
    residual: Option<Residual<'a>>,
}

/// The product of two f16 factors (rows, rank) and (rank, columns), rank > 0.
#[derive(Clone, Copy, Debug)]
pub struct Residual<'a> {
    pub(crate) left: &'a [u16],
    pub(crate) right: &'a [u16],
    pub(crate) rank: usize,
}

impl<'a> Matrix<'a> {
    /// Checks the lengths; `residual` is (left, right, rank).
    pub fn new(packed: Packed<'a>, residual: Option<(&'a [u16], &'a [u16], usize)>) -> Result<Self, Fault> {
        let layout = packed.layout;
        Packed::new(layout, packed.codes, packed.scales, packed.zeros)?;
        if let Some((left, right, rank)) = residual {
            if !(1..=RANK_MAX).contains(&rank) {
                return Err(Fault::Rank(rank));
            }
            length("the residual's left factor", layout.rows() * rank, left.len())?;
            length("the residual's right factor", rank * layout.columns(), right.len())?;
        }
        let residual = residual.map(|(left, right, rank)| Residual { left, right, rank });
        Ok(Matrix { packed, residual })
    }

    /// Outputs.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.packed.layout.rows()
    }

    /// Inputs.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.packed.layout.columns()
    }

    /// The codes, scales and zeros.
    #[must_use]
    pub fn packed(&self) -> Packed<'a> {
        self.packed
    }

    /// What is added to the packed weights.
    #[must_use]
    pub fn residual(&self) -> Option<Residual<'a>> {
        self.residual
    }

    /// The blocks of one panel in the order of their columns.
    #[inline(always)]
    pub(crate) fn blocks(&self, panel: usize) -> &'a [[u8; BLOCK_BYTES]] {
        let bytes = self.packed.layout.panel_bytes();
        self.packed.codes[panel * bytes..][..bytes].as_chunks().0
    }

    /// Scale, and the weight of code 0, of a panel's rows in one group.
    #[inline(always)]
    pub(crate) fn affine(&self, panel: usize, group: usize) -> (Lanes, Lanes) {
        let at = panel * self.packed.layout.groups() + group;
        let lanes = |values: &[u16]| values.as_chunks::<PANEL_ROWS>().0[at].map(widen);
        let scale = lanes(self.packed.scales);
        let zero = self.packed.zeros.map_or_else(|| scale.map(|scale| self.zero(scale)), lanes);
        (Lanes(scale), Lanes(zero))
    }

    /// The scales, and the zeros where there are any, of a panel's rows in one group.
    #[inline(always)]
    pub(crate) fn halves(&self, panel: usize, group: usize) -> (&'a Halves, Option<&'a Halves>) {
        let at = panel * self.packed.layout.groups() + group;
        (&self.packed.scales.as_chunks().0[at], self.packed.zeros.map(|zeros| &zeros.as_chunks().0[at]))
    }

    /// `affine` of one row of the panel.
    #[inline(always)]
    pub(crate) fn affine_of(&self, panel: usize, group: usize, row: usize) -> (f32, f32) {
        let at = (panel * self.packed.layout.groups() + group) * PANEL_ROWS + row;
        let scale = widen(self.packed.scales[at]);
        (scale, self.packed.zeros.map_or_else(|| self.zero(scale), |zeros| widen(zeros[at])))
    }

    /// The weight of code 0 in a symmetric group: exact, as is every product of a scale (11 bits) and a code.
    #[inline(always)]
    fn zero(&self, scale: f32) -> f32 {
        -(scale * f32::from(self.packed.layout.middle()))
    }
}

impl<'a> Residual<'a> {
    /// Inputs, at least 1 where there is anything to multiply.
    pub(crate) fn columns(&self) -> usize {
        self.right.len() / self.rank
    }

    /// Rows of the left factor that belong to a panel.
    #[inline(always)]
    pub(crate) fn left_panel(&self, panel: usize) -> std::slice::ChunksExact<'a, u16> {
        let left = &self.left[panel * PANEL_ROWS * self.rank..];
        left[..left.len().min(PANEL_ROWS * self.rank)].chunks_exact(self.rank)
    }
}
