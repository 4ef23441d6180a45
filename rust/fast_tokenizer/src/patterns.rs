//! The patterns by which byte-level vocabularies cut a text into words, each as a scanner written by hand.
//!
//! A scanner emits the words in order, and together they are the text: every alternative of a pattern, and what no
//! alternative takes. Positions are bytes and lie between characters.

use crate::unicode::{Class, Classed};

/// Radford et al. 2019; what ByteLevel means by `use_regex`.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Of Llama 3, after OpenAI's cl100k.
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// Of Qwen 2 and its successors.
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// Of the vocabularies of AIOS.
const AIOS: &str = concat!(
    r#"[{}\[\]:,"]|\p{N}|'(?:s|t|re|ve|m|ll|d)(?!\p{L})|\n+ *|[ _]?\p{L}+"#,
    r#"| ?[^\s\p{L}\p{N}{}\[\]:,"]+| +(?=[ ])|\s"#
);

/// A pattern that has a scanner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pattern {
    /// Words with the space before them, contractions, numbers.
    Gpt2,
    /// Llama 3's; numbers in groups of at most so many digits.
    Cl100k {
        /// 3 for Llama 3, 1 for Qwen 2.
        digits_max: usize,
    },
    /// AIOS's own.
    Aios,
}

impl Pattern {
    /// The pattern that a regular expression is, if it is one of those known here, to the letter.
    pub fn known(regex: &str) -> Option<Pattern> {
        match regex {
            GPT2 => Some(Pattern::Gpt2),
            LLAMA3 => Some(Pattern::Cl100k { digits_max: 3 }),
            QWEN2 => Some(Pattern::Cl100k { digits_max: 1 }),
            AIOS => Some(Pattern::Aios),
            _ => None,
        }
    }

    /// Call `emit` with begin and end of every word.
    #[inline]
    pub fn split(self, text: Classed<'_>, mut emit: impl FnMut(usize, usize)) {
        match self {
            Pattern::Gpt2 => each(text, |at| gpt2(text, at), &mut emit),
            Pattern::Cl100k { digits_max } => each(text, |at| cl100k(text, at, digits_max), &mut emit),
            Pattern::Aios => each(text, |at| aios(text, at), &mut emit),
        }
    }
}

#[inline]
fn each(text: Classed<'_>, next: impl Fn(usize) -> usize, emit: &mut impl FnMut(usize, usize)) {
    let mut at = 0;
    while at < text.bytes.len() {
        let end = next(at);
        debug_assert!(end > at && end <= text.bytes.len());
        emit(at, end);
        at = end;
    }
}

/// The end of the word that begins at `at`, which is not behind the text.
#[inline]
fn gpt2(text: Classed<'_>, at: usize) -> usize {
    let Some((class, length)) = text.at(at) else { return at };
    match class {
        Class::Space => {
            if text.bytes[at] == b' '
                && let Some((next, width)) = text.at(at + 1)
                && next != Class::Space
            {
                return text.skip(at + 1 + width, next);
            }
            spaces(text, at, length)
        }
        Class::Other if text.bytes[at] == b'\'' => {
            contraction(text.bytes, at).unwrap_or_else(|| text.skip(at + 1, class))
        }
        _ => text.skip(at + length, class),
    }
}

#[inline]
fn cl100k(text: Classed<'_>, at: usize, digits_max: usize) -> usize {
    let Some((class, length)) = text.at(at) else { return at };
    let byte = text.bytes[at];
    let behind = at + length;
    match class {
        Class::Letter => return text.skip(behind, Class::Letter),
        Class::Number => return numbers(text, behind, digits_max),
        Class::Other if byte == b'\'' => {
            if let Some(end) = contraction_any_case(text.bytes, at) {
                return end;
            }
        }
        _ => (),
    }
    let next = text.at(behind);
    match next {
        Some((Class::Letter, width)) if byte != b'\r' && byte != b'\n' => {
            text.skip(behind + width, Class::Letter)
        }
        _ if class == Class::Other => lines(text.bytes, text.skip(behind, Class::Other)),
        Some((Class::Other, width)) if byte == b' ' => {
            lines(text.bytes, text.skip(behind + width, Class::Other))
        }
        _ => {
            let end = text.skip(behind, Class::Space);
            match text.bytes[at..end].iter().rposition(|one| matches!(one, b'\r' | b'\n')) {
                Some(last) => at + last + 1,
                None => all_but_last(text, at, behind, end),
            }
        }
    }
}

#[inline]
fn aios(text: Classed<'_>, at: usize) -> usize {
    let Some((class, length)) = text.at(at) else { return at };
    let (byte, behind) = (text.bytes[at], at + length);
    match class {
        Class::Letter => text.skip(behind, Class::Letter),
        Class::Number => behind,
        Class::Other => match byte {
            b'{' | b'}' | b'[' | b']' | b':' | b',' | b'"' => behind,
            b'_' if matches!(text.at(behind), Some((Class::Letter, _))) => text.skip(behind, Class::Letter),
            b'\'' => match contraction(text.bytes, at) {
                Some(end) if !matches!(text.at(end), Some((Class::Letter, _))) => end,
                _ => marks(text, behind),
            },
            _ => marks(text, behind),
        },
        Class::Space if byte == b' ' => match text.at(behind) {
            Some((Class::Letter, width)) => text.skip(behind + width, Class::Letter),
            Some((Class::Other, width)) if !is_json(text.bytes[behind]) => marks(text, behind + width),
            Some((Class::Space, _)) if text.bytes[behind] == b' ' => skip_byte(text.bytes, behind, b' ') - 1,
            _ => behind,
        },
        Class::Space if byte == b'\n' => skip_byte(text.bytes, skip_byte(text.bytes, behind, b'\n'), b' '),
        Class::Space => behind,
    }
}

