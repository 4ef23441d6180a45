//! The index: vectors added, removed and searched by id.

use std::sync::{Arc, Mutex, PoisonError};

use aios_arrow_storage::Mapping;

use crate::array::Array;
use crate::build;
use crate::code::{Coder, Metric, Query, Terms};
use crate::fault::{Fault, Result};
use crate::file::SECTIONS;
use crate::graph::{Allowed, Visited};
use crate::isa::Isa;
use crate::rows::{CHUNK, Chunk, DEGREE, Rows};
use crate::scan;
use crate::threads::Threads;
use crate::top::{Best, Candidate};

/// Coordinates of a vector.
pub const DIM_MAX: usize = 4096;
/// Answers to a query.
pub const K_MAX: usize = 4096;
/// What a walk keeps in sight.
pub const EFFORT_MAX: usize = 1 << 16;
/// Vectors encoded by one item of a thread's work.
const ITEM: usize = 256;
/// A scan of the allowed slots is taken while it scores fewer codes than a walk would, which meets so many for each
/// step of its effort and passes over those that are not allowed.
const MET_PER_STEP: usize = 16;

/// An answer: the id and the score of a vector; the best first.
pub type Answer = (u64, f32);

/// Which vectors a search meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// All of them.
    Exact,
    /// Those that a walk over the graph comes by, with so many kept in sight; the exact search where there is no graph.
    Walk(usize),
}

/// Vectors of one dimension, by id.
pub struct VectorSearch {
    pub(crate) coder: Coder,
    pub(crate) rows: Rows,
    /// Slots before this one are linked; None while there is no graph.
    pub(crate) linked: Option<usize>,
    /// The map of the file it was opened from.
    pub(crate) map: Option<Arc<Mapping>>,
    /// The checksums of that file's sections, until something changes.
    pub(crate) checksums: Option<[u32; SECTIONS]>,
    visited: Mutex<Vec<Visited>>,
}

impl VectorSearch {
    /// An empty index.
    pub fn new(dim: usize, metric: Metric) -> Result<Self> {
        if dim == 0 || dim > DIM_MAX {
            return Err(Fault::limit(format!("vectors have 1 to {DIM_MAX} coordinates, not {dim}")));
        }
        let coder = Coder::new(dim, metric);
        let rows = Rows::new(&coder);
        Ok(Self::over(coder, rows, None))
    }

    pub(crate) fn over(coder: Coder, rows: Rows, linked: Option<usize>) -> Self {
        VectorSearch { coder, rows, linked, map: None, checksums: None, visited: Mutex::new(Vec::new()) }
    }

