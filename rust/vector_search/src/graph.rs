//! The graph: each slot linked to near slots in different directions, walked from the best of a spread sample.
//!
//! One flat layer: the sample replaces the upper layers of HNSW, since scoring it costs no more than walking them.
//! Distances are those of the codes; the answer's candidates are scored from their exact rows afterwards.
//! Source: Malkov and Yashunin, HNSW (2016), section 4, for the search and the choice of neighbours; Munyampirwa et
//! al., "Down with the hierarchy" (2024), for the single layer.

use crate::code::{Coder, Metric, Query};
use crate::dots::Dots;
use crate::rows::{DEGREE, Rows};
use crate::scan::prefetch;

/// Slots of the sample that a walk begins from.
const SAMPLE: usize = 256;
/// The best of the sample that a walk begins from: several, because the sample's best may lie in a dead end.
const ENTRIES: usize = 4;

/// A slot with its score, seen on a walk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) score: f32,
    pub(crate) slot: u32,
    expanded: bool,
}

/// The best of what was seen, the best first, at most `most`.
struct Pool {
    most: usize,
    list: Vec<Seen>,
}

impl Pool {
    fn new(most: usize) -> Self {
        Pool { most, list: Vec::with_capacity(most + 1) }
    }

    /// Where the slot entered; None where it is not good enough, or no score at all (NaN).
    #[inline(always)]
    fn push(&mut self, score: f32, slot: u32) -> Option<usize> {
        let full = self.list.len() == self.most;
        let least = if full { self.list[self.most - 1].score } else { f32::NEG_INFINITY };
        if score.is_nan() || score <= least {
            return None;
        }
        if full {
            self.list.pop();
        }
        let place = self.list.partition_point(|seen| seen.score >= score);
        self.list.insert(place, Seen { score, slot, expanded: false });
        Some(place)
    }
}

/// Which slots a walk has met: a number for each, new for every walk, so that nothing is cleared between them.
#[derive(Default)]
pub(crate) struct Visited {
    walk: u16,
    marks: Vec<u16>,
}

impl Visited {
    fn begin(&mut self, slots: usize) {
        self.walk = self.walk.wrapping_add(1);
        if self.walk == 0 {
            self.marks.fill(0);
            self.walk = 1;
        }
        if self.marks.len() < slots {
            self.marks.resize(slots, 0);
        }
    }

    /// Whether the slot is met for the first time.
    #[inline(always)]
    fn enter(&mut self, slot: u32) -> bool {
        let mark = &mut self.marks[slot as usize];
        std::mem::replace(mark, self.walk) != self.walk
    }
}

/// Which slots may be answered: one bit each.
pub(crate) struct Allowed {
    bits: Vec<u64>,
}

impl Allowed {
    pub(crate) fn of(slots: &[u32], count: usize) -> Self {
        let mut bits = vec![0; count.div_ceil(64)];
        for slot in slots {
            bits[*slot as usize / 64] |= 1 << (slot % 64);
        }
        Allowed { bits }
    }

    #[inline(always)]
    fn holds(&self, slot: u32) -> bool {
        self.bits[slot as usize / 64] >> (slot % 64) & 1 == 1
    }
}

