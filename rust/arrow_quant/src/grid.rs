//! The grid of one group: which weights its codes stand for, and how the grid is chosen.

use crate::half;
use crate::order::{GROUP_MAX, Layout};

/// Adding 2^23 leaves the nearest integer, ties to even, in the low bits of a number from 0 to 2^22.
const ROUND: f32 = 8_388_608.0;
/// Sums run in this many lanes on every machine, so that their order, and so the result, is the same.
const LANES: usize = 8;
/// Rows whose grids are chosen together: one vector holds a number of each.
pub(crate) const ROWS: usize = 8;
/// Ranges that `search` tries, from the full one down to `SEARCH_LEAST` of it.
const SEARCH_STEPS: usize = 12;
/// At 2 bits the best range of Gaussian weights is about half of the full one in a group of 128.
const SEARCH_LEAST: f32 = 0.4;
/// Least-squares corrections of each range; a third one changes nothing that shows.
const SEARCH_FITS: usize = 2;

/// What the groups of a matrix have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub code_max: f32,
    pub middle: f32,
    pub symmetric: bool,
}

impl Kind {
    pub fn of(layout: &Layout, symmetric: bool) -> Self {
        Kind { code_max: f32::from(layout.code_max()), middle: f32::from(layout.middle()), symmetric }
    }
}

/// Weights `zero + scale * code`; both were rounded to f16 before any code is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Grid {
    pub scale: f32,
    pub zero: f32,
    inverse: f32,
    code_max: f32,
}

impl Grid {
    /// The grid that is stored for this scale and zero; a symmetric one has its zero by its scale.
    #[inline(always)]
    pub fn stored(kind: Kind, scale: f32, zero: f32) -> Self {
        let scale = half::round(scale);
        let zero = if kind.symmetric { -(scale * kind.middle) } else { half::round(zero) };
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        Grid { scale, zero, inverse, code_max: kind.code_max }
    }

    /// The grid from the smallest to the largest weight; the symmetric one reaches the weight of the largest
    /// magnitude with code 0, the longer side, by the sign of its scale.
    #[inline(always)]
    pub fn spanning(kind: Kind, low: f32, high: f32) -> Self {
        if kind.symmetric {
            let extreme = if -low >= high { low } else { high };
            return Grid::stored(kind, -extreme / kind.middle, 0.0);
        }
        let zero = half::round(low);
        Grid::stored(kind, ((high - zero) / kind.code_max).max(0.0), zero)
    }

    /// `spanning` of each of some rows.
    #[inline(always)]
    pub fn spanning_rows(kind: Kind, rows: &[&[f32]; ROWS]) -> [Self; ROWS] {
        let (low, high) = ranges(rows);
        let mut grids = [Grid::default(); ROWS];
        for row in 0..ROWS {
            grids[row] = Grid::spanning(kind, low[row], high[row]);
        }
        grids
    }

    /// The code of the nearest grid point as a float's low byte; see `ROUND`.
    #[inline(always)]
    fn rounded(&self, weight: f32) -> f32 {
        let at = (weight - self.zero) * self.inverse;
        let at = if at > 0.0 { at } else { 0.0 };
        (if at < self.code_max { at } else { self.code_max }) + ROUND
    }

    /// The code of the nearest grid point.
    #[inline(always)]
    pub fn code(&self, weight: f32) -> u8 {
        self.rounded(weight).to_bits() as u8
    }

    /// The code of the nearest grid point, as a float, and its weight.
    #[inline(always)]
    pub fn nearest(&self, weight: f32) -> (f32, f32) {
        let code = self.rounded(weight) - ROUND;
        (code, self.zero + self.scale * code)
    }
}

/// The smallest and the largest of some weights, none of them NaN; (0, 0) of none.
#[inline(always)]
pub(crate) fn range(weights: &[f32]) -> (f32, f32) {
    let (low, high) = extremes(weights);
    (low.into_iter().reduce(least).unwrap_or(0.0), high.into_iter().reduce(most).unwrap_or(0.0))
}

/// `range` of each of some rows. Their lanes go through memory, from where pairs of them are compared in vectors.
#[inline(always)]
pub(crate) fn ranges(rows: &[&[f32]; ROWS]) -> ([f32; ROWS], [f32; ROWS]) {
    let (mut low, mut high) = ([[0.0; LANES]; ROWS], [[0.0; LANES]; ROWS]);
    for (row, weights) in rows.iter().enumerate() {
        (low[row], high[row]) = extremes(weights);
    }
    (pairs(low, least), pairs(high, most))
}

/// Each row's lanes reduced to one number, neighbours first: of equal numbers the first lane's stays.
#[inline(always)]
fn pairs(lanes: [[f32; LANES]; ROWS], pick: impl Fn(f32, f32) -> f32) -> [f32; ROWS] {
    let (mut fours, mut twos, mut ones) = ([0.0; 4 * ROWS], [0.0; 2 * ROWS], [0.0; ROWS]);
    let halve = |from: &[f32], to: &mut [f32]| {
        for (to, &[one, other]) in to.iter_mut().zip(from.as_chunks().0) {
            *to = pick(one, other);
        }
    };
    halve(lanes.as_flattened(), &mut fours);
    halve(&fours, &mut twos);
    halve(&twos, &mut ones);
    ones
}

/// The smallest and the largest weight of each lane; the first weight is in all.
#[inline(always)]
fn extremes(weights: &[f32]) -> ([f32; LANES], [f32; LANES]) {
    let first = weights.first().copied().unwrap_or(0.0);
    let (mut low, mut high) = ([first; LANES], [first; LANES]);
    let (whole, rest) = weights.as_chunks::<LANES>();
    for chunk in whole {
        low = std::array::from_fn(|lane| least(low[lane], chunk[lane]));
        high = std::array::from_fn(|lane| most(high[lane], chunk[lane]));
    }
    for (lane, &weight) in rest.iter().enumerate() {
        low[lane] = least(low[lane], weight);
        high[lane] = most(high[lane], weight);
    }
    (low, high)
}

