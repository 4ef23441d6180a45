//! WordPiece: the longest token that begins a word, then the longest that continues it, and so on; a word that does
//! not come out even, or is too long, is unknown. Source: Schuster & Nakajima 2012, as BERT uses it.

/// A WordPiece vocabulary.
pub struct WordPiece {
    first: Trie,
    later: Trie,
    unknown: u32,
    chars_max: usize,
}

impl WordPiece {
    /// `tokens` by their spelling; those that continue a word begin with `prefix`.
    pub fn new<'a>(
        tokens: impl Iterator<Item = (&'a str, u32)>,
        prefix: &str,
        unknown: u32,
        chars_max: usize,
    ) -> WordPiece {
        let first: Vec<_> = tokens.map(|(token, id)| (token.as_bytes(), id)).collect();
        let later =
            first.iter().filter_map(|&(token, id)| Some((token.strip_prefix(prefix.as_bytes())?, id)));
        WordPiece { later: Trie::new(later.collect()), first: Trie::new(first), unknown, chars_max }
    }

    /// Append the tokens of a word, which is valid UTF-8 and not empty.
    pub fn encode(&self, word: &[u8], out: &mut Vec<u32>) {
        let begun = out.len();
        // No character has more than four bytes, so most words need no counting.
        if word.len() > self.chars_max && chars(word) > self.chars_max {
            return out.push(self.unknown);
        }
        let mut at = 0;
        while at < word.len() {
            let trie = if at == 0 { &self.first } else { &self.later };
            let Some((length, id)) = trie.longest(&word[at..]) else {
                out.truncate(begun);
                return out.push(self.unknown);
            };
            out.push(id);
            at += length;
        }
    }
}

/// How many characters begin in the bytes.
fn chars(word: &[u8]) -> usize {
    word.iter().filter(|&&byte| byte & 0xC0 != 0x80).count()
}

const NONE: u32 = u32::MAX;

/// The vocabulary as a tree of bytes. Nodes are numbered level by level, so that a node's children are neighbours.
struct Trie {
    bytes: Vec<u8>,     // on the way into a node
    children: Vec<u32>, // the first child; the last one is before the next node's first
    ids: Vec<u32>,      // NONE where no token ends
    roots: Box<[u32; 256]>,
}

impl Trie {
    /// Empty spellings are left out.
    fn new(mut tokens: Vec<(&[u8], u32)>) -> Trie {
        tokens.retain(|(token, _)| !token.is_empty());
        tokens.sort_unstable();
        let mut trie =
            Trie { bytes: vec![0], children: vec![1], ids: vec![NONE], roots: Box::new([NONE; 256]) };
        // Of each node of a level, the tokens that go through it.
        let mut level: Vec<_> = std::iter::once(0..tokens.len()).collect();
        let mut depth = 0;
        while !level.is_empty() {
            let mut below = Vec::new();
            for node in level {
                let mut begin = node.start;
                for group in tokens[node].chunk_by(|one, other| one.0[depth] == other.0[depth]) {
                    let (token, id) = group[0];
                    let ends = token.len() == depth + 1;
                    trie.bytes.push(token[depth]);
                    trie.ids.push(if ends { id } else { NONE });
                    below.push(begin + usize::from(ends)..begin + group.len());
                    begin += group.len();
                }
                trie.children.push(trie.bytes.len() as u32);
            }
            level = below;
            depth += 1;
        }
        for node in 1..trie.children[1] {
            trie.roots[usize::from(trie.bytes[node as usize])] = node;
        }
        trie
    }

    /// Length and id of the longest token that begins the text.
    #[inline]
    fn longest(&self, text: &[u8]) -> Option<(usize, u32)> {
        let mut found = None;
        let mut node = self.roots[usize::from(*text.first()?)];
        let mut at = 1;
        while node != NONE {
            if self.ids[node as usize] != NONE {
                found = Some((at, self.ids[node as usize]));
            }
            let Some(&byte) = text.get(at) else { break };
            let children = self.children[node as usize] as usize..self.children[node as usize + 1] as usize;
            let Some(child) = self.bytes[children.clone()].iter().position(|&one| one == byte) else { break };
            node = (children.start + child) as u32;
            at += 1;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain(tokens: &[(&str, u32)], word: &str) -> Vec<u32> {
        let (mut at, mut out) = (0, Vec::new());
        while at < word.len() {
            let prefix = if at == 0 { "" } else { "##" };
            let ends = (at + 1..=word.len()).rev().filter(|&end| word.is_char_boundary(end));
            let found = ends.map(|end| (end, format!("{prefix}{}", &word[at..end])));
            let mut found = found.filter_map(|(end, piece)| {
                tokens.iter().find(|token| token.0 == piece).map(|token| (end, token.1))
            });
            match found.next() {
                Some((end, id)) => (at, _) = (end, out.push(id)),
                None => return vec![9],
            }
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn pieces_are_the_longest_from_the_left(
            spellings in prop::collection::btree_set("(##)?[aé中]{1,4}", 0..20), word in "[aé中]{1,12}",
        ) {
            let tokens: Vec<(&str, u32)> = spellings.iter().map(String::as_str).zip(10..).collect();
            let mut out = Vec::new();
            WordPiece::new(tokens.iter().copied(), "##", 9, 100).encode(word.as_bytes(), &mut out);
            prop_assert_eq!(out, plain(&tokens, &word));
        }
    }

    #[test]
    fn a_word_of_too_many_characters_is_unknown() {
        let vocabulary = WordPiece::new([("é", 1), ("##é", 2)].into_iter(), "##", 0, 3);
        let mut out = Vec::new();
        vocabulary.encode("ééé".as_bytes(), &mut out);
        vocabulary.encode("éééé".as_bytes(), &mut out);
        assert_eq!(out, [1, 2, 2, 0]);
    }
}
