//! A BERT-style sentence encoder at work: texts of token ids to unit vectors, in one call and without padding.
//!
//! The tokens of many texts are the rows of one matrix; attention alone looks at them text by text. A batch is cut
//! into parts of whole texts, each of which one thread takes through all layers: nobody waits for anybody between two
//! operators, and what a layer writes is still in the thread's cache when the next one reads it. Where there are fewer
//! texts than threads, the threads share the rows of each operator instead.

mod attention;
mod maths;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::ops::Range;

use crate::attention::{LANES, QUERIES};
use crate::fault::{Fault, length};
use crate::gather::gather;
use crate::isa::fastest;
use crate::layer::Linear;
use crate::matmul::{Matrix, Product, Width, each_chunk, matmul_integer, worth};
use attention::{Attend, Turn};
use maths::{AddNorm, Gelu, Mean};

/// Tokens of a part; 72 to 128 are equally fast. Of more, what lies between two operators leaves the second-level cache;
/// of fewer, unpacking the weights anew for each part shows.
const PART_TOKENS: usize = 96;
/// Tokens for which it is worth unpacking the weights once more on another thread.
const PART_TOKENS_MIN: usize = 8;
/// Values that make a second thread worth waking.
const VALUES_PER_THREAD: usize = 1 << 14;
/// Floats that a thread keeps room for between two calls: 512 tokens of a network of MiniLM's width.
const SPARE_MAX: usize = 1 << 21;

/// Sizes of the network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Width of the hidden states, a multiple of `heads`.
    pub hidden: usize,
    /// Heads of attention, each as wide as a multiple of 8.
    pub heads: usize,
    /// Width of the feed-forward.
    pub ffn: usize,
    /// What keeps a norm from dividing by zero.
    pub eps: f32,
}

/// What each token id stands for, (vocabulary, hidden).
#[derive(Clone, Copy)]
pub enum Words<'a> {
    /// As codes.
    Packed(Matrix<'a>),
    /// As they are.
    Plain(&'a [f32]),
}

/// Weights of a layer norm, (hidden) both.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    /// What the normalised values are multiplied with.
    pub weight: &'a [f32],
    /// What is then added.
    pub bias: &'a [f32],
}

/// One layer's weights; norms follow what they are called by.
#[derive(Clone, Copy)]
pub struct EncoderLayer<'a> {
    /// Hidden states to queries, keys and values, one after another.
    pub qkv: Linear<'a>,
    /// Heads to hidden states.
    pub out: Linear<'a>,
    /// The norm behind attention.
    pub attention_norm: Norm<'a>,
    /// Hidden states to the feed-forward.
    pub up: Linear<'a>,
    /// The feed-forward to hidden states.
    pub down: Linear<'a>,
    /// The norm behind the feed-forward.
    pub ffn_norm: Norm<'a>,
}

/// A whole network, borrowed.
#[derive(Clone, Copy)]
pub struct Encoder<'a> {
    /// Its sizes.
    pub shape: Shape,
    /// What token ids stand for.
    pub words: Words<'a>,
    /// What is added at each position, (positions, hidden); a text has no more tokens than that.
    pub places: &'a [f32],
    /// The norm behind the embedding.
    pub norm: Norm<'a>,
    /// All layers.
    pub layers: &'a [EncoderLayer<'a>],
    /// How exactly products take activations.
    pub width: Width,
    /// Threads, of which the caller is one.
    pub threads: usize,
}

/// Some texts of a batch, and where their vectors go.
struct Part<'a> {
    ids: &'a [i64],
    lengths: &'a [usize],
    vectors: &'a mut [f32],
    outcome: Result<(), Fault>,
}

/// What lies between the operators of a layer; `wide` holds queries, keys and values, then the feed-forward.
#[derive(Default)]
struct Room {
    x: Vec<f32>,
    wide: Vec<f32>,
    mixed: Vec<f32>,
    more: Vec<f32>,
    keys: Vec<f32>,
}

thread_local! {
    /// Room that the last call has left: large pieces come from the system page by page, each time anew.
    static SPARE: Cell<Room> = Cell::new(Room::default());
}

impl Room {
    fn floats(&self) -> usize {
        [&self.x, &self.wide, &self.mixed, &self.more, &self.keys].iter().map(|part| part.capacity()).sum()
    }
}

/// Where each text's tokens lie among those of all.
fn spans(lengths: &[usize]) -> impl Iterator<Item = Range<usize>> {
    lengths.iter().scan(0, |end, length| {
        *end += length;
        Some(*end - length..*end)
    })
}

