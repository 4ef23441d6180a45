//! Which characters are letters, numbers and white space for a pre-tokeniser's pattern.

use std::sync::OnceLock;

use regex_syntax::hir::{Class as HirClass, HirKind};

/// What a pattern asks of a character.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Class {
    /// None of the others.
    Other,
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\s`
    Space,
}

const PAGE: usize = 256;

/// The class of every character, in pages that are shared where they are equal.
pub struct Classes {
    ascii: [Class; 128],
    index: Vec<u16>,
    pages: Vec<[Class; PAGE]>,
}

impl Classes {
    /// The one table, made on first use from the Unicode tables of regex-syntax (Unicode 16).
    pub fn get() -> &'static Classes {
        static TABLE: OnceLock<Classes> = OnceLock::new();
        TABLE.get_or_init(Classes::make)
    }

    fn make() -> Classes {
        let mut all = vec![Class::Other; 0x11_0000];
        for (pattern, class) in [(r"\p{L}", Class::Letter), (r"\p{N}", Class::Number), (r"\s", Class::Space)]
        {
            for (first, last) in ranges(pattern) {
                all[first as usize..=last as usize].fill(class);
            }
        }
        let mut pages: Vec<[Class; PAGE]> = Vec::new();
        let index = all.as_chunks::<PAGE>().0.iter().map(|page| {
            let at = pages.iter().position(|known| known == page);
            at.unwrap_or_else(|| {
                pages.push(*page);
                pages.len() - 1
            }) as u16
        });
        let index = index.collect();
        let mut ascii = [Class::Other; 128];
        ascii.copy_from_slice(&all[..128]);
        Classes { ascii, index, pages }
    }

    /// The class of a character.
    pub fn of(&self, character: u32) -> Class {
        let page = self.index[character as usize / PAGE];
        self.pages[usize::from(page)][character as usize % PAGE]
    }
}

/// The ranges of a character class that regex-syntax knows.
fn ranges(pattern: &str) -> Vec<(u32, u32)> {
    let Ok(parsed) = regex_syntax::parse(pattern) else { return Vec::new() };
    match parsed.kind() {
        HirKind::Class(HirClass::Unicode(class)) => {
            class.iter().map(|range| (u32::from(range.start()), u32::from(range.end()))).collect()
        }
        _ => Vec::new(),
    }
}

/// A text with the classes of its characters.
#[derive(Clone, Copy)]
pub struct Classed<'a> {
    /// Valid UTF-8.
    pub bytes: &'a [u8],
    classes: &'static Classes,
}

impl<'a> Classed<'a> {
    /// The text, classed.
    pub fn new(text: &'a str) -> Classed<'a> {
        Classed { bytes: text.as_bytes(), classes: Classes::get() }
    }

    /// The class and the length in bytes of the character that begins at `at`; None behind the end.
    #[inline]
    pub fn at(&self, at: usize) -> Option<(Class, usize)> {
        let &byte = self.bytes.get(at)?;
        match self.classes.ascii.get(usize::from(byte)) {
            Some(&class) => Some((class, 1)),
            None => Some(self.wide(at)),
        }
    }

    /// Where the run of characters of `class` that begins at `at` ends.
    #[inline]
    pub fn skip(&self, mut at: usize, class: Class) -> usize {
        while let Some((found, length)) = self.at(at)
            && found == class
        {
            at += length;
        }
        at
    }

    /// Where the character before `at` begins.
    #[inline]
    pub fn before(&self, at: usize) -> usize {
        let mut start = at.saturating_sub(1);
        while start > 0 && self.bytes[start] & 0xC0 == 0x80 {
            start -= 1;
        }
        start
    }

    /// As `at`, of a character that is not ASCII.
    fn wide(&self, at: usize) -> (Class, usize) {
        let byte = |ahead: usize| u32::from(self.bytes.get(at + ahead).copied().unwrap_or(0));
        let tail = |ahead: usize| byte(ahead) & 0x3F;
        let (character, length) = match byte(0) {
            first @ 0..0xE0 => ((first & 0x1F) << 6 | tail(1), 2),
            first @ 0xE0..0xF0 => ((first & 0x0F) << 12 | tail(1) << 6 | tail(2), 3),
            first => ((first & 0x07) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3), 4),
        };
        (self.classes.of(character.min(0x10_FFFF)), length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_has_the_class_of_its_general_category() {
        let classes = Classes::get();
        for (character, class) in [
            ('a', Class::Letter),
            ('\u{10ffff}', Class::Other),
            ('\u{3000}', Class::Space),
            ('½', Class::Number),
            ('٣', Class::Number),
            ('中', Class::Letter),
            ('\u{0301}', Class::Other),
            ('\u{1c}', Class::Other),
            ('\u{85}', Class::Space),
        ] {
            assert_eq!(classes.of(u32::from(character)), class, "{character:?}");
        }
        let letters = (0..0x11_0000).filter(|&one| classes.of(one) == Class::Letter).count();
        assert_eq!(letters, 141_028); // of Unicode 16
    }

    #[test]
    fn characters_are_found_whatever_their_length() {
        let text = "aé中😀 ";
        let classed = Classed::new(text);
        for (at, character) in text.char_indices() {
            let expected = (Classes::get().of(u32::from(character)), character.len_utf8());
            assert_eq!(classed.at(at), Some(expected));
            assert_eq!(classed.before(at + character.len_utf8()), at);
        }
        assert_eq!(classed.at(text.len()), None);
    }
}
