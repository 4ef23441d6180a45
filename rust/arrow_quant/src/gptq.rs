//! GPTQ: each column's rounding error is made up for in the columns that are still to be rounded.
//!
//! Minimises the error of the layer's output, trace((W - Q) H (W - Q)^T) with H = X^T X over calibration activations
//! X, one column after another. Columns of large activations come first, but groups stay whole, so that the packed
//! order needs no index: groups go by their mean diagonal of H, columns within a group by their own. A group's grid is
//! chosen when its turn comes, from its weights as they are then.
//! Source: Frantar, Ashkboos, Hoefler, Alistarh (2022), "GPTQ: Accurate Post-Training Quantization for Generative
//! Pre-trained Transformers", with the activation order of its implementation.

use std::cmp::Ordering;
use std::ops::Range;

use crate::fault::{Fault, length};
use crate::grid::{Grid, Group, Kind, range};
use crate::half;
use crate::hessian;
use crate::isa::{Work, fastest};
use crate::order::{GROUP_MAX, Layout, PANEL_ROWS};
use crate::pack::{PackedMut, PanelMut};
use crate::rtn::check;

/// One column of a panel: a number for each of its rows.
type Rows = [f32; PANEL_ROWS];

/// Quantises `weights` (rows x columns) given `hessian` = X^T X (columns x columns); `damping` of the mean diagonal is
/// added to it. With `search`, each group's range is the one of least squared error weighted by H's diagonal.
pub fn quantize(
    weights: &[f32],
    hessian: &[f64],
    damping: f64,
    search: bool,
    out: &mut PackedMut<'_>,
) -> Result<(), Fault> {
    let layout = out.layout;
    length("weights", layout.rows() * layout.columns(), weights.len())?;
    let diagonal = hessian::diagonal(hessian, layout.columns())?;
    let (order, turns) = turns(&layout, &diagonal);
    let added = hessian::damping(&diagonal, damping);
    let travels = hessian::propagation(hessian, &order, added)?;
    let kind = Kind::of(&layout, out.zeros.is_none());
    let importance: Vec<f32> = order.iter().map(|&column| (diagonal[column] + added) as f32).collect();
    let plan = Plan { order, turns, travels, importance, search, kind };
    out.each_panel(|panel| fastest(Panel { weights, plan: &plan, panel }))
}

/// The order of the columns, and each group with its places in that order.
fn turns(layout: &Layout, diagonal: &[f64]) -> (Vec<usize>, Vec<(usize, Range<usize>)>) {
    let falling = |a: f64, b: f64| b.partial_cmp(&a).unwrap_or(Ordering::Equal);
    let mean = |group: usize| {
        let columns = layout.group_columns(group);
        diagonal[columns.clone()].iter().sum::<f64>() / columns.len() as f64
    };
    let mut groups: Vec<(usize, f64)> = (0..layout.groups()).map(|group| (group, mean(group))).collect();
    groups.sort_by(|a, b| falling(a.1, b.1));
    let (mut order, mut turns) = (Vec::with_capacity(layout.columns()), Vec::with_capacity(groups.len()));
    for (group, _) in groups {
        let start = order.len();
        order.extend(layout.group_columns(group));
        order[start..].sort_by(|&a, &b| falling(diagonal[a], diagonal[b]));
        turns.push((group, start..order.len()));
    }
    (order, turns)
}

/// What all panels share.
struct Plan {
    /// The column at each place.
    order: Vec<usize>,
    /// Groups with their places, in order.
    turns: Vec<(usize, Range<usize>)>,
    /// Row j: what an error in each earlier place takes from place j.
    travels: Vec<f32>,
    /// By place.
    importance: Vec<f32>,
    search: bool,
    kind: Kind,
}

struct Panel<'a> {
    weights: &'a [f32],
    plan: &'a Plan,
    panel: PanelMut<'a>,
}

impl Work for Panel<'_> {
    type Output = Result<(), Fault>;

    #[inline(always)]
    fn run(mut self) -> Self::Output {
        let columns = self.panel.layout.columns();
        let mut current = vec![[0f32; PANEL_ROWS]; columns];
        for (row, at) in self.panel.layout.panel_rows(self.panel.panel).enumerate() {
            let weights = &self.weights[at * columns..][..columns];
            check(weights, at)?;
            for (place, &column) in current.iter_mut().zip(&self.plan.order) {
                place[row] = weights[column];
            }
        }
        for (group, places) in &self.plan.turns {
            let grids = self.grids(*group, &current[places.clone()], places);
            let errors = self.round(*group, &mut current, places, &grids);
            let (_, later) = current.split_at_mut(places.end);
            for (place, rows) in (places.end..).zip(later) {
                let travels = &self.plan.travels[place * columns..][places.clone()];
                *rows = minus(rows, &errors[..places.len()], travels);
            }
        }
        self.panel.clear_padding();
        Ok(())
    }
}

impl Panel<'_> {
    /// Chooses and stores the grid of each row's group.
    #[inline(always)]
    fn grids(&mut self, group: usize, current: &[Rows], places: &Range<usize>) -> [Grid; PANEL_ROWS] {
        let plan = self.plan;
        std::array::from_fn(|row| {
            let mut weights = [0f32; GROUP_MAX];
            for (weight, rows) in weights.iter_mut().zip(current) {
                // What errors added may leave f16's range, which stored grids cannot.
                *weight = rows[row].clamp(-half::MAX, half::MAX);
            }
            let weights = &weights[..places.len()];
            let grid = if plan.search {
                Group::new(weights, Some(&plan.importance[places.clone()])).search(plan.kind, weights.len())
            } else {
                let (low, high) = range(weights);
                Grid::spanning(plan.kind, low, high)
            };
            self.panel.put_scale(group, row, half::narrow(grid.scale), half::narrow(grid.zero));
            grid
        })
    }

    /// Rounds a group's columns in turn, each error made up for within the group; stores the codes, returns the errors.
    #[inline(always)]
    fn round(
        &mut self,
        group: usize,
        current: &mut [Rows],
        places: &Range<usize>,
        grids: &[Grid; PANEL_ROWS],
    ) -> [Rows; GROUP_MAX] {
        let (plan, columns) = (self.plan, self.panel.layout.columns());
        let mut errors = [[0f32; PANEL_ROWS]; GROUP_MAX];
        let mut codes = [[0u8; GROUP_MAX]; PANEL_ROWS];
        let first = self.panel.layout.group_columns(group).start;
        for (index, place) in places.clone().enumerate() {
            let travels = &plan.travels[place * columns..][places.start..place];
            let rows = minus(&current[place], &errors[..index], travels);
            for row in 0..PANEL_ROWS {
                let (code, nearest) = grids[row].nearest(rows[row]);
                codes[row][plan.order[place] - first] = code as u8;
                errors[index][row] = rows[row] - nearest;
            }
        }
        let real = self.panel.layout.panel_rows(self.panel.panel).len();
        for (row, codes) in codes.iter().enumerate().take(real) {
            self.panel.put_codes(group, row, &codes[..places.len().next_multiple_of(32)]);
        }
        errors
    }
}

/// `rows` minus the errors, each by how much of it travels here.
#[inline(always)]
fn minus(rows: &Rows, errors: &[Rows], travels: &[f32]) -> Rows {
    let mut rows = *rows;
    for (error, &share) in errors.iter().zip(travels) {
        for row in 0..PANEL_ROWS {
            rows[row] -= error[row] * share;
        }
    }
    rows
}
