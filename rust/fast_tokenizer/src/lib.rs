//! FastTokenizer: byte-level BPE and WordPiece as a tokenizer.json describes them, with the ids of the tokenizers
//! library.
//!
//! [`Tokenizer::open`] reads a file or says why it does not ([`Refusal`]); whoever is refused asks the library itself.
//! No regular expression runs over a text: [`patterns`] scan it by hand, [`cut`] and [`bert`] make words of it,
//! [`bpe`] and [`wordpiece`] make tokens of words, and [`cache`] remembers them.

pub mod added;
pub mod bert;
pub mod bpe;
pub mod cache;
pub mod cut;
pub mod decode;
pub mod file;
pub mod frame;
mod open;
pub mod patterns;
mod refusal;
pub mod unicode;
pub mod wordpiece;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use unicode_normalization_alignments::UnicodeNormalization;

use added::{Added, Finder, Piece};
use bert::Bert;
use bpe::Bpe;
use cache::{Key, WordCache};
use cut::Cut;
use decode::Decoder;
use frame::Frame;
pub use refusal::Refusal;
use wordpiece::WordPiece;

/// Positions in a word have 32 bits.
pub const TEXT_BYTES_MAX: usize = u32::MAX as usize - 1;
/// Fewer bytes are done before another thread has begun.
const BYTES_PER_THREAD_MIN: usize = 32 << 10;
/// Texts of a batch are handed out in portions of about so many bytes.
const PORTION_BYTES: usize = 16 << 10;
const THREADS_MAX: usize = 64;

/// A vocabulary with everything around it.
pub struct Tokenizer {
    model: Model,
    raw: Option<Finder>,        // added tokens as they are written
    normalised: Option<Finder>, // those that are found after normalising
    frame: Frame,
    decoder: Decoder,
    tokens: Vec<Token>, // by id
    ids: HashMap<String, u32>,
    added: Vec<Added>,
    idle: Mutex<Vec<Workspace>>,
}

/// What an id stands for.
#[derive(Clone, Default)]
struct Token {
    bytes: Option<Box<[u8]>>, // as the decoder wants them; None where there is no such token
    special: bool,
}

enum Model {
    Bytes { bpe: Bpe, cuts: Vec<Cut>, compose: bool },
    Words { pieces: WordPiece, bert: Bert },
}

/// Memory of one encoding, used again by the next one.
struct Workspace {
    cache: WordCache,
    work: bpe::Work,
    text: String,
}

/// What to encode besides the text.
#[derive(Clone, Copy, Default, Debug)]
pub struct Wish {
    /// Special tokens spelled out in the text are themselves, not plain text.
    pub special: bool,
    /// The tokens that the model wants around a text are there.
    pub framed: bool,
    /// At most so many tokens, those of the frame included; more than the frame has.
    pub length_max: Option<usize>,
}

impl Tokenizer {
    /// Read a tokenizer.json.
    pub fn open(bytes: &[u8]) -> Result<Tokenizer, Refusal> {
        open::open(bytes)
    }

    /// Append the tokens of a text of at most [`TEXT_BYTES_MAX`] bytes.
    pub fn encode(&self, text: &str, wish: Wish, out: &mut Vec<u32>) {
        let mut space = self.borrow();
        self.encode_with(&mut space, text, wish, out);
        self.give_back(space);
    }

