//! Laws of a step: what it computes does not depend on how sequences are cut and put together.

use super::*;
use crate::half::narrow;
use crate::order::Layout;
use crate::pack::Packed;

const SHAPE: Shape = Shape { hidden: 40, heads: 4, kv_heads: 2, head_dim: 6, ffn: 50, eps: 1e-5 };
const LAYERS: usize = 2;

struct Random(u64);

impl Random {
    fn float(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f32 / (1u32 << 30) as f32 - 1.0
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }
}

struct Weights {
    layout: Layout,
    codes: Vec<u8>,
    scales: Vec<u16>,
    bias: Vec<f32>,
}

impl Weights {
    fn random(random: &mut Random, rows: usize, columns: usize) -> Self {
        let layout = Layout::new(rows, columns, 4, 32).unwrap();
        let codes = (0..layout.codes_bytes()).map(|_| (random.float() * 128.0) as i8 as u8).collect();
        let scales = (0..layout.scales()).map(|_| narrow(0.03 * random.float())).collect();
        Weights { layout, codes, scales, bias: random.floats(rows) }
    }

    fn linear(&self) -> Linear<'_> {
        let w =
            Matrix::new(Packed::new(self.layout, &self.codes, &self.scales, None).unwrap(), None).unwrap();
        Linear { w, bias: Some(&self.bias) }
    }
}

struct Network {
    matrices: Vec<[Weights; 7]>,
    norm: Vec<f32>,
    head_norm: Vec<f32>,
}

impl Network {
    fn random(random: &mut Random) -> Self {
        let Shape { hidden, heads, kv_heads, head_dim, ffn, .. } = SHAPE;
        let (query, key) = (heads * head_dim, kv_heads * head_dim);
        let sizes = [
            (query, hidden),
            (key, hidden),
            (key, hidden),
            (hidden, query),
            (ffn, hidden),
            (ffn, hidden),
            (hidden, ffn),
        ];
        Network {
            matrices: (0..LAYERS)
                .map(|_| sizes.map(|(rows, columns)| Weights::random(random, rows, columns)))
                .collect(),
            norm: random.floats(hidden),
            head_norm: random.floats(head_dim),
        }
    }

    fn layers(&self) -> Vec<Layer<'_>> {
        let made = self.matrices.iter().map(|matrices| {
            let [query, key, value, out, gate, up, down] = matrices.each_ref().map(Weights::linear);
            let (query_norm, key_norm) = (Some(self.head_norm.as_slice()), Some(self.head_norm.as_slice()));
            let (attention_norm, ffn_norm) = (self.norm.as_slice(), self.norm.as_slice());
            Layer { attention_norm, query, key, value, query_norm, key_norm, out, ffn_norm, gate, up, down }
        });
        made.collect()
    }
}

/// Memory of two slots.
struct Memory {
    keys: Vec<f32>,
    values: Vec<f32>,
    capacity: usize,
}

impl Memory {
    fn new(capacity: usize) -> Self {
        let size = LAYERS * 2 * SHAPE.kv_heads * capacity * SHAPE.head_dim;
        Memory { keys: vec![f32::NAN; size], values: vec![f32::NAN; size], capacity }
    }

    fn store(&mut self) -> Store<'_> {
        Store { keys: &mut self.keys, values: &mut self.values, slots: 2, capacity: self.capacity }
    }
}

/// Angles that differ from place to place.
fn angles(places: impl Iterator<Item = usize>) -> (Vec<f32>, Vec<f32>) {
    let angle = |place: usize, i: usize| place as f32 / (1 + i % (SHAPE.head_dim / 2)) as f32;
    let all: Vec<_> = places.flat_map(|place| (0..SHAPE.head_dim).map(move |i| angle(place, i))).collect();
    (all.iter().map(|angle| angle.cos()).collect(), all.iter().map(|angle| angle.sin()).collect())
}

fn run(
    network: &Network,
    memory: &mut [Memory],
    x: &[f32],
    pieces: &[Piece],
    threads: usize,
) -> Result<Vec<f32>, Fault> {
    let (cos, sin) = angles(pieces.iter().flat_map(|piece| piece.start..piece.start + piece.count));
    let mut x = x.to_vec();
    let mut stores: Vec<_> = memory.iter_mut().map(Memory::store).collect();
    let rotation = Rotation { cos: &cos, sin: &sin };
    let step = Step { shape: SHAPE, rotation, pieces, width: Width::Bits16, threads };
    step.advance(&network.layers(), &mut x, &mut stores)?;
    Ok(x)
}

fn close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= 2e-5 * (1.0 + a.abs()), "{a} is not {b}");
    }
}