/// How many texts each part takes: parts of about equally many tokens, a multiple of `threads` of them; one where the
/// texts do not keep all threads busy.
fn cut(lengths: &[usize], threads: usize) -> Vec<usize> {
    let tokens: usize = lengths.iter().sum();
    let threads = threads.max(1);
    let wanted = tokens.div_ceil(PART_TOKENS).next_multiple_of(threads);
    let count = wanted.min(lengths.len()).min(tokens / PART_TOKENS_MIN).max(1);
    let count = if count < threads { 1 } else { count };
    let mut parts = vec![0; count];
    for span in spans(lengths) {
        let middle = (span.start + span.end) / 2;
        parts[(middle as u128 * count as u128 / tokens as u128) as usize] += 1;
    }
    parts.retain(|&texts| texts > 0);
    parts
}

impl Encoder<'_> {
    /// vectors (texts, hidden) = the mean of each text's states behind the last layer, of length 1.
    ///
    /// `ids` are the tokens of all texts one after another, `lengths` how many each text has, at least one.
    pub fn encode(&self, ids: &[i64], lengths: &[usize], vectors: &mut [f32]) -> Result<(), Fault> {
        self.check(ids, lengths, vectors.len())?;
        let (mut ids, mut lengths, mut vectors) = (ids, lengths, vectors);
        let mut parts = Vec::new();
        for texts in cut(lengths, self.threads) {
            let now = lengths.split_off(..texts).unwrap_or_default();
            parts.push(Part {
                ids: ids.split_off(..now.iter().sum()).unwrap_or_default(),
                lengths: now,
                vectors: vectors.split_off_mut(..texts * self.shape.hidden).unwrap_or_default(),
                outcome: Ok(()),
            });
        }
        let (outside, inside) = if parts.len() > 1 { (self.threads, 1) } else { (1, self.threads) };
        each_chunk(&mut parts, 1, outside, |_, part| {
            let mut room = SPARE.take();
            part[0].outcome = self.forward(&mut part[0], &mut room, inside);
            if room.floats() <= SPARE_MAX {
                SPARE.set(room);
            }
        });
        parts.into_iter().try_for_each(|part| part.outcome)
    }

    /// Every length that the forward relies on.
    fn check(&self, ids: &[i64], lengths: &[usize], vectors: usize) -> Result<(), Fault> {
        let Shape { hidden, heads, ffn, .. } = self.shape;
        if hidden == 0 || heads == 0 || hidden % heads != 0 || (hidden / heads) % LANES != 0 {
            return Err(Fault::Shape(
                "heads must be as wide as a multiple of 8, and as wide as the states together",
            ));
        }
        let positions = self.places.len() / hidden;
        length("the positions", positions * hidden, self.places.len())?;
        if lengths.iter().any(|&length| length == 0 || length > positions) {
            return Err(Fault::Shape("a text has no tokens, or more than there are positions"));
        }
        let tokens = lengths.iter().fold(0usize, |sum, &length| sum.saturating_add(length));
        length("the tokens", tokens, ids.len())?;
        length("the vectors", lengths.len().saturating_mul(hidden), vectors)?;
        let rows = match self.words {
            Words::Packed(w) => {
                length("the words' columns", hidden, w.columns())?;
                w.rows()
            }
            Words::Plain(words) => {
                length("the words", words.len() / hidden * hidden, words.len())?;
                words.len() / hidden
            }
        };
        let known = |id: i64| usize::try_from(id).is_ok_and(|row| row < rows);
        if let Some(&id) = ids.iter().find(|&&id| !known(id)) {
            return Err(Fault::Row { id, rows });
        }
        self.norm.check(hidden)?;
        for layer in self.layers {
            let wide = hidden.saturating_mul(3);
            let linears = [
                (layer.qkv, wide, hidden),
                (layer.out, hidden, hidden),
                (layer.up, ffn, hidden),
                (layer.down, hidden, ffn),
            ];
            for (linear, rows, columns) in linears {
                length("a matrix's rows", rows, linear.w.rows())?;
                length("a matrix's columns", columns, linear.w.columns())?;
                length("a bias", rows, linear.bias.map_or(rows, <[f32]>::len))?;
            }
            layer.attention_norm.check(hidden)?;
            layer.ffn_norm.check(hidden)?;
        }
        Ok(())
    }

    /// The vectors of one part, on so many threads.
    fn forward(&self, part: &mut Part<'_>, room: &mut Room, threads: usize) -> Result<(), Fault> {
        let hidden = self.shape.hidden;
        let tokens = part.ids.len();
        for (buffer, width) in [(&mut room.x, hidden), (&mut room.mixed, hidden), (&mut room.more, hidden)] {
            buffer.resize(tokens * width, 0.0);
        }
        self.embed(part, room, threads)?;
        for layer in self.layers {
            self.attention(layer, part.lengths, room, threads)?;
            self.feed_forward(layer, room, threads)?;
        }
        for (span, vector) in spans(part.lengths).zip(part.vectors.chunks_exact_mut(hidden)) {
            fastest(Mean { x: &room.x[span.start * hidden..span.end * hidden], vector });
        }
        Ok(())
    }

    /// Words and positions, normalised.
    fn embed(&self, part: &Part<'_>, room: &mut Room, threads: usize) -> Result<(), Fault> {
        let hidden = self.shape.hidden;
        match self.words {
            Words::Packed(w) => gather(&w, part.ids, &mut room.x, threads)?,
            Words::Plain(words) => {
                for (x, &id) in room.x.chunks_exact_mut(hidden).zip(part.ids) {
                    let from = usize::try_from(id).unwrap_or_default() * hidden; // `check` looked at every id
                    x.copy_from_slice(&words[from..from + hidden]);
                }
            }
        }
        for span in spans(part.lengths) {
            let places = &self.places[..span.len() * hidden];
            room.more[span.start * hidden..span.end * hidden].copy_from_slice(places);
        }
        fastest(AddNorm {
            x: &mut room.x,
            more: &room.more,
            bias: None,
            norm: self.norm,
            eps: self.shape.eps,
        });
        Ok(())
    }

    fn attention(
        &self,
        layer: &EncoderLayer<'_>,
        lengths: &[usize],
        room: &mut Room,
        threads: usize,
    ) -> Result<(), Fault> {
        let Shape { hidden, heads, eps, .. } = self.shape;
        let tokens = room.x.len() / hidden;
        room.wide.resize(tokens * 3 * hidden, 0.0);
        self.multiply(layer.qkv, &room.x, &mut room.wide, threads)?;
        if let Some(bias) = layer.qkv.bias {
            fastest(maths::Add { x: &mut room.wide, bias });
        }
        let padded = |length: usize| length.next_multiple_of(LANES);
        room.keys.resize(lengths.iter().map(|&length| padded(length) * hidden).sum(), 0.0);
        let (mut keys, mut mixed) = (room.keys.as_mut_slice(), room.mixed.as_mut_slice());
        let mut blocks = Vec::with_capacity(tokens / QUERIES + lengths.len());
        for span in spans(lengths) {
            let wide = &room.wide[span.start * 3 * hidden..span.end * 3 * hidden];
            let turned = keys.split_off_mut(..padded(span.len()) * hidden).unwrap_or_default();
            fastest(Turn { wide, hidden, keys: turned });
            let out = mixed.split_off_mut(..span.len() * hidden).unwrap_or_default();
            for (first, out) in out.chunks_mut(QUERIES * hidden).enumerate() {
                blocks.push((wide, &*turned, first * QUERIES, out));
            }
        }
        let work = lengths.iter().map(|&length| length * length * hidden).sum();
        let threads_now = worth(work, VALUES_PER_THREAD * 8, threads);
        each_chunk(&mut blocks, 8, threads_now, |_, blocks| {
            let mut scores = Vec::new();
            for (wide, keys, first, out) in blocks {
                let (first, scores) = (*first, &mut scores);
                fastest(Attend { wide, keys, first, hidden, head_dim: hidden / heads, scores, out });
            }
        });
        self.multiply(layer.out, &room.mixed, &mut room.more, threads)?;
        let bias = layer.out.bias;
        fastest(AddNorm { x: &mut room.x, more: &room.more, bias, norm: layer.attention_norm, eps });
        Ok(())
    }

    fn feed_forward(&self, layer: &EncoderLayer<'_>, room: &mut Room, threads: usize) -> Result<(), Fault> {
        let Shape { hidden, ffn, eps, .. } = self.shape;
        room.wide.resize(room.x.len() / hidden * ffn, 0.0);
        self.multiply(layer.up, &room.x, &mut room.wide, threads)?;
        let rows = (VALUES_PER_THREAD / 2).div_ceil(ffn.max(1));
        let threads_now = worth(room.wide.len(), VALUES_PER_THREAD, threads);
        each_chunk(&mut room.wide, rows * ffn.max(1), threads_now, |_, x| {
            fastest(Gelu { x, bias: layer.up.bias, width: ffn });
        });
        self.multiply(layer.down, &room.wide, &mut room.more, threads)?;
        let bias = layer.down.bias;
        fastest(AddNorm { x: &mut room.x, more: &room.more, bias, norm: layer.ffn_norm, eps });
        Ok(())
    }

    /// y = x w^T without the bias, which the next operator adds.
    fn multiply(&self, linear: Linear<'_>, x: &[f32], y: &mut [f32], threads: usize) -> Result<(), Fault> {
        let rows = y.len().checked_div(linear.w.rows()).unwrap_or(0);
        matmul_integer(&mut [Product { w: linear.w, y }], rows, x, self.width, threads)
    }
}

impl Norm<'_> {
    fn check(&self, hidden: usize) -> Result<(), Fault> {
        length("a norm's weight", hidden, self.weight.len())?;
        length("a norm's bias", hidden, self.bias.len())
    }
}
