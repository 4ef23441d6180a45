//! Byte pair encoding: of all neighbours that a rule joins, those of the lowest rank are joined first, left before
//! right, until no rule applies. Source: Sennrich et al. 2016; over bytes as in Radford et al. 2019.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasher, RandomState};

const NONE: u32 = u32::MAX;
/// Up to here looking at all neighbours for the lowest rank costs less than keeping them in a heap.
const SCANNED_MAX: usize = 96;

/// The rules and the tokens of single bytes.
pub struct Bpe {
    bytes: Box<[u32; 256]>,
    pairs: Pairs,
    whole: HashMap<Box<[u8]>, u32>,
}

/// A join rule: left, right and joined token; its rank is its place in the list.
pub type Rule = (u32, u32, u32);

impl Bpe {
    /// `bytes` has a token for each byte or None, which such a byte then vanishes into; `whole` has the words that are
    /// tokens whatever the rules say. A rule replaces an earlier one of the same neighbours.
    pub fn new(bytes: &[Option<u32>; 256], rules: &[Rule], whole: HashMap<Box<[u8]>, u32>) -> Bpe {
        Bpe { bytes: Box::new(bytes.map(|id| id.unwrap_or(NONE))), pairs: Pairs::new(rules), whole }
    }

    /// Append the tokens of a word.
    pub fn encode(&self, word: &[u8], work: &mut Work, out: &mut Vec<u32>) {
        if !self.whole.is_empty()
            && let Some(&id) = self.whole.get(word)
        {
            return out.push(id);
        }
        let ids = word.iter().map(|&byte| self.bytes[usize::from(byte)]).filter(|&id| id != NONE);
        work.ids.clear();
        work.ids.extend(ids);
        work.ranks.clear();
        work.ranks.extend(work.ids.windows(2).map(|pair| self.pairs.rank(pair[0], pair[1])));
        work.ranks.push(NONE);
        match work.ids.len() {
            0 => (),
            1..=SCANNED_MAX => self.scan(work, out),
            _ => self.queue(work, out),
        }
    }

    /// Joins by looking for the lowest rank every time.
    fn scan(&self, work: &mut Work, out: &mut Vec<u32>) {
        let (ids, ranks) = (&mut work.ids[..], &mut work.ranks[..]);
        let mut length = ids.len();
        loop {
            let mut lowest = NONE;
            let mut at = 0;
            for (place, &rank) in ranks[..length - 1].iter().enumerate() {
                if rank < lowest {
                    (lowest, at) = (rank, place);
                }
            }
            if lowest == NONE {
                break;
            }
            ids[at] = self.pairs.joined(lowest);
            ids.copy_within(at + 2..length, at + 1);
            ranks.copy_within(at + 2..length, at + 1);
            length -= 1;
            ranks[at] = if at + 1 < length { self.pairs.rank(ids[at], ids[at + 1]) } else { NONE };
            if at > 0 {
                ranks[at - 1] = self.pairs.rank(ids[at - 1], ids[at]);
            }
        }
        out.extend_from_slice(&ids[..length]);
    }

    /// Joins in the order of a heap, in O(n log n); a joined right neighbour leaves a hole in the list.
    fn queue(&self, work: &mut Work, out: &mut Vec<u32>) {
        let Work { ids, ranks, next, previous, heap } = work;
        let length = ids.len();
        next.clear();
        next.extend(1..=length as u32);
        previous.clear();
        previous.extend((0..length as u32).map(|at| at.wrapping_sub(1)));
        heap.clear();
        let known = ranks.iter().enumerate().filter(|(_, rank)| **rank != NONE);
        heap.extend(known.map(|(at, &rank)| Reverse(u64::from(rank) << 32 | at as u64)));
        while let Some(Reverse(entry)) = heap.pop() {
            let (rank, at) = ((entry >> 32) as u32, entry as u32 as usize);
            if ranks[at] != rank {
                continue; // the neighbours have changed since
            }
            let gone = next[at] as usize;
            let behind = next[gone] as usize;
            ids[at] = self.pairs.joined(rank);
            ranks[gone] = NONE;
            next[at] = behind as u32;
            ranks[at] = NONE;
            if behind < length {
                previous[behind] = at as u32;
                ranks[at] = self.pairs.rank(ids[at], ids[behind]);
            }
            let before = previous[at] as usize;
            if before < length {
                ranks[before] = self.pairs.rank(ids[before], ids[at]);
            }
            for changed in [at, before] {
                if changed < length && ranks[changed] != NONE {
                    heap.push(Reverse(u64::from(ranks[changed]) << 32 | changed as u64));
                }
            }
        }
        let mut at = 0;
        while at < length {
            out.push(ids[at]);
            at = next[at] as usize;
        }
        if length > KEPT_MAX {
            *work = Work::default();
        }
    }
}

/// Memory for longer words is given back.
const KEPT_MAX: usize = 1 << 16;

/// Memory of a word under way.
#[derive(Default)]
pub struct Work {
    ids: Vec<u32>,
    ranks: Vec<u32>, // of a token and the next one
    next: Vec<u32>,
    previous: Vec<u32>,
    heap: BinaryHeap<Reverse<u64>>, // rank, then place: both low first
}

