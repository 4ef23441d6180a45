//! Laws of the encoder: what it computes is what its definition says, and each text's own affair.

use super::*;
use crate::gather::dequantize;
use crate::half::narrow;
use crate::order::Layout;
use crate::pack::Packed;

const SHAPE: Shape = Shape { hidden: 32, heads: 2, ffn: 50, eps: 1e-12 };
const LAYERS: usize = 2;
const VOCABULARY: usize = 40;
const POSITIONS: usize = 30;

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
        let scales = (0..layout.scales()).map(|_| narrow(0.04 * random.float())).collect();
        Weights { layout, codes, scales, bias: random.floats(rows) }
    }

    fn linear(&self) -> Linear<'_> {
        let packed = Packed::new(self.layout, &self.codes, &self.scales, None).unwrap();
        Linear { w: Matrix::new(packed, None).unwrap(), bias: Some(&self.bias) }
    }

    fn dense(&self) -> Vec<f32> {
        let mut dense = vec![0.0; self.layout.rows() * self.layout.columns()];
        dequantize(&self.linear().w, &mut dense, 1).unwrap();
        dense
    }
}

struct Network {
    words: Weights,
    places: Vec<f32>,
    norms: Vec<[Vec<f32>; 2]>,
    matrices: Vec<[Weights; 4]>,
}

impl Network {
    fn random() -> Self {
        let mut random = Random(5);
        let Shape { hidden, ffn, .. } = SHAPE;
        let sizes = [(3 * hidden, hidden), (hidden, hidden), (ffn, hidden), (hidden, ffn)];
        Network {
            words: Weights::random(&mut random, VOCABULARY, hidden),
            places: random.floats(POSITIONS * hidden),
            norms: (0..=2 * LAYERS).map(|_| [random.floats(hidden), random.floats(hidden)]).collect(),
            matrices: (0..LAYERS)
                .map(|_| sizes.map(|(rows, columns)| Weights::random(&mut random, rows, columns)))
                .collect(),
        }
    }

    fn norm(&self, at: usize) -> Norm<'_> {
        Norm { weight: &self.norms[at][0], bias: &self.norms[at][1] }
    }

    fn encode(
        &self,
        texts: &[Vec<i64>],
        width: Width,
        threads: usize,
        packed: bool,
    ) -> Result<Vec<f32>, Fault> {
        let layers = self.matrices.iter().enumerate().map(|(layer, matrices)| {
            let [qkv, out, up, down] = matrices.each_ref().map(Weights::linear);
            let (attention_norm, ffn_norm) = (self.norm(1 + 2 * layer), self.norm(2 + 2 * layer));
            EncoderLayer { qkv, out, attention_norm, up, down, ffn_norm }
        });
        let layers: Vec<_> = layers.collect();
        let dense = self.words.dense();
        let words = if packed { Words::Packed(self.words.linear().w) } else { Words::Plain(&dense) };
        let (norm, places) = (self.norm(0), self.places.as_slice());
        let encoder = Encoder { shape: SHAPE, words, places, norm, layers: &layers, width, threads };
        let lengths: Vec<_> = texts.iter().map(Vec::len).collect();
        let mut vectors = vec![f32::NAN; texts.len() * SHAPE.hidden];
        encoder.encode(&texts.concat(), &lengths, &mut vectors)?;
        Ok(vectors)
    }
}

/// The same network in the plainest way, in double precision.
struct Plain<'a>(&'a Network);

impl Plain<'_> {
    fn linear(weights: &Weights, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let dense = weights.dense();
        let row = |x: &Vec<f64>| {
            let products = dense.chunks_exact(x.len()).zip(&weights.bias);
            products
                .map(|(w, bias)| {
                    w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>() + f64::from(*bias)
                })
                .collect()
        };
        x.iter().map(row).collect()
    }

    fn norm(norm: Norm<'_>, x: &mut [Vec<f64>], more: &[Vec<f64>]) {
        for (x, more) in x.iter_mut().zip(more) {
            x.iter_mut().zip(more).for_each(|(x, more)| *x += more);
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / x.len() as f64;
            for ((x, weight), bias) in x.iter_mut().zip(norm.weight).zip(norm.bias) {
                *x = (*x - mean) / (variance + f64::from(SHAPE.eps)).sqrt() * f64::from(*weight)
                    + f64::from(*bias);
            }
        }
    }

    fn attention(qkv: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let Shape { hidden, heads, .. } = SHAPE;
        let head_dim = hidden / heads;
        let mut mixed = vec![vec![0.0; hidden]; qkv.len()];
        for (query, out) in qkv.iter().zip(&mut mixed) {
            for head in (0..hidden).step_by(head_dim) {
                let score = |key: &Vec<f64>| {
                    let products = (0..head_dim).map(|i| query[head + i] * key[hidden + head + i]);
                    (products.sum::<f64>() / (head_dim as f64).sqrt()).exp()
                };
                let scores: Vec<f64> = qkv.iter().map(score).collect();
                let total: f64 = scores.iter().sum();
                for (score, value) in scores.iter().zip(qkv) {
                    for i in head..head + head_dim {
                        out[i] += score / total * value[2 * hidden + i];
                    }
                }
            }
        }
        mixed
    }

    fn encode(&self, text: &[i64]) -> Vec<f64> {
        let (network, hidden) = (self.0, SHAPE.hidden);
        let words = network.words.dense();
        let rows = |values: &[f32], row: usize| values[row * hidden..(row + 1) * hidden].to_vec();
        let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<_>>();
        let mut x: Vec<_> = text.iter().map(|&id| wide(rows(&words, id as usize))).collect();
        let places: Vec<_> = (0..text.len()).map(|place| wide(rows(&network.places, place))).collect();
        Self::norm(network.norm(0), &mut x, &places);
        for (layer, [qkv, out, up, down]) in network.matrices.iter().enumerate() {
            let mixed = Self::attention(&Self::linear(qkv, &x));
            Self::norm(network.norm(1 + 2 * layer), &mut x, &Self::linear(out, &mixed));
            let mut wide = Self::linear(up, &x);
            wide.iter_mut().flatten().for_each(|x| *x *= cumulative(*x));
            Self::norm(network.norm(2 + 2 * layer), &mut x, &Self::linear(down, &wide));
        }
        let mut mean: Vec<f64> = (0..hidden).map(|i| x.iter().map(|x| x[i]).sum()).collect();
        let length = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
        mean.iter_mut().for_each(|x| *x /= length);
        mean
    }
}

