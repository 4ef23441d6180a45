use super::*;

/// Sizes with tails in every direction: of quads, groups, tiles, panels, blocks of rows and rounds of tokens.
const SIZES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (5, 16, 8),
    (6, 17, 9),
    (101, 33, 515),
    (7, 40, 12),
    (203, 15, 64),
    (13, 9, 511),
    (4, 100, 3),
    (30, 96, 96),
];

/// Numbers that look random, of very different sizes.
fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * f32::from(1u8 << (state & 7))
        })
        .collect()
}

fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

fn packed(w: &[f32], outputs: usize, depth: usize, order: Order, threads: usize) -> Vec<u8> {
    let mut packed = vec![7; packed_len(outputs, depth).unwrap()];
    pack(w, outputs, depth, order, &mut packed, threads).unwrap();
    packed
}

fn multiplied(
    isa: Isa,
    x: &[f32],
    packed: &[u8],
    (m, outputs, depth): (usize, usize, usize),
    threads: usize,
) -> Vec<f32> {
    let mut out = vec![f32::NAN; m * outputs];
    product_on(isa, x, packed, (depth, outputs), &mut out, threads).unwrap();
    out
}

fn gradient(isa: Isa, g: &[f32], x: &[f32], (m, n, k): (usize, usize, usize), threads: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; n * k];
    weight_gradient_on(isa, g, x, (m, n, k), &mut out, threads).unwrap();
    out
}

fn largest(values: impl Iterator<Item = f32>) -> f32 {
    values.fold(0.0, |most, value| most.max(value.abs()))
}

/// Integers of at most `levels`, and their scale.
fn integers(values: &[f32], largest: f32, levels: f32) -> (Vec<i64>, f32) {
    let inverse = levels / largest;
    (values.iter().map(|value| (value * inverse).round_ties_even() as i64).collect(), largest / levels)
}

/// How far values reach in one of the halves in which four products of eight columns meet.
fn reach(row: &[f32]) -> f32 {
    let halves = row.chunks(8).flat_map(|group| {
        [[0, 1, 4, 5], [2, 3, 6, 7]].map(|half| half.map(|at| group.get(at).copied().unwrap_or(0.0)))
    });
    halves.fold(0.0, |most, half| {
        let (mut sum, mut magnitudes) = (0.0f32, 0.0f32);
        for value in half {
            sum += value;
            magnitudes += value.abs();
        }
        most.max(0.5 * (magnitudes + sum.abs()))
    })
}

/// Row by row and number by number, as the modules' first lines say it.
fn reference(x: &[f32], w: &[f32], (m, outputs, depth): (usize, usize, usize)) -> Vec<f32> {
    let mut out = Vec::with_capacity(m * outputs);
    for x in x.chunks(depth) {
        let (x, of_x) = integers(x, largest(x.iter().copied()), 127.0);
        for w in w.chunks(depth).take(outputs) {
            let (w, of_w) = integers(w, reach(w), 126.0);
            let sum: i64 = x.iter().zip(&w).map(|(x, w)| x * w).sum();
            out.push(sum as f32 * (of_x * of_w));
        }
    }
    out
}

fn reference_gradient(g: &[f32], x: &[f32], (m, n, k): (usize, usize, usize)) -> Vec<f32> {
    let mut out = vec![0.0f32; n * k];
    for (round, first) in (0..m).step_by(halves::TOKENS).enumerate() {
        let tokens = first..m.min(first + halves::TOKENS);
        let column = |values: &[f32], width: usize, at: usize| -> (Vec<i64>, f32) {
            let values: Vec<f32> = tokens.clone().map(|token| values[token * width + at]).collect();
            integers(&values, largest(values.iter().copied()), 2047.0)
        };
        let of_x: Vec<_> = (0..k).map(|at| column(x, k, at)).collect();
        for i in 0..n {
            let (g, scale) = column(g, n, i);
            for (j, (x, of_x)) in of_x.iter().enumerate() {
                let sum: i64 = g.iter().zip(x).map(|(g, x)| g * x).sum();
                let value = sum as f32 * (scale * of_x);
                let into = &mut out[i * k + j];
                *into = if round == 0 { value } else { *into + value };
            }
        }
    }
    out
}

#[test]
fn every_size_order_thread_count_and_instruction_set_gives_the_bits_of_the_definition() {
    for (m, outputs, depth) in SIZES {
        let (x, w) = (values(m * depth, 1), values(outputs * depth, 2));
        let expected = reference(&x, &w, (m, outputs, depth));
        let rows = packed(&w, outputs, depth, Order::Outputs, 1);
        assert_eq!(rows, packed(&transposed(&w, outputs, depth), outputs, depth, Order::Depth, 3));
        for isa in Isa::reachable() {
            for threads in [1, 3] {
                assert_eq!(
                    multiplied(isa, &x, &rows, (m, outputs, depth), threads),
                    expected,
                    "{m} {outputs} {depth}"
                );
            }
        }
    }
}

#[test]
fn a_weight_gradient_has_the_bits_of_its_definition_on_every_instruction_set() {
    for (m, n, k) in [(1, 1, 1), (2, 6, 16), (513, 7, 17), (1100, 97, 65), (64, 100, 3), (511, 13, 70)] {
        let (g, x) = (values(m * n, 3), values(m * k, 4));
        let expected = reference_gradient(&g, &x, (m, n, k));
        for isa in Isa::reachable() {
            for threads in [1, 3] {
                assert_eq!(gradient(isa, &g, &x, (m, n, k), threads), expected, "{m} {n} {k}");
            }
        }
    }
}