    /// The tokens of many texts, on up to `threads` threads: all tokens, and where those of each text end.
    pub fn encode_batch(&self, texts: &[&str], wish: Wish, threads: usize) -> Vec<(Vec<u32>, Vec<usize>)> {
        let total: usize = texts.iter().map(|text| text.len()).sum();
        let threads = threads.clamp(1, THREADS_MAX).min(total / BYTES_PER_THREAD_MIN).max(1);
        let portions = if threads == 1 { vec![texts] } else { portions(texts) };
        let next = AtomicUsize::new(0);
        let work = || {
            let mut space = self.borrow();
            let mut done = Vec::new();
            while let Some((at, portion)) =
                Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, portions.get(at)?)))
            {
                let (mut ids, mut ends) = (Vec::new(), Vec::with_capacity(portion.len()));
                for text in *portion {
                    self.encode_with(&mut space, text, wish, &mut ids);
                    ends.push(ids.len());
                }
                done.push((at, (ids, ends)));
            }
            self.give_back(space);
            done
        };
        let mut done = std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..threads)
                .map_while(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok())
                .collect();
            let mut done = work();
            for helper in helpers {
                // A helper that panicked has lost its portions: nothing but going down with it is right.
                done.extend(helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            done
        });
        done.sort_unstable_by_key(|(at, _)| *at);
        done.into_iter().map(|(_, portion)| portion).collect()
    }

    /// The text of tokens; ids that are no token are nothing, and so are special ones where `skip_special`.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        self.decoder.join(ids.iter().filter_map(|&id| {
            let token = self.tokens.get(id as usize)?;
            if skip_special && token.special { None } else { token.bytes.as_deref() }
        }))
    }

    /// The id of a token by its spelling in the file.
    pub fn id(&self, spelling: &str) -> Option<u32> {
        self.ids.get(spelling).copied()
    }

    /// How many tokens there are, added ones included.
    pub fn size(&self) -> usize {
        self.ids.len()
    }

    /// One more than the largest id.
    pub fn ids_end(&self) -> usize {
        self.tokens.len()
    }

    /// The added tokens, in the order of the file.
    pub fn added(&self) -> &[Added] {
        &self.added
    }

    /// How many tokens are put around a text that is framed.
    pub fn frame_length(&self) -> usize {
        self.frame.tokens()
    }

    fn encode_with(&self, space: &mut Workspace, text: &str, wish: Wish, out: &mut Vec<u32>) {
        let begun = out.len();
        let frame = wish.framed.then_some(&self.frame);
        out.extend(frame.iter().flat_map(|frame| &frame.before));
        let length_max = wish.length_max.map_or(usize::MAX, |length| {
            begun.saturating_add(length).saturating_sub(frame.map_or(0, |frame| frame.behind.len()))
        });
        let mut later = |piece: Piece<'_>| match piece {
            Piece::Token(id) => out.push(id),
            Piece::Text(text) => self.words(space, text, wish.special, length_max, out),
        };
        match &self.raw {
            Some(finder) => finder.split(text, wish.special, &mut later),
            None if text.is_empty() => (),
            None => later(Piece::Text(text)),
        }
        out.truncate(length_max);
        out.extend(frame.iter().flat_map(|frame| &frame.behind));
    }

    /// A piece without raw added tokens; may stop once `out` has `length_max` tokens.
    fn words(&self, space: &mut Workspace, text: &str, special: bool, length_max: usize, out: &mut Vec<u32>) {
        match &self.model {
            Model::Bytes { bpe, cuts, compose } => {
                let composed: String;
                let text = if *compose && !text.is_ascii() {
                    composed = text.nfc().map(|(one, _)| one).collect();
                    &composed
                } else {
                    text
                };
                let mut cut = |piece: Piece<'_>| match piece {
                    Piece::Token(id) => out.push(id),
                    Piece::Text(text) => bytes(bpe, cuts, space, text, out),
                };
                match &self.normalised {
                    Some(finder) => finder.split(text, special, &mut cut),
                    None => cut(Piece::Text(text)),
                }
            }
            Model::Words { pieces, bert } => pieces_of(pieces, *bert, space, text, length_max, out),
        }
    }

    fn borrow(&self) -> Workspace {
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| Workspace {
            cache: WordCache::default(),
            work: bpe::Work::default(),
            text: String::new(),
        })
    }

    fn give_back(&self, mut space: Workspace) {
        space.text.clear();
        space.text.shrink_to(1 << 16);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(space);
        }
    }
}

/// Workspaces kept for later: 1.5 MB each, as many as encode at once on a small machine.
const IDLE_MAX: usize = 4;

/// Neighbouring texts of about `PORTION_BYTES` together.
fn portions<'a, 'b>(texts: &'a [&'b str]) -> Vec<&'a [&'b str]> {
    let (mut found, mut begin, mut bytes) = (Vec::new(), 0, 0);
    for (at, text) in texts.iter().enumerate() {
        bytes += text.len();
        if bytes >= PORTION_BYTES {
            found.push(&texts[begin..=at]);
            (begin, bytes) = (at + 1, 0);
        }
    }
    found.push(&texts[begin..]);
    found
}

/// The words of a text by BPE.
fn bytes(bpe: &Bpe, cuts: &[Cut], space: &mut Workspace, text: &str, out: &mut Vec<u32>) {
    let Workspace { cache, work, .. } = space;
    cut::words(cuts, text, &mut |text, begin, end| {
        let key = Key::of(text, begin, end);
        if let Some(ids) = cache.get(&key) {
            return append(out, ids);
        }
        let before = out.len();
        bpe.encode(&text[begin..end], work, out);
        cache.put(&key, &out[before..]);
    });
}

/// The words of a text by WordPiece.
fn pieces_of(
    pieces: &WordPiece,
    bert: Bert,
    space: &mut Workspace,
    text: &str,
    length_max: usize,
    out: &mut Vec<u32>,
) {
    let Workspace { cache, text: buffer, .. } = space;
    bert.split(text, buffer, |word| {
        let key = match word.raw {
            true => Key::lower(word.text, word.begin, word.end),
            false => Key::of(word.text, word.begin, word.end),
        };
        if let Some(ids) = cache.get(&key) {
            append(out, ids);
        } else {
            let before = out.len();
            let word_bytes = &word.text[word.begin..word.end];
            match word.raw {
                true => pieces.encode(&word_bytes.to_ascii_lowercase(), out),
                false => pieces.encode(word_bytes, out),
            }
            cache.put(&key, &out[before..]);
        }
        out.len() < length_max
    });
}

/// Most words are one token.
#[inline]
fn append(out: &mut Vec<u32>, ids: &[u32]) {
    match ids {
        [id] => out.push(*id),
        _ => out.extend_from_slice(ids),
    }
}
