//! How BERT cleans a text and cuts it into words: control characters away, CJK characters alone, accents off, lower
//! case, then white space and punctuation. ASCII takes a short way.

use unicode_categories::UnicodeCategories;
use unicode_normalization_alignments::UnicodeNormalization;

/// What is done to a text; every part can be left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bert {
    /// Control characters are removed, white space becomes a space.
    pub clean: bool,
    /// A CJK character is a word.
    pub chinese: bool,
    /// Accents are removed.
    pub accents: bool,
    /// Capitals become small letters.
    pub lowercase: bool,
}

/// A word on its way to the vocabulary.
pub struct Found<'a> {
    /// Where the word is.
    pub text: &'a [u8],
    /// Where it begins.
    pub begin: usize,
    /// Where it ends.
    pub end: usize,
    /// Whether A-Z in it still stand for a-z.
    pub raw: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Word,
    Space,
    Mark,
    Strange, // what takes the long way: control characters and all that is not ASCII
}

const KINDS: [Kind; 256] = {
    let mut kinds = [Kind::Strange; 256];
    let mut byte = 0;
    while byte < 128 {
        let one = byte as u8;
        kinds[byte] = match one {
            b' ' | b'\t' | b'\n' | b'\r' => Kind::Space,
            _ if one.is_ascii_alphanumeric() => Kind::Word,
            _ if one.is_ascii_punctuation() => Kind::Mark,
            _ => Kind::Strange,
        };
        byte += 1;
    }
    kinds
};

impl Bert {
    /// Call `emit` with every word until it returns false; `buffer` is memory to work in.
    #[inline]
    pub fn split(self, text: &str, buffer: &mut String, mut emit: impl FnMut(Found<'_>) -> bool) {
        let bytes = text.as_bytes();
        let kind = |at: usize| bytes.get(at).map(|&byte| KINDS[usize::from(byte)]);
        let mut at = 0;
        while let Some(first) = kind(at) {
            let begin = at;
            at += 1;
            match first {
                Kind::Space => continue,
                Kind::Mark => (),
                Kind::Word => {
                    while kind(at) == Some(Kind::Word) {
                        at += 1;
                    }
                }
                Kind::Strange => (),
            }
            if first == Kind::Strange || (first == Kind::Word && kind(at) == Some(Kind::Strange)) {
                // No step looks beyond white space of ASCII.
                while kind(at).is_some_and(|kind| kind != Kind::Space) {
                    at += 1;
                }
                buffer.clear();
                self.normalise(&text[begin..at], buffer);
                if !words(buffer, |begin, end| {
                    emit(Found { text: buffer.as_bytes(), begin, end, raw: false })
                }) {
                    return;
                }
            } else if !emit(Found { text: bytes, begin, end: at, raw: self.lowercase }) {
                return;
            }
        }
    }

    /// The text as BERT reads it, appended to `out`.
    fn normalise(self, text: &str, out: &mut String) {
        let cleaned = text.chars().filter(move |&one| !self.clean || !is_dropped(one)).flat_map(move |one| {
            let one = if self.clean && one.is_whitespace() { ' ' } else { one };
            let space = (self.chinese && is_chinese(one)).then_some(' ');
            space.into_iter().chain([one]).chain(space)
        });
        let mut finish = |one: char| {
            if self.lowercase { out.extend(one.to_lowercase()) } else { out.push(one) }
        };
        if self.accents {
            cleaned.nfd().map(|(one, _)| one).filter(|one| !one.is_mark_nonspacing()).for_each(&mut finish);
        } else {
            cleaned.for_each(&mut finish);
        }
    }
}

/// Call `emit` with begin and end of every word of a normalised text until it returns false.
fn words(text: &str, mut emit: impl FnMut(usize, usize) -> bool) -> bool {
    let mut begin = 0;
    for (at, one) in text.char_indices() {
        let mark = is_punctuation(one);
        if !mark && !one.is_whitespace() {
            continue;
        }
        if begin < at && !emit(begin, at) {
            return false;
        }
        begin = at + one.len_utf8();
        if mark && !emit(at, begin) {
            return false;
        }
    }
    begin == text.len() || emit(begin, text.len())
}

fn is_punctuation(one: char) -> bool {
    one.is_ascii_punctuation() || one.is_punctuation()
}

/// NUL, U+FFFD and what is no character: control, format, private, unassigned.
fn is_dropped(one: char) -> bool {
    match one {
        '\t' | '\n' | '\r' => false,
        '\0' | '\u{FFFD}' => true,
        _ => one.is_other(),
    }
}

/// The blocks that BERT calls Chinese.
fn is_chinese(one: char) -> bool {
    matches!(u32::from(one),
        0x4E00..=0x9FFF | 0x3400..=0x4DBF | 0x2_0000..=0x2_A6DF | 0x2_A700..=0x2_B73F | 0x2_B740..=0x2_B81F
        | 0x2_B920..=0x2_CEAF | 0xF900..=0xFAFF | 0x2_F800..=0x2_FA1F)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(bert: Bert, text: &str) -> Vec<String> {
        let mut all = Vec::new();
        bert.split(text, &mut String::new(), |found| {
            let word = String::from_utf8(found.text[found.begin..found.end].to_vec()).expect("a whole word");
            all.push(if found.raw { word.to_ascii_lowercase() } else { word });
            true
        });
        all
    }

    const ALL: Bert = Bert { clean: true, chinese: true, accents: true, lowercase: true };

    #[test]
    fn words_are_cleaned_and_cut() {
        let text = "Crème\u{0}brûlée don't\u{7f}STOP 中文x\u{a0}İ!\u{301}\u{200b}— ok";
        let expected = ["cremebrulee", "don", "'", "tstop", "中", "文", "x", "i", "!", "—", "ok"];
        assert_eq!(found(ALL, text), expected);
    }

    #[test]
    fn every_step_can_be_left_out() {
        let none = Bert { clean: false, chinese: false, accents: false, lowercase: false };
        assert_eq!(found(none, "Crème\u{0}x 中文"), ["Crème\u{0}x", "中文"]);
    }

    #[test]
    fn cutting_ends_when_asked_to() {
        for text in ["a b c d", "é,è,à"] {
            let mut count = 0;
            ALL.split(text, &mut String::new(), |_| {
                count += 1;
                count < 2
            });
            assert_eq!(count, 2);
        }
    }
}
