//! How a text becomes the words of a byte-level vocabulary.

use serde_json::Value;

use crate::file::Section;
use crate::patterns::Pattern;
use crate::refusal::{Refusal, unsupported};
use crate::unicode::Classed;

/// Deeper lists of steps than any vocabulary has are refused.
const STEPS_MAX: usize = 8;

/// A step of cutting, applied to every piece that the steps before it left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// Numbers stand apart, one by one or in runs.
    Digits {
        /// One by one.
        individual: bool,
    },
    /// A piece that does not begin with a space gets one.
    Prefix,
    /// A pattern's words.
    Pattern(Pattern),
}

/// The steps of a pre-tokeniser that ends in bytes.
pub fn read(section: Option<Section>) -> Result<Vec<Cut>, Refusal> {
    let Some(mut section) = section else { return unsupported("BPE without a byte-level pre-tokenizer") };
    let steps = match section.kind.as_str() {
        "Sequence" => {
            let steps = section.list("pretokenizers")?;
            section.end()?;
            steps
        }
        _ => vec![section],
    };
    let last = steps.len().wrapping_sub(1);
    let mut cuts = Vec::new();
    for (at, mut step) in steps.into_iter().enumerate() {
        match step.kind.as_str() {
            "Digits" if at != last => cuts.push(Cut::Digits { individual: step.flag("individual_digits")? }),
            "Split" if at != last => cuts.push(Cut::Pattern(split(&mut step)?)),
            "ByteLevel" if at == last => {
                step.flag("trim_offsets")?; // of offsets, which nobody asks for here
                if step.flag("add_prefix_space")? {
                    cuts.push(Cut::Prefix);
                }
                if step.flag_or("use_regex", true)? {
                    cuts.push(Cut::Pattern(Pattern::Gpt2));
                }
            }
            _ => return step.unknown(),
        }
        step.end()?;
    }
    match cuts.len() {
        _ if last == usize::MAX => unsupported("BPE without a byte-level pre-tokenizer"),
        0..=STEPS_MAX => Ok(cuts),
        _ => unsupported("many pre-tokenizers"),
    }
}

fn split(step: &mut Section) -> Result<Pattern, Refusal> {
    let (pattern, behavior) = (step.take("pattern")?, step.text("behavior")?);
    if step.flag("invert")? || behavior != "Isolated" {
        return unsupported("a Split that is not Isolated");
    }
    let only = pattern.as_object().filter(|pattern| pattern.len() == 1);
    match only.and_then(|pattern| pattern.get("Regex")?.as_str()).and_then(Pattern::known) {
        Some(pattern) => Ok(pattern),
        None => unsupported(format!("a Split by {:.200}", Value::to_string(&pattern))),
    }
}

/// Call `emit` with every word, given as a text and where the word begins and ends in it.
#[inline]
pub fn words(cuts: &[Cut], text: &str, emit: &mut impl FnMut(&[u8], usize, usize)) {
    match cuts.split_first() {
        None => emit(text.as_bytes(), 0, text.len()),
        Some((Cut::Pattern(pattern), [])) => {
            pattern.split(Classed::new(text), |begin, end| emit(text.as_bytes(), begin, end));
        }
        Some((cut, rest)) => further(*cut, rest, text, emit),
    }
}

/// A step with others behind it.
fn further(cut: Cut, rest: &[Cut], text: &str, emit: &mut impl FnMut(&[u8], usize, usize)) {
    match cut {
        Cut::Pattern(pattern) => {
            pattern.split(Classed::new(text), |begin, end| words(rest, &text[begin..end], emit));
        }
        Cut::Prefix if text.starts_with(' ') => words(rest, text, emit),
        Cut::Prefix => words(rest, &format!(" {text}"), emit),
        Cut::Digits { individual } => {
            let mut begin = 0;
            while let Some((at, length)) = number(&text[begin..], individual) {
                if at > 0 {
                    words(rest, &text[begin..begin + at], emit);
                }
                begin += at;
                words(rest, &text[begin..begin + length], emit);
                begin += length;
            }
            if begin < text.len() {
                words(rest, &text[begin..], emit);
            }
        }
    }
}

/// Where the first number is and how long; all neighbouring ones unless `individual`.
#[inline]
fn number(text: &str, individual: bool) -> Option<(usize, usize)> {
    let bytes = text.as_bytes();
    // The standard library's idea of numbers, which is the reference's; ASCII is looked at byte by byte.
    let mut at = bytes.iter().position(|byte| byte.is_ascii_digit() || *byte >= 0x80)?;
    if bytes[at] >= 0x80 {
        at += text[at..].find(char::is_numeric)?;
    }
    let rest = &text[at..];
    let length = match individual {
        true => rest.chars().next().map_or(0, char::len_utf8),
        false => rest.find(|one: char| !one.is_numeric()).unwrap_or(rest.len()),
    };
    Some((at, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(cuts: &[Cut], text: &str) -> Vec<String> {
        let mut all = Vec::new();
        words(cuts, text, &mut |bytes, begin, end| {
            all.push(String::from_utf8_lossy(&bytes[begin..end]).into_owned());
        });
        all
    }

    #[test]
    fn digits_end_pieces_so_that_patterns_do_not_look_beyond() {
        let one = [Cut::Digits { individual: true }, Cut::Pattern(Pattern::Gpt2)];
        assert_eq!(found(&one, "a  12é٣x"), ["a", "  ", "1", "2", "é", "٣", "x"]);
        let runs = [Cut::Digits { individual: false }, Cut::Pattern(Pattern::Gpt2)];
        assert_eq!(found(&runs, "a 12٣ x"), ["a", " ", "12٣", " x"]);
    }

    #[test]
    fn every_piece_gets_its_space() {
        assert_eq!(found(&[Cut::Prefix], "a b"), [" a b"]);
        let cuts = [Cut::Digits { individual: true }, Cut::Prefix, Cut::Pattern(Pattern::Gpt2)];
        assert_eq!(found(&cuts, "a1 b"), [" a", " 1", " b"]);
        assert_eq!(found(&[], "a b"), ["a b"]);
    }
}