#[test]
fn sequences_read_in_pieces_and_in_company_become_what_they_become_alone_and_at_once() {
    let mut random = Random(3);
    let network = Network::random(&mut random);
    let hidden = SHAPE.hidden;
    let (first, second) = (random.floats(7 * hidden), random.floats(5 * hidden));
    let whole = |x: &[f32], threads| {
        let pieces = [Piece { store: 0, slot: 0, start: 0, count: x.len() / hidden, open: 0 }];
        run(&network, &mut [Memory::new(9)], x, &pieces, threads).unwrap()
    };
    let (first_alone, second_alone) = (whole(&first, 1), whole(&second, 3));
    assert!(first_alone.iter().all(|x| x.is_finite()));
    let mut memory = [Memory::new(8), Memory::new(16)];
    let (mut first_found, mut second_found) = (Vec::new(), Vec::new());
    for (begin, end, other_begin, other_end) in [(0, 3, 0, 1), (3, 4, 1, 4), (4, 7, 4, 5)] {
        let pieces = [
            Piece { store: 1, slot: 1, start: other_begin, count: other_end - other_begin, open: 0 },
            Piece { store: 0, slot: 1, start: begin, count: end - begin, open: 0 },
        ];
        let x = [&second[other_begin * hidden..other_end * hidden], &first[begin * hidden..end * hidden]]
            .concat();
        let found = run(&network, &mut memory, &x, &pieces, 2).unwrap();
        let (other, one) = found.split_at((other_end - other_begin) * hidden);
        first_found.extend_from_slice(one);
        second_found.extend_from_slice(other);
    }
    close(&first_found, &first_alone);
    close(&second_found, &second_alone);
}

#[test]
fn a_token_changes_nothing_before_it() {
    let mut random = Random(4);
    let network = Network::random(&mut random);
    let mut x = random.floats(6 * SHAPE.hidden);
    let pieces = [Piece { store: 0, slot: 0, start: 0, count: 6, open: 0 }];
    let before = run(&network, &mut [Memory::new(6)], &x, &pieces, 1).unwrap();
    x[4 * SHAPE.hidden..5 * SHAPE.hidden].fill(0.5);
    let after = run(&network, &mut [Memory::new(6)], &x, &pieces, 1).unwrap();
    assert_eq!(before[..4 * SHAPE.hidden], after[..4 * SHAPE.hidden]);
    assert_ne!(before[5 * SHAPE.hidden..], after[5 * SHAPE.hidden..]);
}

#[test]
fn open_tokens_see_each_other_and_nothing_before_them_sees_them() {
    let mut random = Random(6);
    let network = Network::random(&mut random);
    let hidden = SHAPE.hidden;
    let x = random.floats(6 * hidden);
    let pieces = [Piece { store: 0, slot: 0, start: 0, count: 6, open: 3 }];
    let at_once = run(&network, &mut [Memory::new(6)], &x, &pieces, 1).unwrap();
    let mut memory = [Memory::new(6)];
    let mut apart = Vec::new();
    for (start, count, open) in [(0, 3, 0), (3, 3, 3)] {
        let part = &x[start * hidden..(start + count) * hidden];
        let piece = [Piece { store: 0, slot: 0, start, count, open }];
        apart.extend(run(&network, &mut memory, part, &piece, 2).unwrap());
    }
    close(&apart, &at_once);
    for changed in 3..6 {
        let mut other = x.clone();
        other[changed * hidden..(changed + 1) * hidden].fill(0.5);
        let found = run(&network, &mut [Memory::new(6)], &other, &pieces, 1).unwrap();
        assert_eq!(found[..3 * hidden], at_once[..3 * hidden]);
        for token in 3..6 {
            assert_ne!(found[token * hidden..][..hidden], at_once[token * hidden..][..hidden]);
        }
    }
}

#[test]
fn pieces_that_do_not_fit_are_refused() {
    let network = Network::random(&mut Random(5));
    let piece = |store, slot, start, count| Piece { store, slot, start, count, open: 0 };
    for pieces in [
        vec![piece(1, 0, 0, 1)],
        vec![piece(0, 2, 0, 1)],
        vec![piece(0, 0, 4, 1)],
        vec![piece(0, 0, usize::MAX, 1)],
        vec![piece(0, 0, 0, 2), piece(0, 0, 2, 1)],
        vec![piece(0, 0, 0, usize::MAX), piece(0, 1, 0, usize::MAX)],
        vec![Piece { open: 3, ..piece(0, 0, 0, 2) }],
        vec![Piece { open: usize::MAX, ..piece(0, 0, 0, 2) }],
    ] {
        let tokens = pieces.iter().map(|piece| piece.count.min(4)).sum::<usize>();
        let (cos, sin) = angles(0..tokens);
        let mut x = vec![0.0; tokens * SHAPE.hidden];
        let mut memory = Memory::new(4);
        let rotation = Rotation { cos: &cos, sin: &sin };
        let step = Step { shape: SHAPE, rotation, pieces: &pieces, width: Width::Bits16, threads: 1 };
        let found = step.advance(&network.layers(), &mut x, &mut [memory.store()]);
        assert!(found.is_err(), "{pieces:?}");
    }
    assert_eq!(run(&network, &mut [Memory::new(4)], &[], &[], 1), Ok(Vec::new()));
}

#[test]
fn the_exponential_is_accurate_to_two_units() {
    for i in -1_040_000..887_200 {
        let x = i as f32 * 1e-4;
        let (have, want) = (maths::exp(x), f64::from(x).exp());
        let unit = f64::from((want as f32).next_up()) - f64::from(want as f32);
        assert!((f64::from(have) - want).abs() <= 2.0 * unit.max(1e-45), "{x}: {have} is not {want}");
    }
    assert_eq!(maths::exp(f32::NEG_INFINITY), 0.0);
    assert_eq!(maths::exp(f32::INFINITY), f32::INFINITY);
    assert_eq!(maths::exp(0.0), 1.0);
    assert!(maths::exp(f32::NAN).is_nan());
}
