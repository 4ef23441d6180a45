//! Keeping the best: candidates with bounds while scanning, exact scores at the end.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Candidates that may gather before those that have become hopeless are dropped.
const GATHERED: usize = 4096;

/// A float in its total order.
#[derive(Clone, Copy, PartialEq)]
struct Ordered(f32);

impl Eq for Ordered {}

impl PartialOrd for Ordered {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ordered {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// A slot whose score is at most `upper`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) upper: f32,
    pub(crate) slot: u32,
}

/// The slots that may be among the `k` best, by bounds on their scores.
pub(crate) struct Collector {
    k: usize,
    /// The `k` greatest lower bounds, the least of them on top.
    lowers: BinaryHeap<std::cmp::Reverse<Ordered>>,
    /// No slot with a smaller upper bound can be among the best.
    pub(crate) least: f32,
    found: Vec<Candidate>,
    gathered: usize,
}

impl Collector {
    pub(crate) fn new(k: usize) -> Self {
        Collector { k, lowers: BinaryHeap::new(), least: f32::MIN, found: Vec::new(), gathered: GATHERED }
    }

    /// A slot whose score lies within `reach` of `score`.
    #[inline]
    pub(crate) fn push(&mut self, slot: u32, score: f32, reach: f32) {
        let upper = score + reach;
        if upper.is_nan() || upper < self.least {
            return; // NaN: a slot without a vector
        }
        if self.found.len() == self.gathered {
            let least = self.least;
            self.found.retain(|found| found.upper >= least);
            self.gathered = (2 * self.found.len()).max(GATHERED);
        }
        self.found.push(Candidate { upper, slot });
        self.raise(Ordered(score - reach));
    }

    fn raise(&mut self, lower: Ordered) {
        if self.lowers.len() == self.k {
            if self.lowers.peek().is_some_and(|least| lower <= least.0) {
                return;
            }
            self.lowers.pop();
        }
        self.lowers.push(std::cmp::Reverse(lower));
        if self.lowers.len() == self.k {
            self.least = self.lowers.peek().map_or(f32::MIN, |least| least.0.0);
        }
    }

    /// Takes what another one found among other slots.
    pub(crate) fn absorb(&mut self, other: Collector) {
        for lower in other.lowers {
            self.raise(lower.0);
        }
        let least = self.least;
        self.found.extend(other.found.into_iter().filter(|found| found.upper >= least));
    }

    /// Those that are left, the greatest upper bound first.
    pub(crate) fn finish(mut self) -> Vec<Candidate> {
        let least = self.least;
        self.found.retain(|found| found.upper >= least);
        self.found.sort_unstable_by(|a, b| b.upper.total_cmp(&a.upper).then(a.slot.cmp(&b.slot)));
        self.found
    }
}

/// The `k` best of exact scores, the best first; of equal ones that of the lower slot.
pub(crate) struct Best {
    k: usize,
    pub(crate) list: Vec<(f32, u32)>,
}

impl Best {
    pub(crate) fn new(k: usize) -> Self {
        Best { k, list: Vec::new() }
    }

    /// The score to beat; the lowest number until there are `k`.
    pub(crate) fn least(&self) -> f32 {
        if self.list.len() < self.k { f32::MIN } else { self.list.last().map_or(f32::MIN, |last| last.0) }
    }

    pub(crate) fn push(&mut self, score: f32, slot: u32) {
        let place = self.list.partition_point(|one| one.0 > score || (one.0 == score && one.1 < slot));
        if place < self.k {
            if self.list.len() == self.k {
                self.list.pop();
            }
            self.list.insert(place, (score, slot));
        }
    }
}
