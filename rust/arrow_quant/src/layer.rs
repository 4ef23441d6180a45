//! Transformer layers at work: pre-norm, grouped-query attention over memory of keys and values, gated feed-forward.
//!
//! A step reads a row of tokens that belong to several sequences: one token of each that is being written, longer
//! pieces of prompts. Every token sees the earlier ones of its own sequence. Between two products of packed matrices
//! there is little to compute, so that what calls operator by operator costs more than the operators themselves.

mod attention;
pub(crate) mod maths;
#[cfg(test)]
mod tests;

use std::cell::Cell;

use crate::fault::{Fault, length};
use crate::isa::fastest;
use crate::matmul::{Matrix, Product, Width, each_chunk, matmul_integer, worth};
use crate::order::AXIS_MAX;
use attention::{Attend, AttendMany};

/// Values that make a second thread worth waking.
const VALUES_PER_THREAD: usize = 1 << 14;
/// Tokens whose queries meet the keys of a head together, which are put in another order for them.
const PART_TOKENS: usize = 64;
/// Rows of queries for which that order pays.
const TILED_ROWS_MIN: usize = 8;

/// Sizes that all layers of a network share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Width of the hidden states.
    pub hidden: usize,
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Width of a head, even.
    pub head_dim: usize,
    /// Width of the feed-forward.
    pub ffn: usize,
    /// What keeps a norm from dividing by zero.
    pub eps: f32,
}

/// A packed matrix and what is added to its product.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    /// The weights.
    pub w: Matrix<'a>,
    /// One value for each output.
    pub bias: Option<&'a [f32]>,
}

/// One layer's weights.
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    /// Weights of the norm before attention.
    pub attention_norm: &'a [f32],
    /// Hidden states to queries.
    pub query: Linear<'a>,
    /// Hidden states to keys.
    pub key: Linear<'a>,
    /// Hidden states to values.
    pub value: Linear<'a>,
    /// Weights of a norm of each query head.
    pub query_norm: Option<&'a [f32]>,
    /// Weights of a norm of each key head.
    pub key_norm: Option<&'a [f32]>,
    /// Heads to hidden states.
    pub out: Linear<'a>,
    /// Weights of the norm before the feed-forward.
    pub ffn_norm: &'a [f32],
    /// Hidden states to the gate.
    pub gate: Linear<'a>,
    /// Hidden states to what is gated.
    pub up: Linear<'a>,
    /// What was gated to hidden states.
    pub down: Linear<'a>,
}

/// Keys and values of sequences, [layer][slot][kv head][capacity][head dim] both.
pub struct Store<'a> {
    /// Keys.
    pub keys: &'a mut [f32],
    /// Values.
    pub values: &'a mut [f32],
    /// Sequences that there is room for.
    pub slots: usize,
    /// Tokens that there is room for in each.
    pub capacity: usize,
}

/// The next `count` tokens of a sequence, of which `start` are in a slot of a store already.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// The number of the store.
    pub store: usize,
    /// The number of the slot in it.
    pub slot: usize,
    /// Tokens before.
    pub start: usize,
    /// Tokens now.
    pub count: usize,
    /// How many of them, the last ones, see each other whatever their order: what diffusion is writing.
    pub open: usize,
}

impl Piece {
    /// How many tokens of its sequence the token at `place` of this piece sees, itself included.
    fn seen(&self, place: usize) -> usize {
        self.start + if place + self.open >= self.count { self.count } else { place + 1 }
    }
}

/// The sines and cosines of the tokens' positions, (s, head dim) both, in the half-split layout.
#[derive(Clone, Copy)]
pub struct Rotation<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
}

/// The tokens of one forward, piece after piece, and with what they are computed.
#[derive(Clone, Copy)]
pub struct Step<'a> {
    /// Sizes of the network.
    pub shape: Shape,
    /// Where the tokens stand in their sequences.
    pub rotation: Rotation<'a>,
    /// The sequences that they belong to.
    pub pieces: &'a [Piece],
    /// How exactly products take activations.
    pub width: Width,
    /// Threads, of which the caller is one.
    pub threads: usize,
}

