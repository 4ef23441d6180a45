//! What a word became, for words that come again: tables of fixed size in which a new word replaces an old one.
//!
//! Keys are compared whole, so that no collision can change an answer; a text made to collide is only slower.

/// A word of at most 8 * KEY - 1 bytes and its at most IDS tokens.
#[derive(Clone)]
#[repr(C, align(64))]
struct Slot<const KEY: usize, const IDS: usize> {
    key: [u64; KEY],
    ids: [u32; IDS],
    count: u32,
}

/// A direct-mapped table of words.
struct Table<const KEY: usize, const IDS: usize> {
    slots: Vec<Slot<KEY, IDS>>,
}

impl<const KEY: usize, const IDS: usize> Table<KEY, IDS> {
    /// 1 << `bits` places.
    fn new(bits: u32) -> Self {
        Table { slots: vec![Slot { key: [0; KEY], ids: [0; IDS], count: 0 }; 1 << bits] }
    }

    #[inline]
    fn place(&self, key: &[u64; KEY]) -> usize {
        let mixed = key.iter().fold(0u64, |hash, &part| {
            // 2^64 divided by the golden ratio: the upper bits of the product depend on all of the key's.
            (hash.rotate_left(29) ^ part).wrapping_mul(0x9E37_79B9_7F4A_7C15)
        });
        (mixed ^ mixed >> 32) as usize & (self.slots.len() - 1)
    }

    #[inline]
    fn get(&self, key: &[u64; KEY]) -> Option<&[u32]> {
        let slot = &self.slots[self.place(key)];
        (slot.key == *key).then(|| &slot.ids[..(slot.count as usize).min(IDS)])
    }

    fn put(&mut self, key: &[u64; KEY], ids: &[u32]) {
        if ids.len() > IDS {
            return;
        }
        let place = self.place(key);
        let slot = &mut self.slots[place];
        slot.key = *key;
        slot.ids[..ids.len()].copy_from_slice(ids);
        slot.count = ids.len() as u32;
    }
}

const SHORT: usize = 15;
const LONG: usize = 63;

/// Words of up to 63 bytes, in 1.5 MB.
pub struct WordCache {
    short: Table<2, 11>,
    long: Table<8, 15>,
}

/// A word as the cache looks it up.
pub enum Key {
    /// Up to 15 bytes, the length in the last one.
    Short([u64; 2]),
    /// Up to 63.
    Long([u64; 8]),
    /// Longer than what is kept, or empty.
    None,
}

impl Default for WordCache {
    fn default() -> WordCache {
        WordCache { short: Table::new(14), long: Table::new(12) }
    }
}

impl WordCache {
    /// The tokens of a word that came before.
    #[inline]
    pub fn get(&self, key: &Key) -> Option<&[u32]> {
        match key {
            Key::Short(key) => self.short.get(key),
            Key::Long(key) => self.long.get(key),
            Key::None => None,
        }
    }

    /// Keep the tokens of a word.
    pub fn put(&mut self, key: &Key, ids: &[u32]) {
        match key {
            Key::Short(key) => self.short.put(key, ids),
            Key::Long(key) => self.long.put(key, ids),
            Key::None => (),
        }
    }
}

impl Key {
    /// Of the bytes begin..end of a text.
    #[inline]
    pub fn of(text: &[u8], begin: usize, end: usize) -> Key {
        match end - begin {
            length @ 1..=SHORT => Key::Short(short(text, begin, length)),
            length @ 16..=LONG => {
                let mut raw = [0u8; 64];
                raw[..length].copy_from_slice(&text[begin..end]);
                raw[LONG] = length as u8;
                let mut key = [0; 8];
                for (part, bytes) in key.iter_mut().zip(raw.as_chunks::<8>().0) {
                    *part = u64::from_le_bytes(*bytes);
                }
                Key::Long(key)
            }
            _ => Key::None,
        }
    }

    /// Of the same bytes with A-Z as a-z.
    #[inline]
    pub fn lower(text: &[u8], begin: usize, end: usize) -> Key {
        match Key::of(text, begin, end) {
            Key::Short([low, high]) => {
                let length = high & 0xFF << 56;
                Key::Short([lower(low), lower(high & !(0xFF << 56)) | length])
            }
            Key::Long(_) => {
                let mut raw = [0u8; LONG];
                let word = &mut raw[..end - begin];
                word.copy_from_slice(&text[begin..end]);
                word.make_ascii_lowercase();
                Key::of(word, 0, end - begin)
            }
            Key::None => Key::None,
        }
    }
}

/// The bytes of a short word with zeros behind and the length in the last byte.
#[inline]
fn short(text: &[u8], begin: usize, length: usize) -> [u64; 2] {
    let raw = match text.get(begin..).and_then(|rest| rest.first_chunk::<16>()) {
        Some(chunk) => u128::from_le_bytes(*chunk) & ((1 << (8 * length)) - 1),
        None => {
            let mut raw = [0; 16];
            raw[..length].copy_from_slice(&text[begin..begin + length]);
            u128::from_le_bytes(raw)
        }
    };
    [raw as u64, (raw >> 64) as u64 | (length as u64) << 56]
}

/// Eight ASCII characters at once, A-Z as a-z.
#[inline]
fn lower(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let heads = word & (0x7F * ONES); // no carry from byte to byte below
    let from_a = heads + ONES * u64::from(0x80 - b'A');
    let behind_z = heads + ONES * u64::from(0x7F - b'Z');
    let capitals = from_a & !behind_z & !word & (0x80 * ONES);
    word | capitals >> 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_found_again_and_no_other() {
        let mut cache = WordCache::default();
        for length in 1..=70 {
            let word: Vec<u8> = (0..length).map(|at| b'a' + at % 26).collect();
            let key = Key::of(&word, 0, word.len());
            assert_eq!(cache.get(&key), None);
            cache.put(&key, &[u32::from(length), 7]);
            let expected: Option<&[u32]> = if length <= 63 { Some(&[u32::from(length), 7]) } else { None };
            assert_eq!(cache.get(&Key::of(&word, 0, word.len())), expected);
        }
        cache.put(&Key::of(b"many", 0, 4), &[1; 12]); // more than a place holds
        assert_eq!(cache.get(&Key::of(b"many", 0, 4)), None);
    }

    #[test]
    fn what_follows_a_word_is_no_part_of_its_key() {
        let mut cache = WordCache::default();
        cache.put(&Key::of(b"the cat sat on the mat", 4, 7), &[1]);
        assert_eq!(cache.get(&Key::of(b"cat", 0, 3)), Some(&[1][..]));
        assert_eq!(cache.get(&Key::of(b"cat\0", 0, 4)), None);
    }

    #[test]
    fn lower_case_is_that_of_the_standard_library() {
        for first in 0..=127u8 {
            for length in 1..40 {
                let word: Vec<u8> = (0..length).map(|at| (first + at) & 0x7F).collect();
                let mut cache = WordCache::default();
                cache.put(&Key::lower(&word, 0, word.len()), &[1]);
                let lower = word.to_ascii_lowercase();
                assert!(cache.get(&Key::of(&lower, 0, lower.len())).is_some(), "{word:?}");
            }
        }
    }
}
