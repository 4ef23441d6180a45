//! Tokens back to text.

use crate::file::Section;
use crate::refusal::{Refusal, unsupported};

/// How the spellings of tokens become a text.
pub enum Decoder {
    /// Every character of a spelling stands for a byte; what is no UTF-8 is replaced.
    ByteLevel,
    /// A space before every word but the first; `prefix` marks what continues a word.
    WordPiece {
        /// Removed where it begins a token.
        prefix: String,
        /// Whether the space before punctuation is removed.
        cleanup: bool,
    },
}

impl Decoder {
    /// The decoder of a file.
    pub fn read(section: Option<Section>) -> Result<Decoder, Refusal> {
        let Some(mut section) = section else { return unsupported("no decoder") };
        let decoder = match section.kind.as_str() {
            "ByteLevel" => {
                section.flag("add_prefix_space")?;
                section.flag("trim_offsets")?;
                section.flag_or("use_regex", true)?;
                Decoder::ByteLevel
            }
            "WordPiece" => {
                Decoder::WordPiece { prefix: section.text("prefix")?, cleanup: section.flag("cleanup")? }
            }
            _ => return section.unknown(),
        };
        section.end()?;
        Ok(decoder)
    }

    /// What is kept of a token's spelling.
    pub fn prepare(&self, spelling: &str) -> Vec<u8> {
        match self {
            Decoder::ByteLevel => bytes_of(spelling).unwrap_or_else(|| spelling.as_bytes().to_vec()),
            Decoder::WordPiece { .. } => spelling.as_bytes().to_vec(),
        }
    }

    /// The text of prepared tokens.
    pub fn join<'a>(&self, tokens: impl Iterator<Item = &'a [u8]>) -> String {
        match self {
            Decoder::ByteLevel => {
                let bytes: Vec<u8> = tokens.flatten().copied().collect();
                String::from_utf8(bytes)
                    .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
            }
            Decoder::WordPiece { prefix, cleanup } => {
                let mut text = String::new();
                for (at, token) in tokens.enumerate() {
                    let token = String::from_utf8_lossy(token);
                    let piece = match token.strip_prefix(prefix.as_str()) {
                        _ if at == 0 => token.into_owned(),
                        Some(rest) => rest.to_owned(),
                        None => format!(" {token}"),
                    };
                    text += &if *cleanup { tidy(piece) } else { piece };
                }
                text
            }
        }
    }
}

/// The spaces that English does not have, removed within one token.
fn tidy(piece: String) -> String {
    const CHANGES: [(&str, &str); 11] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" do not", " don't"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    CHANGES.iter().fold(
        piece,
        |piece, (from, to)| {
            if piece.contains(from) { piece.replace(from, to) } else { piece }
        },
    )
}

/// The bytes that a byte-level spelling stands for; None if a character stands for none.
pub fn bytes_of(spelling: &str) -> Option<Vec<u8>> {
    spelling.chars().map(byte_of).collect()
}

/// Printable Latin-1 stands for itself; the other bytes follow, in order, from U+0100 on.
fn byte_of(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_character() {
        let mut seen = [false; 256];
        for byte in ('\0'..='\u{200}').filter_map(byte_of) {
            assert!(!seen[usize::from(byte)]);
            seen[usize::from(byte)] = true;
        }
        assert!(seen.iter().all(|&one| one));
        assert_eq!(bytes_of("Ġé\u{143}ł"), Some(vec![0x20, 0xE9, 0xAD, 0xA0]));
        assert_eq!(bytes_of("a b"), None);
    }

    #[test]
    fn halves_of_characters_are_replaced() {
        let tokens = ["Ã", "©Ã", "x"].map(|token| Decoder::ByteLevel.prepare(token));
        assert_eq!(Decoder::ByteLevel.join(tokens.iter().map(Vec::as_slice)), "é\u{fffd}x");
    }

    #[test]
    fn words_are_joined_and_tidied() {
        let decoder = Decoder::WordPiece { prefix: "##".into(), cleanup: true };
        let tokens = ["un", "##believ", "##able", ",", "it", "'", "s", "."].map(str::as_bytes);
        assert_eq!(decoder.join(tokens.into_iter()), "unbelievable, it ' s.");
    }
}
