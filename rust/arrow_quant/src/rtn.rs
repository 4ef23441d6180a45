//! Round to nearest: each group's grid spans its weights, each weight takes the nearest code.

use crate::fault::{Fault, length};
use crate::grid::{Grid, Group, Kind, ROWS, range, unfit};
use crate::half;
use crate::isa::{Work, fastest};
use crate::order::{GROUP_MAX, Layout};
use crate::pack::{PackedMut, PanelMut};

/// How a group's grid is chosen from its weights.
pub(crate) trait Choose: Sync {
    /// The grid of `weights`, the real columns of a group that starts at column `start`.
    fn grid(&self, kind: Kind, weights: &[f32], start: usize) -> Grid;

    /// `grid` of the same group of some rows; a row that is not there is empty, its grid anything.
    #[inline(always)]
    fn grids(&self, kind: Kind, rows: &[&[f32]; ROWS], start: usize) -> [Grid; ROWS] {
        let mut grids = [Grid::default(); ROWS];
        for (grid, row) in grids.iter_mut().zip(rows).filter(|(_, row)| !row.is_empty()) {
            *grid = self.grid(kind, row, start); // a loop, as the closure of `map` would not join the AVX2 copy
        }
        grids
    }
}

/// From the smallest to the largest weight.
struct Span;

impl Choose for Span {
    #[inline(always)]
    fn grid(&self, kind: Kind, weights: &[f32], _start: usize) -> Grid {
        let (low, high) = range(weights);
        Grid::spanning(kind, low, high)
    }

    #[inline(always)]
    fn grids(&self, kind: Kind, rows: &[&[f32]; ROWS], _start: usize) -> [Grid; ROWS] {
        Grid::spanning_rows(kind, rows)
    }
}

/// The least squared error, weighted by the importance of the columns where it is known.
pub(crate) struct Search<'a> {
    pub importance: Option<&'a [f32]>,
}

impl Choose for Search<'_> {
    #[inline(always)]
    fn grid(&self, kind: Kind, weights: &[f32], start: usize) -> Grid {
        let importance = self.importance.map(|of| &of[start..start + weights.len()]);
        Group::new(weights, importance).search(kind, weights.len())
    }
}

/// Rounds `weights` (rows x columns) to nearest. With `search`, each group's range is the one of least squared
/// error, weighted by `importance` (one per column) if given.
pub fn quantize(
    weights: &[f32],
    search: bool,
    importance: Option<&[f32]>,
    out: &mut PackedMut<'_>,
) -> Result<(), Fault> {
    importance.map_or(Ok(()), |of| length("the importance", out.layout.columns(), of.len()))?;
    if search { each_group(weights, &Search { importance }, out) } else { each_group(weights, &Span, out) }
}

/// Gives each group the grid that `choose` finds for it, and each weight the nearest code.
pub(crate) fn each_group<C: Choose>(
    weights: &[f32],
    choose: &C,
    out: &mut PackedMut<'_>,
) -> Result<(), Fault> {
    let layout = out.layout;
    length("weights", layout.rows() * layout.columns(), weights.len())?;
    let kind = Kind::of(&layout, out.zeros.is_none());
    out.each_panel(|panel| fastest(Panel { weights, kind, choose, panel }))
}

struct Panel<'a, C> {
    weights: &'a [f32],
    kind: Kind,
    choose: &'a C,
    panel: PanelMut<'a>,
}

impl<C: Choose> Work for Panel<'_, C> {
    type Output = Result<(), Fault>;

    #[inline(always)]
    fn run(mut self) -> Self::Output {
        let layout = self.panel.layout;
        let columns = layout.columns();
        let real = layout.panel_rows(self.panel.panel);
        let weights = &self.weights[real.start * columns..real.end * columns];
        for (row, at) in real.enumerate() {
            check(&weights[row * columns..][..columns], at)?;
            if row % ROWS == ROWS - 1 || at + 1 == layout.rows() {
                let first = row / ROWS * ROWS;
                self.rows(layout, first, &weights[first * columns..][..(row + 1 - first) * columns]);
            }
        }
        self.panel.clear_padding();
        Ok(())
    }
}

impl<C: Choose> Panel<'_, C> {
    /// At most `ROWS` rows, group after group.
    #[inline(always)]
    fn rows(&mut self, layout: Layout, first: usize, weights: &[f32]) {
        let mut codes = [0u8; GROUP_MAX];
        for group in 0..layout.groups() {
            let columns = layout.group_columns(group);
            let mut rows: [&[f32]; ROWS] = [&[]; ROWS];
            for (row, weights) in rows.iter_mut().zip(weights.chunks_exact(layout.columns())) {
                *row = &weights[columns.clone()];
            }
            let grids = self.choose.grids(self.kind, &rows, columns.start);
            let padded = columns.len().next_multiple_of(32);
            for (row, (weights, grid)) in rows.iter().zip(&grids).enumerate() {
                if weights.is_empty() {
                    break;
                }
                for (code, &weight) in codes.iter_mut().zip(*weights) {
                    *code = grid.code(weight);
                }
                if padded > weights.len() {
                    codes[weights.len()..padded].fill(0);
                }
                self.panel.put_codes(group, first + row, &codes[..padded]);
            }
            let (mut scales, mut zeros) = ([0; ROWS], [0; ROWS]);
            for (row, grid) in grids.iter().enumerate() {
                (scales[row], zeros[row]) = (half::narrow(grid.scale), half::narrow(grid.zero));
            }
            self.panel.put_scales(group, first, &scales, &zeros);
        }
    }
}

/// Refuses a row with a weight that no grid can stand for.
#[inline(always)]
pub(crate) fn check(weights: &[f32], row: usize) -> Result<(), Fault> {
    unfit(weights).map_or(Ok(()), |column| Err(Fault::Weight { row, column, value: weights[column] }))
}
