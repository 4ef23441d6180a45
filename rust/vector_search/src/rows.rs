//! The vectors of an index with all that belongs to each: id, exact row, code, terms, links of the graph.
//!
//! A slot is a place for one vector. Slots lie in chunks, so that growing never moves what is there, and an opened
//! file's chunks stay in its map.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::array::Array;
use crate::code::{Coder, Terms};
use crate::dots::{GROUP, Shapes};
use crate::fault::{Fault, Result};
use crate::rotation::mix;

/// Slots of a chunk: a whole number of tiles, and little to copy when the last one of a file grows.
pub(crate) const CHUNK: usize = 8192;
/// Slots of an index: ids of the graph are 32 bits, one of which marks what was visited.
pub const SLOTS_MAX: usize = 1 << 30;
/// Links of a node of the graph: two cache lines.
pub(crate) const DEGREE: usize = 32;

/// `CHUNK` slots.
pub(crate) struct Chunk {
    pub(crate) ids: Array<u64>,
    /// NaN where the slot holds no vector: its scores are NaN then, which beat nothing.
    pub(crate) factors: Array<f32>,
    pub(crate) offsets: Array<f32>,
    pub(crate) errors: Array<f32>,
    pub(crate) inverse_norms: Array<f32>,
    pub(crate) codes: Array<u8>,
    pub(crate) vectors: Array<f32>,
    /// Slot + 1 of the neighbours; 0 where there is none. Empty while there is no graph.
    pub(crate) links: Array<AtomicU32>,
}

impl Chunk {
    pub(crate) fn new(coder: &Coder, graph: bool) -> Self {
        let mut factors = Array::zeros(CHUNK);
        factors.fill(f32::NAN);
        Chunk {
            ids: Array::zeros(CHUNK),
            factors,
            offsets: Array::zeros(CHUNK),
            errors: Array::zeros(CHUNK),
            inverse_norms: Array::zeros(CHUNK),
            codes: Array::zeros(CHUNK * coder.stride()),
            vectors: Array::zeros(CHUNK * coder.dim),
            links: Array::zeros(if graph { CHUNK * DEGREE } else { 0 }),
        }
    }

    /// What the group of slots that begins at `at` needs beside its products.
    #[inline(always)]
    pub(crate) fn shapes(&self, at: usize) -> Shapes<'_> {
        Shapes {
            factors: eight(&self.factors, at),
            offsets: eight(&self.offsets, at),
            errors: eight(&self.errors, at),
        }
    }
}

#[inline(always)]
fn eight(values: &[f32], at: usize) -> &[f32; GROUP] {
    values[at..].first_chunk().expect("chunks are whole groups")
}

/// All slots.
pub(crate) struct Rows {
    pub(crate) dim: usize,
    pub(crate) stride: usize,
    pub(crate) chunks: Vec<Chunk>,
    /// Slots ever used: those behind hold nothing.
    pub(crate) slots: usize,
    free: Vec<u32>,
    table: Table,
}

impl Rows {
    pub(crate) fn new(coder: &Coder) -> Self {
        Rows {
            dim: coder.dim,
            stride: coder.stride(),
            chunks: Vec::new(),
            slots: 0,
            free: Vec::new(),
            table: Table::new(),
        }
    }

    /// Rows over chunks that a file brought; Corrupt where two slots have one id.
    pub(crate) fn over(coder: &Coder, chunks: Vec<Chunk>, slots: usize) -> Result<Self> {
        let mut rows = Rows { chunks, slots, ..Rows::new(coder) };
        let mut table = Table::with_room(slots);
        for slot in 0..slots as u32 {
            if !rows.live(slot) {
                rows.free.push(slot);
            } else if table.find(rows.id(slot), |slot| rows.id(slot)).is_some() {
                return Err(Fault::corrupt("two vectors have one id"));
            } else {
                table.insert(rows.id(slot), slot, |slot| rows.id(slot));
            }
        }
        rows.table = table;
        Ok(rows)
    }

    /// Vectors that are there.
    pub(crate) fn live_count(&self) -> usize {
        self.slots - self.free.len()
    }