/// Every length that the step relies on; returns the number of tokens.
fn check(step: &Step<'_>, layers: &[Layer<'_>], x: &[f32], stores: &[Store<'_>]) -> Result<usize, Fault> {
    let Step { shape, rotation, pieces, .. } = *step;
    let Shape { hidden, heads, kv_heads, head_dim, ffn, .. } = shape;
    if [hidden, heads, head_dim, ffn].iter().any(|size| *size > AXIS_MAX) || heads * head_dim > AXIS_MAX {
        return Err(Fault::Shape("a layer is wider than any matrix"));
    }
    if hidden == 0
        || kv_heads == 0
        || heads == 0
        || heads % kv_heads != 0
        || head_dim == 0
        || head_dim % 2 != 0
    {
        return Err(Fault::Shape("heads must be a multiple of those of keys, and as wide as an even number"));
    }
    let tokens = pieces.iter().fold(0usize, |sum, piece| sum.saturating_add(piece.count));
    length("the hidden states", tokens.saturating_mul(hidden), x.len())?;
    length("the cosines", tokens.saturating_mul(head_dim), rotation.cos.len())?;
    length("the sines", tokens.saturating_mul(head_dim), rotation.sin.len())?;
    for store in stores {
        let each = [store.slots, kv_heads, store.capacity, head_dim];
        let whole = each.iter().fold(layers.len(), |size, part| size.saturating_mul(*part));
        length("the keys", whole, store.keys.len())?;
        length("the values", whole, store.values.len())?;
    }
    for (number, piece) in pieces.iter().enumerate() {
        let fits = stores.get(piece.store).is_some_and(|store| {
            piece.slot < store.slots && piece.start.saturating_add(piece.count) <= store.capacity
        });
        let again = |other: &Piece| (other.store, other.slot) == (piece.store, piece.slot);
        if !fits || piece.open > piece.count || pieces[..number].iter().any(again) {
            return Err(Fault::Shape("a piece does not fit its slot, or two share one"));
        }
    }
    for layer in layers {
        let (query, key) = (heads * head_dim, kv_heads * head_dim);
        let linears = [
            (layer.query, query, hidden),
            (layer.key, key, hidden),
            (layer.value, key, hidden),
            (layer.out, hidden, query),
            (layer.gate, ffn, hidden),
            (layer.up, ffn, hidden),
            (layer.down, hidden, ffn),
        ];
        for (linear, rows, columns) in linears {
            length("a matrix's rows", rows, linear.w.rows())?;
            length("a matrix's columns", columns, linear.w.columns())?;
            length("a bias", rows, linear.bias.map_or(rows, <[f32]>::len))?;
        }
        length("a norm", hidden, layer.attention_norm.len())?;
        length("a norm", hidden, layer.ffn_norm.len())?;
        length("a norm of queries", head_dim, layer.query_norm.map_or(head_dim, <[f32]>::len))?;
        length("a norm of keys", head_dim, layer.key_norm.map_or(head_dim, <[f32]>::len))?;
    }
    Ok(tokens)
}

/// What lies between the products of a layer.
struct Room {
    normed: Vec<f32>,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    mixed: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
}

impl Room {
    fn new(shape: Shape, tokens: usize) -> Self {
        let room = |width: usize| vec![0.0; tokens * width];
        let (query, key) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        Room {
            normed: room(shape.hidden),
            query: room(query),
            key: room(key),
            value: room(key),
            mixed: room(query),
            gate: room(shape.ffn),
            up: room(shape.ffn),
        }
    }
}

