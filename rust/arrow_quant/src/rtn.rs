//! Round to nearest: each group's grid spans its weights, each weight takes the nearest code.

use crate::fault::{Fault, length};
use crate::grid::{Grid, Group, Kind, range, unfit};
use crate::half;
use crate::isa::{Work, fastest};
use crate::order::{GROUP_MAX, Layout};
use crate::pack::{PackedMut, PanelMut};

/// How a group's grid is chosen from its weights.
pub(crate) trait Choose: Sync {
    /// The grid of `weights`, the real columns of a group that starts at column `start`.
    fn grid(&self, kind: Kind, weights: &[f32], start: usize) -> Grid;
}

/// From the smallest to the largest weight.
struct Span;

impl Choose for Span {
    #[inline(always)]
    fn grid(&self, kind: Kind, weights: &[f32], _start: usize) -> Grid {
        let (low, high) = range(weights);
        Grid::spanning(kind, low, high)
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
        for (row, at) in layout.panel_rows(self.panel.panel).enumerate() {
            let weights = &self.weights[at * layout.columns()..][..layout.columns()];
            check(weights, at)?;
            self.row(layout, row, weights);
        }
        self.panel.clear_padding();
        Ok(())
    }
}

impl<C: Choose> Panel<'_, C> {
    #[inline(always)]
    fn row(&mut self, layout: Layout, row: usize, weights: &[f32]) {
        let mut codes = [0u8; GROUP_MAX];
        for (group, weights) in weights.chunks(layout.group_size()).enumerate() {
            let grid = self.choose.grid(self.kind, weights, group * layout.group_size());
            for (code, &weight) in codes.iter_mut().zip(weights) {
                *code = grid.code(weight);
            }
            let padded = weights.len().next_multiple_of(32);
            codes[weights.len()..padded].fill(0);
            self.panel.put_codes(group, row, &codes[..padded]);
            self.panel.put_scale(group, row, half::narrow(grid.scale), half::narrow(grid.zero));
        }
    }
}

/// Refuses a row with a weight that no grid can stand for.
#[inline(always)]
pub(crate) fn check(weights: &[f32], row: usize) -> Result<(), Fault> {
    unfit(weights).map_or(Ok(()), |column| Err(Fault::Weight { row, column, value: weights[column] }))
}