    #[inline(always)]
    pub(crate) fn chunk(&self, slot: u32) -> (&Chunk, usize) {
        (&self.chunks[slot as usize / CHUNK], slot as usize % CHUNK)
    }

    pub(crate) fn live(&self, slot: u32) -> bool {
        let (chunk, at) = self.chunk(slot);
        !chunk.factors[at].is_nan()
    }

    #[inline(always)]
    pub(crate) fn id(&self, slot: u32) -> u64 {
        let (chunk, at) = self.chunk(slot);
        chunk.ids[at]
    }

    #[inline(always)]
    pub(crate) fn code(&self, slot: u32) -> &[u8] {
        let (chunk, at) = self.chunk(slot);
        &chunk.codes[at * self.stride..(at + 1) * self.stride]
    }

    #[inline(always)]
    pub(crate) fn vector(&self, slot: u32) -> &[f32] {
        let (chunk, at) = self.chunk(slot);
        &chunk.vectors[at * self.dim..(at + 1) * self.dim]
    }

    #[inline(always)]
    pub(crate) fn links(&self, slot: u32) -> &[AtomicU32] {
        let (chunk, at) = self.chunk(slot);
        &chunk.links[at * DEGREE..(at + 1) * DEGREE]
    }

    /// The neighbours that a slot's links name; what names no slot is passed over.
    #[inline(always)]
    pub(crate) fn neighbours(&self, slot: u32) -> impl Iterator<Item = u32> {
        let slots = self.slots;
        let linked = self.links(slot).iter().map(|link| link.load(Ordering::Relaxed).wrapping_sub(1));
        linked.filter(move |slot| (*slot as usize) < slots)
    }

    /// Replaces all links of a slot; at most `DEGREE` are kept.
    pub(crate) fn link(&self, slot: u32, neighbours: &[u32]) {
        let named = neighbours.iter().map(|slot| slot + 1).chain(std::iter::repeat(0));
        for (link, slot) in self.links(slot).iter().zip(named) {
            link.store(slot, Ordering::Relaxed);
        }
    }

    pub(crate) fn find(&self, id: u64) -> Option<u32> {
        self.table.find(id, |slot| self.id(slot))
    }

    /// Slots for `ids`, which are not there yet: free ones first. They are not live before `put`.
    pub(crate) fn reserve(&mut self, ids: &[u64], coder: &Coder, graph: bool) -> Result<Vec<u32>> {
        let fresh = ids.len().saturating_sub(self.free.len());
        if fresh > SLOTS_MAX - self.slots {
            return Err(Fault::limit(format!("an index holds at most {SLOTS_MAX} vectors")));
        }
        while self.chunks.len() * CHUNK < self.slots + fresh {
            self.chunks.push(Chunk::new(coder, graph));
        }
        let mut taken = Vec::with_capacity(ids.len());
        for id in ids {
            let slot = self.free.pop().unwrap_or_else(|| {
                self.slots += 1;
                (self.slots - 1) as u32
            });
            self.chunks[slot as usize / CHUNK].ids[slot as usize % CHUNK] = *id;
            taken.push(slot);
        }
        let Rows { chunks, table, .. } = self;
        for (id, slot) in ids.iter().zip(&taken) {
            table.insert(*id, *slot, |slot| chunks[slot as usize / CHUNK].ids[slot as usize % CHUNK]);
        }
        Ok(taken)
    }

    /// Fills a reserved slot.
    pub(crate) fn put(&mut self, slot: u32, vector: &[f32], code: &[u8], terms: Terms) {
        let (chunk, at) = (&mut self.chunks[slot as usize / CHUNK], slot as usize % CHUNK);
        chunk.vectors[at * self.dim..(at + 1) * self.dim].copy_from_slice(vector);
        chunk.codes[at * self.stride..(at + 1) * self.stride].copy_from_slice(code);
        (chunk.factors[at], chunk.offsets[at]) = (terms.factor, terms.offset);
        (chunk.errors[at], chunk.inverse_norms[at]) = (terms.error, terms.inverse_norm);
    }