/// The smaller of two numbers, the first if they are equal: one instruction, as NaN is out of the question.
#[inline(always)]
fn least(one: f32, other: f32) -> f32 {
    if other < one { other } else { one }
}

/// The larger of two numbers, the first if they are equal.
#[inline(always)]
fn most(one: f32, other: f32) -> f32 {
    if other > one { other } else { one }
}

/// The first weight that no grid can stand for: NaN, infinite or beyond f16.
#[inline(always)]
pub(crate) fn unfit(weights: &[f32]) -> Option<usize> {
    let bits = |weight: f32| weight.to_bits() & 0x7FFF_FFFF; // of NaN and infinity: above all others
    let worst = weights.iter().fold(0, |worst, &weight| worst.max(bits(weight)));
    if worst <= half::MAX.to_bits() {
        return None;
    }
    weights.iter().position(|&weight| bits(weight) > half::MAX.to_bits())
}

/// A group's weights with the importance of each, padded to whole lanes by weights of no importance.
pub(crate) struct Group {
    pub weights: [f32; GROUP_MAX],
    pub importance: [f32; GROUP_MAX],
    /// Columns with their padding.
    pub padded: usize,
}

impl Group {
    #[inline(always)]
    pub fn new(weights: &[f32], importance: Option<&[f32]>) -> Self {
        let mut group = Group {
            weights: [weights.first().copied().unwrap_or(0.0); GROUP_MAX],
            importance: [0.0; GROUP_MAX],
            padded: weights.len().next_multiple_of(LANES),
        };
        group.weights[..weights.len()].copy_from_slice(weights);
        match importance {
            Some(importance) => group.importance[..weights.len()].copy_from_slice(importance),
            None => group.importance[..weights.len()].fill(1.0),
        }
        group
    }

    /// The grid's weighted squared error, and the line through the targets (weights minus `aside`) over their codes.
    #[inline(always)]
    pub fn measure(&self, grid: &Grid, aside: impl Fn(f32) -> (f32, f32)) -> (f32, Line) {
        let mut lanes = [[0f32; LANES]; 6];
        let weights = self.weights[..self.padded].as_chunks::<LANES>().0;
        let importance = self.importance[..self.padded].as_chunks::<LANES>().0;
        for (weights, importance) in weights.iter().zip(importance) {
            for lane in 0..LANES {
                let (code, nearest) = grid.nearest(weights[lane]);
                let (loss, part) = aside(weights[lane] - nearest);
                let target = weights[lane] - part - grid.zero; // small numbers: sums of squares stay exact enough
                let of = importance[lane];
                lanes[0][lane] += of * loss;
                lanes[1][lane] += of;
                lanes[2][lane] += of * code;
                lanes[3][lane] += of * code * code;
                lanes[4][lane] += of * target;
                lanes[5][lane] += of * code * target;
            }
        }
        let [loss, count, code, code_code, target, code_target] = lanes.map(|lanes| lanes.iter().sum());
        (loss, Line { count, code, code_code, target, code_target, zero: grid.zero })
    }

    /// The grid of the least weighted squared error among ranges around the full one's centre, each corrected by
    /// least squares for the codes it leads to. Never worse than the full range.
    #[inline(always)]
    pub fn search(&self, kind: Kind, columns: usize) -> Grid {
        let (low, high) = range(&self.weights[..columns]);
        let centre = if kind.symmetric { 0.0 } else { 0.5 * (low + high) };
        let mut best = Grid::spanning(kind, low, high);
        let mut least = f32::INFINITY;
        for step in 0..SEARCH_STEPS {
            let share = 1.0 - (1.0 - SEARCH_LEAST) * step as f32 / (SEARCH_STEPS - 1) as f32;
            let mut grid =
                Grid::spanning(kind, centre + share * (low - centre), centre + share * (high - centre));
            for fit in 0..=SEARCH_FITS {
                let (loss, line) = self.measure(&grid, |error| (error * error, 0.0));
                if loss < least {
                    (best, least) = (grid, loss);
                }
                match line.grid(kind) {
                    Some(next) if fit < SEARCH_FITS && next != grid => grid = next,
                    _ => break,
                }
            }
        }
        best
    }
}

/// Weighted sums over a group: a regression of targets (minus `zero`) on codes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    count: f32,
    code: f32,
    code_code: f32,
    target: f32,
    code_target: f32,
    zero: f32,
}

impl Line {
    /// The grid that fits the targets best while the codes stay; none where the codes do not determine one.
    #[inline(always)]
    pub fn grid(&self, kind: Kind) -> Option<Grid> {
        let (scale, zero) = if kind.symmetric {
            // target' = scale * (code - middle), with target' = target + zero
            let middle = kind.middle;
            let squares = self.code_code - 2.0 * middle * self.code + middle * middle * self.count;
            let products =
                self.code_target - middle * self.target + self.zero * (self.code - middle * self.count);
            (products / squares, 0.0)
        } else {
            let spread = self.count * self.code_code - self.code * self.code;
            let scale = (self.count * self.code_target - self.code * self.target) / spread;
            (scale, self.zero + (self.target - scale * self.code) / self.count)
        };
        let fits = |value: f32| value.abs() <= half::MAX; // false of NaN
        let usable = fits(scale) && fits(zero) && (kind.symmetric || scale >= 0.0);
        usable.then(|| Grid::stored(kind, scale, zero))
    }
}