/// The `effort` best slots that a walk towards the query finds among `linked` slots, the best first.
///
/// With `allowed` only those are told, while the walk passes over all.
#[inline(always)]
pub(crate) fn walk<D: Dots>(
    rows: &Rows,
    query: &Query,
    linked: usize,
    effort: usize,
    allowed: Option<&Allowed>,
    visited: &mut Visited,
) -> Vec<Seen> {
    visited.begin(rows.slots);
    let mut pool = Pool::new(effort);
    let mut told = Pool::new(if allowed.is_some() { effort } else { 0 });
    let mut fresh: Vec<u32> = Vec::with_capacity(DEGREE.max(SAMPLE));
    let sample = SAMPLE.min(linked);
    fresh.extend((0..sample).map(|number| (number * linked / sample) as u32));
    let mut entries = Pool::new(ENTRIES.min(effort));
    scored::<D>(rows, query, &fresh, |score, slot| {
        entries.push(score, slot);
    });
    for entry in entries.list {
        visited.enter(entry.slot);
        pool.push(entry.score, entry.slot);
        tell(&mut told, allowed, entry.score, entry.slot);
    }
    let mut at = 0;
    while at < pool.list.len() {
        if std::mem::replace(&mut pool.list[at].expanded, true) {
            at += 1;
            continue;
        }
        fresh.clear();
        for slot in rows.neighbours(pool.list[at].slot) {
            if visited.enter(slot) {
                prefetch(rows.code(slot));
                fresh.push(slot);
            }
        }
        if let Some(next) = pool.list.get(at + 1) {
            prefetch(rows.links(next.slot));
        }
        let mut nearest = at + 1;
        scored::<D>(rows, query, &fresh, |score, slot| {
            if let Some(place) = pool.push(score, slot) {
                nearest = nearest.min(place);
            }
            tell(&mut told, allowed, score, slot);
        });
        at = nearest;
    }
    if allowed.is_some() { told.list } else { pool.list }
}

#[inline(always)]
fn tell(told: &mut Pool, allowed: Option<&Allowed>, score: f32, slot: u32) {
    if allowed.is_some_and(|allowed| allowed.holds(slot)) {
        told.push(score, slot);
    }
}

/// Calls `each` with the score of each slot.
#[inline(always)]
fn scored<D: Dots>(rows: &Rows, query: &Query, slots: &[u32], mut each: impl FnMut(f32, u32)) {
    for four in slots.chunks(4) {
        let codes = std::array::from_fn(|at| rows.code(four[at.min(four.len() - 1)]));
        for (slot, sum) in four.iter().zip(D::four(codes, &query.codes)) {
            let (chunk, at) = rows.chunk(*slot);
            each(query.score(sum, chunk.factors[at], chunk.offsets[at]), *slot);
        }
    }
}

/// Scores of `slots` for a query that is a stored code.
#[inline(always)]
pub(crate) fn scores<D: Dots>(rows: &Rows, query: &Query, slots: &[u32]) -> Vec<Seen> {
    let mut seen = Vec::with_capacity(slots.len());
    scored::<D>(rows, query, slots, |score, slot| seen.push(Seen { score, slot, expanded: false }));
    seen
}

/// How far apart a score says that two vectors are.
#[inline(always)]
fn distance(metric: Metric, query: &Query, score: f32) -> f32 {
    match metric {
        Metric::Cosine | Metric::Dot => 1.0 - score,
        Metric::L2 => -(score + query.shift),
    }
}

/// At most `most` of the candidates (the nearest first), each nearer to the middle than to any one kept before it.
#[inline(always)]
pub(crate) fn chosen<D: Dots>(
    rows: &Rows,
    coder: &Coder,
    middle: &Query,
    candidates: &[Seen],
    most: usize,
) -> Vec<u32> {
    /// A detour is one when it is clearly longer; above 1 links are kept that a strict rule drops.
    const STRETCH: f32 = 1.1;
    let mut kept: Vec<u32> = Vec::with_capacity(most);
    let mut query = coder.query_of_code(rows.code(candidates.first().map_or(0, |seen| seen.slot)), 0.0, 0.0);
    for candidate in candidates {
        if kept.len() == most {
            break;
        }
        let (chunk, at) = rows.chunk(candidate.slot);
        coder.refill(rows.code(candidate.slot), chunk.factors[at], chunk.offsets[at], &mut query);
        let direct = distance(coder.metric, middle, candidate.score);
        let mut nearer = true;
        for four in kept.chunks(4) {
            scored::<D>(rows, &query, four, |score, _| {
                nearer &= STRETCH * distance(coder.metric, &query, score) >= direct;
            });
            if !nearer {
                break;
            }
        }
        if nearer {
            kept.push(candidate.slot);
        }
    }
    kept
}

/// The query that a stored slot makes.
pub(crate) fn query_of(rows: &Rows, coder: &Coder, slot: u32) -> Query {
    let (chunk, at) = rows.chunk(slot);
    coder.query_of_code(rows.code(slot), chunk.factors[at], chunk.offsets[at])
}