    /// Empties a slot: its vector, its code, its id and its links become zeros at once.
    pub(crate) fn erase(&mut self, slot: u32) {
        let Rows { chunks, table, .. } = self;
        table.remove(slot, |slot| chunks[slot as usize / CHUNK].ids[slot as usize % CHUNK]);
        let (chunk, at) = (&mut self.chunks[slot as usize / CHUNK], slot as usize % CHUNK);
        chunk.vectors[at * self.dim..(at + 1) * self.dim].fill(0.0);
        chunk.codes[at * self.stride..(at + 1) * self.stride].fill(0);
        (chunk.factors[at], chunk.offsets[at]) = (f32::NAN, 0.0);
        (chunk.errors[at], chunk.inverse_norms[at]) = (0.0, 0.0);
        chunk.ids[at] = 0;
        if !chunk.links.is_empty() {
            self.link(slot, &[]);
        }
        self.free.push(slot);
    }

    /// Bytes that a slot takes, the table's share included.
    pub(crate) fn bytes_per_slot(&self) -> usize {
        let links = self.chunks.first().map_or(0, |chunk| chunk.links.len() / CHUNK);
        8 + 4 * 4 + self.stride + 4 * self.dim + 4 * links + 8
    }
}

/// Ids to slots: open addressing, at most half full; the ids themselves stay in the chunks.
struct Table {
    /// Slot + 1; 0 where there is none.
    places: Vec<u32>,
    used: usize,
    /// So that nobody can choose ids that collide.
    seed: u64,
}

impl Table {
    fn new() -> Self {
        Table { places: vec![0; 16], used: 0, seed: RandomState::new().hash_one(0u64) }
    }

    fn with_room(count: usize) -> Self {
        Table { places: vec![0; (2 * count).next_power_of_two().max(16)], ..Table::new() }
    }

    fn home(&self, id: u64) -> usize {
        mix(id ^ self.seed) as usize & (self.places.len() - 1)
    }

    /// The places from an id's home on, around the end.
    fn way(&self, id: u64) -> impl Iterator<Item = usize> + use<> {
        let (home, mask) = (self.home(id), self.places.len() - 1);
        (0..).map(move |step| (home + step) & mask)
    }

    fn find(&self, id: u64, id_of: impl Fn(u32) -> u64) -> Option<u32> {
        let mut stored = self.way(id).map(|place| self.places[place]).take_while(|slot| *slot > 0);
        stored.find(|slot| id_of(slot - 1) == id).map(|slot| slot - 1)
    }

    fn insert(&mut self, id: u64, slot: u32, id_of: impl Fn(u32) -> u64) {
        if 2 * (self.used + 1) > self.places.len() {
            let larger = vec![0; 2 * self.places.len()];
            for slot in std::mem::replace(&mut self.places, larger).into_iter().filter(|slot| *slot > 0) {
                self.settle(id_of(slot - 1), slot - 1);
            }
        }
        self.settle(id, slot);
        self.used += 1;
    }

    fn settle(&mut self, id: u64, slot: u32) {
        let free = self.way(id).find(|place| self.places[*place] == 0);
        self.places[free.expect("half of the places are free")] = slot + 1;
    }

    /// Removes a slot that is there, moving back those that it had pushed on.
    fn remove(&mut self, slot: u32, id_of: impl Fn(u32) -> u64) {
        let mask = self.places.len() - 1;
        let mut hole =
            self.way(id_of(slot)).find(|place| self.places[*place] == slot + 1).expect("it is there");
        let mut next = (hole + 1) & mask;
        while self.places[next] > 0 {
            let home = self.home(id_of(self.places[next] - 1));
            // Whether the hole lies on the way from its home to where it is.
            if (next.wrapping_sub(home) & mask) >= (next.wrapping_sub(hole) & mask) {
                self.places[hole] = self.places[next];
                hole = next;
            }
            next = (next + 1) & mask;
        }
        self.places[hole] = 0;
        self.used -= 1;
    }
}