/// The rules by their neighbours: an open table with linear probing, at most half full.
struct Pairs {
    slots: Vec<Slot>,
    factor: u64, // odd and random: no file can know which pairs collide
    shift: u32,
    joined: Vec<u32>, // by rank
}

#[derive(Clone, Copy)]
struct Slot {
    key: u64,
    rank: u32,
}

const EMPTY: u64 = u64::MAX; // no pair of tokens: ids are smaller than NONE

impl Pairs {
    fn new(rules: &[Rule]) -> Pairs {
        let bits = (rules.len().max(1) * 2).next_power_of_two().trailing_zeros();
        let mut pairs = Pairs {
            slots: vec![Slot { key: EMPTY, rank: NONE }; 1 << bits],
            factor: RandomState::new().hash_one(0) | 1,
            shift: 64 - bits,
            joined: rules.iter().map(|rule| rule.2).collect(),
        };
        for (rank, &(left, right, _)) in rules.iter().enumerate() {
            let key = u64::from(left) << 32 | u64::from(right);
            let place = pairs.find(key);
            pairs.slots[place] = Slot { key, rank: rank as u32 };
        }
        pairs
    }

    /// Where a key is, or else belongs.
    #[inline]
    fn find(&self, key: u64) -> usize {
        let mut place = (key.wrapping_mul(self.factor) >> self.shift) as usize;
        loop {
            let found = self.slots[place].key;
            if found == key || found == EMPTY {
                return place;
            }
            place = (place + 1) & (self.slots.len() - 1);
        }
    }

    /// The rank of the rule that joins two tokens; NONE without a rule.
    #[inline]
    fn rank(&self, left: u32, right: u32) -> u32 {
        self.slots[self.find(u64::from(left) << 32 | u64::from(right))].rank
    }

    #[inline]
    fn joined(&self, rank: u32) -> u32 {
        self.joined[rank as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The algorithm as one says it.
    fn plain(rules: &[Rule], word: &[u8]) -> Vec<u32> {
        let mut ids: Vec<u32> = word.iter().map(|&byte| u32::from(byte)).collect();
        loop {
            let rank = |pair: &[u32]| rules.iter().rposition(|rule| (rule.0, rule.1) == (pair[0], pair[1]));
            let Some((_, at)) =
                ids.windows(2).enumerate().filter_map(|(at, pair)| Some((rank(pair)?, at))).min()
            else {
                return ids;
            };
            let joined = rules[rank(&ids[at..at + 2]).expect("it was found")].2;
            ids.splice(at..at + 2, [joined]);
        }
    }

    fn rules() -> impl Strategy<Value = Vec<Rule>> {
        // Neighbours are bytes 0..3 or what an earlier rule made.
        prop::collection::vec((any::<u32>(), any::<u32>()), 0..40).prop_map(|seeds| {
            let token = |seed: u32, made: u32| match seed % (3 + made) {
                byte @ 0..3 => byte,
                rule => 256 + rule - 3,
            };
            let rule = |(at, &(left, right)): (usize, &(u32, u32))| {
                (token(left, at as u32), token(right, at as u32), 256 + at as u32)
            };
            seeds.iter().enumerate().map(rule).collect()
        })
    }

    fn bpe(rules: &[Rule]) -> Bpe {
        Bpe::new(&std::array::from_fn(|byte| Some(byte as u32)), rules, HashMap::new())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn scanning_and_queueing_join_what_the_definition_joins(
            rules in rules(), word in prop::collection::vec(0u8..4, 1..60),
        ) {
            let bpe = bpe(&rules);
            let mut work = Work::default();
            let expected = plain(&rules, &word);
            for queued in [false, true] {
                let mut out = Vec::new();
                work.ids = word.iter().map(|&byte| u32::from(byte)).collect();
                work.ranks = work.ids.windows(2).map(|pair| bpe.pairs.rank(pair[0], pair[1])).collect();
                work.ranks.push(NONE);
                if queued { bpe.queue(&mut work, &mut out) } else { bpe.scan(&mut work, &mut out) }
                prop_assert_eq!(&out, &expected);
            }
        }
    }

    #[test]
    fn a_word_as_long_as_a_book_is_joined_like_any_other() {
        let bpe = bpe(&[(0, 0, 256), (256, 256, 257), (257, 257, 258)]);
        let mut out = Vec::new();
        bpe.encode(&vec![0; 1_000_001], &mut Work::default(), &mut out);
        assert_eq!(out.len(), 125_001);
        assert_eq!((out[0], out[out.len() - 1]), (258, 0));
    }

    #[test]
    fn a_byte_without_a_token_vanishes_before_its_neighbours_meet() {
        let mut bytes = [None; 256];
        (bytes[1], bytes[2]) = (Some(1), Some(2));
        let bpe = Bpe::new(&bytes, &[(1, 2, 3)], HashMap::new());
        let mut out = Vec::new();
        bpe.encode(&[1, 9, 2, 9], &mut Work::default(), &mut out);
        assert_eq!(out, [3]);
        bpe.encode(&[9], &mut Work::default(), &mut out);
        assert_eq!(out, [3]);
    }
}