impl Step<'_> {
    /// Turns hidden states x (s, hidden) into those behind all layers; keys and values of the tokens go to the stores.
    pub fn advance(
        &self,
        layers: &[Layer<'_>],
        x: &mut [f32],
        stores: &mut [Store<'_>],
    ) -> Result<(), Fault> {
        let tokens = check(self, layers, x, stores)?;
        let mut room = Room::new(self.shape, tokens);
        for (number, layer) in layers.iter().enumerate() {
            self.attention(layer, number, x, stores, &mut room)?;
            self.feed_forward(layer, x, &mut room)?;
        }
        Ok(())
    }

    fn tokens(&self) -> usize {
        self.rotation.cos.len() / self.shape.head_dim
    }

    fn attention(
        &self,
        layer: &Layer<'_>,
        number: usize,
        x: &mut [f32],
        stores: &mut [Store<'_>],
        room: &mut Room,
    ) -> Result<(), Fault> {
        fastest(maths::Norm { x, weight: layer.attention_norm, eps: self.shape.eps, out: &mut room.normed });
        let three =
            [(layer.query, &mut room.query), (layer.key, &mut room.key), (layer.value, &mut room.value)];
        self.multiply(three, &room.normed)?;
        for (heads, norm) in [(&mut room.query, layer.query_norm), (&mut room.key, layer.key_norm)] {
            if let Some(weight) = norm {
                fastest(maths::NormHeads { x: heads, weight, eps: self.shape.eps });
            }
            fastest(maths::Rotate {
                x: heads,
                cos: self.rotation.cos,
                sin: self.rotation.sin,
                head_dim: self.shape.head_dim,
            });
        }
        self.remember(number, stores, room);
        self.attend(number, stores, room);
        self.multiply([(layer.out, &mut room.normed)], &room.query)?;
        fastest(maths::Add { x, more: &room.normed });
        Ok(())
    }

    fn feed_forward(&self, layer: &Layer<'_>, x: &mut [f32], room: &mut Room) -> Result<(), Fault> {
        fastest(maths::Norm { x, weight: layer.ffn_norm, eps: self.shape.eps, out: &mut room.normed });
        self.multiply([(layer.gate, &mut room.gate), (layer.up, &mut room.up)], &room.normed)?;
        let threads = worth(room.gate.len(), VALUES_PER_THREAD, self.threads);
        let up = &room.up;
        let size = VALUES_PER_THREAD / 2;
        each_chunk(&mut room.gate, size, threads, |at, gate| {
            fastest(maths::Gate { up: &up[at * size..][..gate.len()], gate });
        });
        self.multiply([(layer.down, &mut room.normed)], &room.gate)?;
        fastest(maths::Add { x, more: &room.normed });
        Ok(())
    }

    /// y = x w^T + bias of matrices that read the same x.
    fn multiply<const N: usize>(
        &self,
        linears: [(Linear<'_>, &mut Vec<f32>); N],
        x: &[f32],
    ) -> Result<(), Fault> {
        let biases = linears.each_ref().map(|(linear, _)| linear.bias);
        let mut products = linears.map(|(linear, y)| Product { w: linear.w, y: y.as_mut_slice() });
        matmul_integer(&mut products, self.tokens(), x, self.width, self.threads)?;
        for (product, bias) in products.iter_mut().zip(biases) {
            if let Some(bias) = bias {
                for y in product.y.chunks_exact_mut(bias.len()) {
                    y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
                }
            }
        }
        Ok(())
    }

    /// The floats before a slot's first key of a head, in a layer of a store.
    fn at(&self, layer: usize, piece: &Piece, store: &Store<'_>, head: usize) -> usize {
        ((layer * store.slots + piece.slot) * self.shape.kv_heads + head)
            * store.capacity
            * self.shape.head_dim
    }

    /// Puts the new keys and values behind the old ones.
    fn remember(&self, layer: usize, stores: &mut [Store<'_>], room: &Room) {
        let Shape { kv_heads, head_dim, .. } = self.shape;
        let mut token = 0;
        for piece in self.pieces {
            for place in piece.start..piece.start + piece.count {
                for head in 0..kv_heads {
                    let from = (token * kv_heads + head) * head_dim;
                    let at = self.at(layer, piece, &stores[piece.store], head) + place * head_dim;
                    let store = &mut stores[piece.store];
                    store.keys[at..at + head_dim].copy_from_slice(&room.key[from..from + head_dim]);
                    store.values[at..at + head_dim].copy_from_slice(&room.value[from..from + head_dim]);
                }
                token += 1;
            }
        }
    }

    /// What each query sees of its sequence, itself included, in the queries' place.
    ///
    /// Head after head: the keys and values of one stay in the first-level cache for all tokens of a sequence.
    fn attend(&self, layer: usize, stores: &[Store<'_>], room: &mut Room) {
        let Shape { heads, kv_heads, head_dim, .. } = self.shape;
        let (group, tokens) = (heads / kv_heads, self.tokens());
        let size = group * head_dim;
        let mut mixed = room.mixed.as_mut_slice();
        let mut parts = Vec::new();
        let mut work = 0;
        for head in 0..kv_heads {
            let mut token = 0;
            for piece in self.pieces {
                for first in (0..piece.count).step_by(PART_TOKENS) {
                    let count = PART_TOKENS.min(piece.count - first);
                    let out = mixed.split_off_mut(..count * size).unwrap_or_default();
                    parts.push(Part { head, piece, first, token: token + first, out });
                    work += count * piece.seen(first) * size;
                }
                token += piece.count;
            }
        }
        let query = &room.query;
        each_chunk(&mut parts, 1, worth(work, VALUES_PER_THREAD, self.threads), |_, part| {
            let Part { head, piece, first, token, out } = &mut part[0];
            let store = &stores[piece.store];
            let from = self.at(layer, piece, store, *head);
            let seen: Vec<_> = (*first..*first + out.len() / size).map(|place| piece.seen(place)).collect();
            let span = |seen: &usize| from..from + seen * head_dim;
            let (query, stride) = (&query[(*token * kv_heads + *head) * size..], kv_heads * size);
            if seen.len() * group < TILED_ROWS_MIN {
                for ((seen, query), out) in seen.iter().zip(query.chunks(stride)).zip(out.chunks_mut(size)) {
                    let (keys, values) = (&store.keys[span(seen)], &store.values[span(seen)]);
                    fastest(Attend { query: &query[..size], keys, values, head_dim, out });
                }
                return;
            }
            let all = seen.last().map_or(from..from, span);
            let (keys, values) = (&store.keys[all.clone()], &store.values[all]);
            let mut room = ATTENDED.take();
            let (seen, used) = (seen.as_slice(), &mut room);
            fastest(AttendMany { query, stride, group, keys, values, head_dim, seen, room: used, out });
            ATTENDED.set(room);
        });
        for (at, mixed) in room.mixed.chunks_exact(size).enumerate() {
            let (head, token) = (at / tokens, at % tokens);
            room.query[(token * kv_heads + head) * size..][..size].copy_from_slice(mixed);
        }
    }
}

/// Some tokens of a piece, the first of them at `first` of it and at `token` of the step, and what one head makes of them.
struct Part<'a> {
    head: usize,
    piece: &'a Piece,
    first: usize,
    token: usize,
    out: &'a mut [f32],
}

thread_local! {
    /// What the tiles of the last part have worked in.
    static ATTENDED: Cell<attention::Room> = Cell::new(attention::Room::default());
}