#[test]
fn nothing_saturates_at_the_largest_sums() {
    let (m, outputs, depth) = (5, 16, 4096);
    for (x, w) in [(3.0, 5.0), (-3.0, 5.0), (3.0, -5.0), (-3.0, -5.0)] {
        let (x, w) = (vec![x; m * depth], vec![w; outputs * depth]);
        let rows = packed(&w, outputs, depth, Order::Outputs, 1);
        for isa in Isa::reachable() {
            let out = multiplied(isa, &x, &rows, (m, outputs, depth), 1);
            assert_eq!(out, reference(&x, &w, (m, outputs, depth)));
        }
    }
    let (g, x) = (vec![-3.0; 512 * 6], vec![5.0; 512 * 16]);
    for isa in Isa::reachable() {
        let out = gradient(isa, &g, &x, (512, 6, 16), 1);
        assert!(out.iter().all(|value| (value / (-15.0 * 512.0) - 1.0).abs() < 1e-5));
    }
}

#[test]
fn errors_are_a_small_share_of_the_product_of_the_norms() {
    let (m, n, k) = (600, 50, 300);
    let (x, w, g) = (values(m * k, 5), values(n * k, 6), values(m * n, 7));
    let rows = packed(&w, n, k, Order::Outputs, 1);
    let (y, dw) =
        (multiplied(Isa::here(), &x, &rows, (m, n, k), 1), gradient(Isa::here(), &g, &x, (m, n, k), 1));
    let norm =
        |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let dot = |a: &mut dyn Iterator<Item = f32>, b: &mut dyn Iterator<Item = f32>| {
        a.zip(b).map(|(a, b)| f64::from(a) * f64::from(b)).sum::<f64>()
    };
    for i in 0..n {
        for j in 0..m {
            let (x, w) = (|| x[j * k..][..k].iter().copied(), || w[i * k..][..k].iter().copied());
            let error = (f64::from(y[j * n + i]) - dot(&mut x(), &mut w())).abs();
            assert!(error < 0.02 * norm(&mut x()) * norm(&mut w()));
        }
        for j in 0..k {
            let (g, x) = (|| g.iter().skip(i).step_by(n).copied(), || x.iter().skip(j).step_by(k).copied());
            let error = (f64::from(dw[i * k + j]) - dot(&mut g(), &mut x())).abs();
            assert!(error < 3e-4 * norm(&mut g()) * norm(&mut x()));
        }
    }
}

#[test]
fn what_is_not_finite_is_not_hidden_and_tiny_values_are_zeros() {
    let (m, n, k) = (7, 20, 30);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let (mut x, mut w) = (values(m * k, 8), values(n * k, 9));
        let good = packed(&w, n, k, Order::Outputs, 1);
        w[2 * k + 3] = bad;
        let out = multiplied(Isa::here(), &x, &packed(&w, n, k, Order::Outputs, 1), (m, n, k), 1);
        assert_eq!(out.iter().filter(|value| !value.is_finite()).count(), m);
        x[k + 1] = bad;
        let out = multiplied(Isa::here(), &x, &good, (m, n, k), 1);
        assert_eq!(out.iter().filter(|value| !value.is_finite()).count(), n);
        let out = gradient(Isa::here(), &values(m * n, 10), &x, (m, n, k), 1);
        assert_eq!(out.iter().filter(|value| !value.is_finite()).count(), n);
    }
    let (tiny, w) = (vec![f32::from_bits(1); k], values(k, 11));
    assert_eq!(multiplied(Isa::here(), &tiny, &packed(&w, 1, k, Order::Outputs, 1), (1, 1, k), 1), [0.0]);
    assert_eq!(multiplied(Isa::here(), &w, &packed(&tiny, 1, k, Order::Outputs, 1), (1, 1, k), 1), [0.0]);
}

#[test]
fn bytes_that_nobody_packed_give_the_same_bits_everywhere() {
    let (m, outputs, depth) = (9, 21, 44);
    let x = values(m * depth, 12);
    let hostile: Vec<u8> =
        (0..packed_len(outputs, depth).unwrap()).map(|at| (at * 151 % 256) as u8).collect();
    let all: Vec<_> = Isa::reachable()
        .into_iter()
        .map(|isa| {
            multiplied(isa, &x, &hostile, (m, outputs, depth), 1)
                .iter()
                .map(|y| y.to_bits())
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(all.windows(2).all(|two| two[0] == two[1]));
}

#[test]
fn sizes_that_do_not_fit_are_refused_and_empty_ones_give_zeros() {
    let x = values(12, 13);
    let w = packed(&x, 4, 3, Order::Outputs, 1);
    let mut out = [0.0; 16];
    assert!(pack(&x, 4, 4, Order::Outputs, &mut w.clone(), 1).is_err());
    assert!(pack(&x, 4, 3, Order::Outputs, &mut w.clone()[1..], 1).is_err());
    assert!(packed_len(1, DEPTH_MAX + 1).is_err() && packed_len(usize::MAX, 1).is_err());
    assert!(product(&x, &w, (3, 4), &mut out[..15], 1).is_err());
    assert!(product(&x, &w[1..], (3, 4), &mut out, 1).is_err());
    assert!(product(&x[1..], &w, (3, 4), &mut out, 1).is_err());
    assert!(weight_gradient(&x, &x, (3, 4, 3), &mut out[..12], 1).is_err());
    let mut ones = [1.0; 8];
    product(&[], &packed(&[], 4, 0, Order::Outputs, 1), (0, 4), &mut ones, 1).unwrap();
    assert_eq!(ones, [0.0; 8]);
    let mut ones = [1.0; 6];
    weight_gradient(&[], &[], (0, 2, 3), &mut ones, 1).unwrap();
    assert_eq!(ones, [0.0; 6]);
}