/// The end of `[^\s\p{L}\p{N}{}\[\]:,"]*`.
#[inline]
fn marks(text: Classed<'_>, mut at: usize) -> usize {
    while let Some((Class::Other, length)) = text.at(at)
        && !is_json(text.bytes[at])
    {
        at += length;
    }
    at
}

#[inline]
fn is_json(byte: u8) -> bool {
    matches!(byte, b'{' | b'}' | b'[' | b']' | b':' | b',' | b'"')
}

/// The end of `\s+(?!\S)|\s+` from a white space of `length` bytes.
#[inline]
fn spaces(text: Classed<'_>, at: usize, length: usize) -> usize {
    all_but_last(text, at, at + length, text.skip(at + length, Class::Space))
}

/// Of white space at..end whose first character ends at `behind`: all where the text ends, else all but the last.
#[inline]
fn all_but_last(text: Classed<'_>, at: usize, behind: usize, end: usize) -> usize {
    if end == text.bytes.len() || end == behind {
        return end;
    }
    let last = text.before(end);
    debug_assert!(last > at);
    last
}

/// The end of `[\r\n]*`.
#[inline]
fn lines(bytes: &[u8], mut at: usize) -> usize {
    while matches!(bytes.get(at), Some(b'\r' | b'\n')) {
        at += 1;
    }
    at
}

#[inline]
fn skip_byte(bytes: &[u8], mut at: usize, byte: u8) -> usize {
    while bytes.get(at) == Some(&byte) {
        at += 1;
    }
    at
}

/// The end of at most `most` numbers, one of which ends at `at`.
#[inline]
fn numbers(text: Classed<'_>, mut at: usize, most: usize) -> usize {
    for _ in 1..most {
        let Some((Class::Number, length)) = text.at(at) else { break };
        at += length;
    }
    at
}

/// The end of `'s|'t|'re|'ve|'m|'ll|'d` at an apostrophe.
#[inline]
fn contraction(bytes: &[u8], at: usize) -> Option<usize> {
    match (bytes.get(at + 1)?, bytes.get(at + 2)) {
        (b's' | b't' | b'm' | b'd', _) => Some(at + 2),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(at + 3),
        _ => None,
    }
}

/// The same in any case; the long s folds to an s.
#[inline]
fn contraction_any_case(bytes: &[u8], at: usize) -> Option<usize> {
    let (first, second) = (bytes.get(at + 1)?, bytes.get(at + 2));
    match (first.to_ascii_lowercase(), second.map(u8::to_ascii_lowercase)) {
        (b's' | b't' | b'm' | b'd', _) => Some(at + 2),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(at + 3),
        (0xC5, Some(0xBF)) => Some(at + 3),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(pattern: Pattern, text: &str) -> Vec<&str> {
        let mut found = Vec::new();
        pattern.split(Classed::new(text), |begin, end| found.push(&text[begin..end]));
        found
    }

    #[test]
    fn gpt2_takes_the_space_before_a_word() {
        let text = "It's  a test:  don't\t 42x \n\n y  ";
        let expected =
            ["It", "'s", " ", " a", " test", ":", " ", " don", "'t", "\t", " 42", "x", " \n\n", " y", "  "];
        assert_eq!(words(Pattern::Gpt2, text), expected);
    }

    #[test]
    fn cl100k_takes_any_mark_before_letters_and_lines_behind_marks() {
        let text = "x.foo(12345)\r\n\n  \n  bar'LLy 'ſo\u{a0}é!\n";
        let expected = [
            "x", ".foo", "(", "123", "45", ")\r\n\n", "  \n", " ", " bar", "'LL", "y", " '", "ſo", "\u{a0}é",
            "!\n",
        ];
        assert_eq!(words(Pattern::Cl100k { digits_max: 3 }, text), expected);
        assert_eq!(words(Pattern::Cl100k { digits_max: 1 }, "'ſo12"), ["'ſ", "o", "1", "2"]);
    }

    #[test]
    fn aios_keeps_json_marks_alone_and_indentation_with_its_line_break() {
        let text = "def _a(x):\n    return {\"k\": 12}\n\n   'so it's __b  -->[";
        let expected = [
            "def", " _", "a", "(", "x", ")", ":", "\n    ", "return", " ", "{", "\"", "k", "\"", ":", " ",
            "1", "2", "}", "\n\n   ", "'", "so", " it", "'s", " __", "b", " ", " -->", "[",
        ];
        assert_eq!(words(Pattern::Aios, text), expected);
    }

    #[test]
    fn a_pattern_is_known_by_its_letters_alone() {
        assert_eq!(Pattern::known(GPT2), Some(Pattern::Gpt2));
        assert_eq!(Pattern::known(&GPT2[1..]), None);
    }
}