/// The normal distribution's cumulative function, by Simpson's rule over its density from -12 on.
fn cumulative(x: f64) -> f64 {
    const STEPS: usize = 400;
    let density = |x: f64| (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
    let step = (x + 12.0).max(0.0) / STEPS as f64;
    let inner = |i: usize| density(-12.0 + i as f64 * step) * if i % 2 == 1 { 4.0 } else { 2.0 };
    step / 3.0 * ((1..STEPS).map(inner).sum::<f64>() + density(-12.0) + density(x))
}

fn texts(lengths: &[usize]) -> Vec<Vec<i64>> {
    let mut random = Random(11);
    let mut id = || ((random.float() + 1.0) / 2.0 * VOCABULARY as f32) as i64 % VOCABULARY as i64;
    lengths.iter().map(|&length| (0..length).map(|_| id()).collect()).collect()
}

#[test]
fn vectors_are_those_of_the_definition_in_double_precision() {
    let network = Network::random();
    let texts = texts(&[1, 7, POSITIONS, 9, 8, 16]);
    for (width, tolerance) in [(Width::Bits16, 2e-4), (Width::Bits8, 0.05)] {
        let vectors = network.encode(&texts, width, 1, true).unwrap();
        for (text, vector) in texts.iter().zip(vectors.chunks_exact(SHAPE.hidden)) {
            for (ours, plain) in vector.iter().zip(Plain(&network).encode(text)) {
                assert!((f64::from(*ours) - plain).abs() < tolerance, "{ours} is not {plain}");
            }
        }
    }
}

#[test]
fn a_text_has_the_same_bits_in_any_company_on_any_number_of_threads() {
    let network = Network::random();
    let texts = texts(&[3, 30, 1, 12, 16, 4, 4, 9, 25, 30, 2, 17, 8, 8, 29, 30, 30, 30, 30, 30, 30, 5]);
    let alone: Vec<_> = texts
        .iter()
        .flat_map(|text| network.encode(std::slice::from_ref(text), Width::Bits8, 1, true).unwrap())
        .collect();
    for threads in [1, 2, 3] {
        for packed in [false, true] {
            assert_eq!(network.encode(&texts, Width::Bits8, threads, packed).unwrap(), alone);
        }
    }
    let inside = network.encode(&texts[1..2], Width::Bits8, 2, true).unwrap();
    assert_eq!(inside, alone[SHAPE.hidden..2 * SHAPE.hidden]);
}

#[test]
fn parts_hold_every_text_once_and_are_about_as_large_as_products_like_them() {
    for (lengths, threads) in
        [(vec![16; 64], 2), (vec![5, 500, 3], 2), (vec![1], 4), (vec![20; 7], 3), (vec![], 2)]
    {
        let parts = cut(&lengths, threads);
        assert_eq!(parts.iter().sum::<usize>(), lengths.len());
        assert!(parts.iter().all(|&texts| texts > 0));
    }
    assert_eq!(cut(&[16; 64], 2), [5, 6, 5, 5, 6, 5, 5, 6, 5, 5, 6, 5]);
    assert_eq!(cut(&[16], 2), [1]);
}

#[test]
fn the_activation_is_x_times_the_normal_distribution() {
    for step in -900..=900 {
        let x = step as f32 / 100.0;
        let exact = f64::from(x) * cumulative(f64::from(x));
        assert!(
            (f64::from(maths::gelu(x)) - exact).abs() < 2e-6,
            "at {x}: {} is not {exact}",
            maths::gelu(x)
        );
    }
    assert!(maths::gelu(f32::NAN).is_nan());
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let network = Network::random();
    let refused = |ids: &[i64], lengths: &[usize], room: usize| {
        let words = Words::Packed(network.words.linear().w);
        let encoder = Encoder {
            shape: SHAPE,
            words,
            places: &network.places,
            norm: network.norm(0),
            layers: &[],
            width: Width::Bits8,
            threads: 1,
        };
        encoder.encode(ids, lengths, &mut vec![0.0; room]).unwrap_err()
    };
    assert!(matches!(refused(&[1], &[0, 1], 64), Fault::Shape(_)));
    assert!(matches!(refused(&[0; 31], &[31], 32), Fault::Shape(_)));
    assert!(matches!(refused(&[1, 2], &[1], 32), Fault::Length { .. }));
    assert!(matches!(refused(&[1], &[1], 31), Fault::Length { .. }));
    assert!(matches!(refused(&[VOCABULARY as i64], &[1], 32), Fault::Row { .. }));
    assert!(matches!(refused(&[-1], &[1], 32), Fault::Row { .. }));
    assert!(matches!(refused(&[1], &[usize::MAX], 32), Fault::Shape(_)));
}
