//! Tokens that are found in a text before it is cut into words: roles, ends of texts, masks.

use aho_corasick::{AhoCorasick, MatchKind};

use crate::Refusal;

/// A token as the file declares it.
#[derive(Clone, Debug)]
pub struct Added {
    /// Its spelling.
    pub content: String,
    /// Its id.
    pub id: u32,
    /// White space before it belongs to it.
    pub lstrip: bool,
    /// White space behind it belongs to it.
    pub rstrip: bool,
    /// A role or a mask rather than a word: never decoded, and found only where the caller asks for it.
    pub special: bool,
}

/// Finds a set of added tokens: the longest of those that begin leftmost.
pub struct Finder {
    automaton: AhoCorasick,
    tokens: Vec<Added>,
    all_special: bool,
}

impl Finder {
    /// None where there is nothing to find.
    pub fn new(tokens: Vec<Added>) -> Result<Option<Finder>, Refusal> {
        if tokens.is_empty() {
            return Ok(None);
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|token| &token.content))
            .map_err(|why| Refusal::Unsupported(format!("added tokens: {why}")))?;
        Ok(Some(Finder { automaton, all_special: tokens.iter().all(|token| token.special), tokens }))
    }

    /// Call `emit` with the pieces between tokens and the tokens' ids, in order. Special tokens that are not wanted are
    /// plain text, and so is what they cover.
    pub fn split<'a>(&self, text: &'a str, special: bool, emit: &mut impl FnMut(Piece<'a>)) {
        let mut done = 0;
        if special || !self.all_special {
            for found in self.automaton.find_iter(text) {
                let token = &self.tokens[found.pattern().as_usize()];
                if token.special && !special {
                    continue;
                }
                let (mut begin, mut end) = (found.start(), found.end());
                if token.lstrip {
                    begin = text[..begin].trim_end().len().max(done);
                }
                if token.rstrip {
                    end = text.len() - text[end..].trim_start().len();
                }
                if done < begin {
                    emit(Piece::Text(&text[done..begin]));
                }
                emit(Piece::Token(token.id));
                done = end;
            }
        }
        if done < text.len() {
            emit(Piece::Text(&text[done..]));
        }
    }
}

/// Part of a text.
#[derive(PartialEq, Eq, Debug)]
pub enum Piece<'a> {
    /// To be cut into words; never empty.
    Text(&'a str),
    /// Already a token.
    Token(u32),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(content: &str, id: u32, special: bool) -> Added {
        Added { content: content.into(), id, lstrip: id == 4, rstrip: id == 4, special }
    }

    fn pieces(text: &str, special: bool) -> Vec<Piece<'_>> {
        let tokens =
            vec![added("<a>", 1, true), added("<a>b", 2, true), added("c", 3, false), added("<w>", 4, false)];
        let finder = Finder::new(tokens).expect("a few tokens").expect("some");
        let mut found = Vec::new();
        finder.split(text, special, &mut |piece| found.push(piece));
        found
    }

    #[test]
    fn the_longest_of_the_leftmost_is_found() {
        use Piece::{Text, Token};
        assert_eq!(pieces("x<a>b<a>c", true), [Text("x"), Token(2), Token(1), Token(3)]);
        assert_eq!(pieces("x<a>b<a>c", false), [Text("x<a>b<a>"), Token(3)]);
        assert_eq!(pieces("c \u{a0}<w> \n<w> y", false), [Token(3), Token(4), Token(4), Text("y")]);
        assert_eq!(pieces("", true), []);
    }
}