    /// Coordinates of a vector.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.coder.dim
    }

    /// What scores are.
    #[must_use]
    pub fn metric(&self) -> Metric {
        self.coder.metric
    }

    /// Vectors that are there.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.live_count()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Slots, those of removed vectors included.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.rows.slots
    }

    /// Whether there is a graph.
    #[must_use]
    pub fn has_graph(&self) -> bool {
        self.linked.is_some()
    }

    /// Bytes that a vector takes: its exact row, its code, its links, its id.
    #[must_use]
    pub fn bytes_per_vector(&self) -> usize {
        self.rows.bytes_per_slot()
    }

    /// The ids that are there, in no order.
    #[must_use]
    pub fn ids(&self) -> Vec<u64> {
        (0..self.rows.slots as u32)
            .filter(|slot| self.rows.live(*slot))
            .map(|slot| self.rows.id(slot))
            .collect()
    }

    /// Adds vectors (n * dim) under ids that are not there yet; all of them or, where it fails, none.
    pub fn add(&mut self, ids: &[u64], vectors: &[f32], threads: usize) -> Result<()> {
        let dim = self.coder.dim;
        if ids.len().checked_mul(dim) != Some(vectors.len()) {
            return Err(Fault::input(format!(
                "{} ids come with {} coordinates of {dim}",
                ids.len(),
                vectors.len()
            )));
        }
        self.refuse_known(ids)?;
        let threads = Threads::of(threads)?;
        let stride = self.coder.stride();
        let encoded = threads.map(ids.len().div_ceil(ITEM), |item| {
            let part = &vectors[item * ITEM * dim..vectors.len().min((item + 1) * ITEM * dim)];
            let mut codes = vec![0; part.len() / dim * stride];
            let mut scratch = Vec::with_capacity(dim);
            let rows = part.chunks_exact(dim).zip(codes.chunks_exact_mut(stride));
            let terms: Result<Vec<Terms>> = rows
                .map(|(vector, code)| Isa::here().encode(&self.coder, vector, &mut scratch, code))
                .collect();
            terms.map(|terms| (codes, terms))
        });
        let encoded = encoded.into_iter().collect::<Result<Vec<_>>>()?;
        self.checksums = None;
        let slots = self.rows.reserve(ids, &self.coder, self.has_graph())?;
        let codes = encoded.iter().flat_map(|(codes, terms)| codes.chunks_exact(stride).zip(terms));
        for ((slot, vector), (code, terms)) in slots.iter().zip(vectors.chunks_exact(dim)).zip(codes) {
            self.rows.put(*slot, vector, code, *terms);
        }
        if let Some(linked) = self.linked {
            self.linked = Some(build::link_all(&self.rows, &self.coder, &slots, linked, &threads)?);
        }
        Ok(())
    }

    fn refuse_known(&self, ids: &[u64]) -> Result<()> {
        let mut sorted = ids.to_vec();
        sorted.sort_unstable();
        let twice = sorted.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0]);
        match twice.or_else(|| ids.iter().copied().find(|id| self.rows.find(*id).is_some())) {
            Some(id) => Err(Fault::input(format!("the id {id} is there already"))),
            None => Ok(()),
        }
    }

    /// Removes vectors and zeroes their bytes; ids that are not there are passed over. Returns how many there were.
    pub fn remove(&mut self, ids: &[u64]) -> usize {
        let mut removed = 0;
        for id in ids {
            if let Some(slot) = self.rows.find(*id) {
                if self.linked.is_some() {
                    build::bridge(&self.rows, &self.coder, slot);
                }
                self.rows.erase(slot);
                self.checksums = None;
                removed += 1;
            }
        }
        removed
    }

    /// Makes the graph anew, over all vectors; until then there is none and searches are exact.
    ///
    /// Inner products of vectors of unequal length have none: neighbours by inner product are not near each other.
    pub fn build_graph(&mut self, threads: usize) -> Result<()> {
        if self.coder.metric == Metric::Dot {
            return Err(Fault::input("a graph needs the metric cosine or l2"));
        }
        let threads = Threads::of(threads)?;
        self.checksums = None;
        for chunk in &mut self.rows.chunks {
            chunk.add_links();
        }
        let slots: Vec<u32> = (0..self.rows.slots as u32).filter(|slot| self.rows.live(*slot)).collect();
        self.linked = Some(build::link_all(&self.rows, &self.coder, &slots, 0, &threads)?);
        Ok(())
    }

    /// The index without the slots of removed vectors, its graph made anew.
    pub fn compacted(&self, threads: usize) -> Result<Self> {
        let mut compact = VectorSearch::new(self.coder.dim, self.coder.metric)?;
        let live: Vec<u32> = (0..self.rows.slots as u32).filter(|slot| self.rows.live(*slot)).collect();
        for slots in live.chunks(CHUNK) {
            let ids: Vec<u64> = slots.iter().map(|slot| self.rows.id(*slot)).collect();
            let vectors: Vec<f32> = slots.iter().flat_map(|slot| self.rows.vector(*slot)).copied().collect();
            compact.add(&ids, &vectors, threads)?;
        }
        if self.has_graph() {
            compact.build_graph(threads)?;
        }
        Ok(compact)
    }

    /// The `k` best of all vectors, or of those `allowed`, for each query (n * dim).
    ///
    /// Ids that are not there may be allowed. Scores come from the exact rows.
    pub fn search(
        &self,
        queries: &[f32],
        k: usize,
        allowed: Option<&[u64]>,
        effort: Effort,
        threads: usize,
    ) -> Result<Vec<Vec<Answer>>> {
        if !queries.len().is_multiple_of(self.coder.dim) {
            return Err(Fault::input(format!("queries have {} coordinates", self.coder.dim)));
        }
        if k > K_MAX {
            return Err(Fault::limit(format!("a query has at most {K_MAX} answers, not {k}")));
        }
        let threads = Threads::of(threads)?;
        let queries: Vec<&[f32]> = queries.chunks_exact(self.coder.dim).collect();
        let made = threads.map(queries.len(), |at| {
            Isa::here().query(&self.coder, queries[at]).map(|query| (queries[at], query))
        });
        let queries = made.into_iter().collect::<Result<Vec<_>>>()?;
        if k == 0 || self.rows.slots == 0 {
            return Ok(queries.iter().map(|_| Vec::new()).collect());
        }
        let best = match (self.slots_of(allowed), effort) {
            (Some(slots), effort) if self.scan_is_cheaper(slots.len(), effort) => {
                scan::among(&self.rows, &self.coder, &queries, &slots, k, &threads)
            }
            (slots, Effort::Walk(effort)) if self.has_graph() => {
                self.walked(&queries, k, slots.as_deref(), effort, &threads)
            }
            (Some(slots), _) => scan::among(&self.rows, &self.coder, &queries, &slots, k, &threads),
            (None, _) => scan::search(&self.rows, &self.coder, &queries, k, &threads),
        };
        if self.map.as_ref().is_some_and(|map| map.fault()) {
            return Err(Fault::corrupt("the file became shorter while it was open"));
        }
        let answers =
            |best: Best| best.list.into_iter().map(|(score, slot)| (self.rows.id(slot), score)).collect();
        Ok(best.into_iter().map(answers).collect())
    }

    /// The live slots of ids, in order, each once.
    fn slots_of(&self, allowed: Option<&[u64]>) -> Option<Vec<u32>> {
        let mut slots: Vec<u32> = allowed?.iter().filter_map(|id| self.rows.find(*id)).collect();
        slots.sort_unstable();
        slots.dedup();
        Some(slots)
    }

    /// Whether scoring so many allowed slots is cheaper than a walk that finds enough of them.
    fn scan_is_cheaper(&self, allowed: usize, effort: Effort) -> bool {
        let Effort::Walk(effort) = effort else { return true };
        let walked = (effort * MET_PER_STEP).saturating_mul(self.rows.slots) / allowed.max(1);
        self.linked.is_none() || allowed <= walked
    }

    /// The search over the graph. With a filter the walk keeps more in sight: what it passes over takes its places.
    fn walked(
        &self,
        queries: &[(&[f32], Query)],
        k: usize,
        allowed: Option<&[u32]>,
        effort: usize,
        threads: &Threads,
    ) -> Vec<Best> {
        let share = allowed.map_or(1, |slots| self.len().div_ceil(slots.len().max(1)));
        let effort = effort.max(k).saturating_mul(share).clamp(1, EFFORT_MAX);
        let filter = allowed.map(|slots| Allowed::of(slots, self.rows.slots));
        let linked = self.linked.unwrap_or(0);
        let candidates = threads.map(queries.len(), |at| {
            let query = &queries[at].1;
            let mut visited = self.marks().pop().unwrap_or_default();
            let seen = Isa::here().walk(&self.rows, query, linked, effort, filter.as_ref(), &mut visited);
            self.marks().push(visited);
            let mut found: Vec<Candidate> = seen
                .iter()
                .map(|seen| {
                    let (chunk, at) = self.rows.chunk(seen.slot);
                    Candidate { upper: seen.score + query.reach * chunk.errors[at], slot: seen.slot }
                })
                .collect();
            found.sort_unstable_by(|a, b| b.upper.total_cmp(&a.upper));
            found
        });
        scan::rescored(&self.rows, &self.coder, queries, candidates, k, threads)
    }

    fn marks(&self) -> std::sync::MutexGuard<'_, Vec<Visited>> {
        self.visited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Chunk {
    /// Empty links, whatever was there.
    fn add_links(&mut self) {
        self.links = Array::zeros(CHUNK * DEGREE);
    }
}
