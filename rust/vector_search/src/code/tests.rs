use super::*;
use crate::dots::Portable;
use crate::rotation::splitmix;

/// Coordinates that look random, the same on every machine.
pub(crate) fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    (0..count)
        .map(|_| (0..4).map(|_| (splitmix(&mut state) >> 40) as f32 / (1u64 << 24) as f32 - 0.5).sum())
        .collect()
}

fn truth(metric: Metric, q: &[f32], x: &[f32]) -> f64 {
    let pairs = || q.iter().zip(x).map(|(q, x)| (f64::from(*q), f64::from(*x)));
    let dot: f64 = pairs().map(|(q, x)| q * x).sum();
    let (qq, xx): (f64, f64) = (pairs().map(|(q, _)| q * q).sum(), pairs().map(|(_, x)| x * x).sum());
    match metric {
        Metric::Cosine => {
            if qq * xx > 0.0 {
                dot / (qq * xx).sqrt()
            } else {
                0.0
            }
        }
        Metric::Dot => dot,
        Metric::L2 => 2.0 * dot - qq - xx,
    }
}

#[test]
fn an_estimate_lies_within_its_bound_but_for_one_in_a_thousand() {
    let (mut outside, mut all) = (0, 0);
    for metric in [Metric::Cosine, Metric::Dot, Metric::L2] {
        for dim in [1, 2, 5, 63, 64, 65, 384, 1000] {
            let coder = Coder::new(dim, metric);
            let (mut code, mut scratch) = (vec![0; coder.stride()], Vec::new());
            for seed in 0..60 {
                let (x, q) = (noise(seed, dim), noise(1000 + seed, dim));
                let terms = coder.encode(&x, &mut scratch, &mut code).unwrap();
                let query = coder.query(&q).unwrap();
                let [sum, ..] = Portable::four([&code; 4], &query.codes);
                let estimate = f64::from(query.score(sum, terms.factor, terms.offset) + query.shift);
                let bound = f64::from(query.reach * terms.error) + 1e-4 * (1.0 + estimate.abs());
                outside += i32::from((estimate - truth(metric, &q, &x)).abs() > bound);
                all += 1;
            }
        }
    }
    assert!(outside * 1000 <= all, "{outside} of {all}");
}

#[test]
fn a_stored_code_as_a_query_estimates_the_score_of_two_stored_vectors() {
    for metric in [Metric::Cosine, Metric::L2] {
        let coder = Coder::new(100, metric);
        let (mut one, mut two, mut scratch) = (vec![0; coder.stride()], vec![0; coder.stride()], Vec::new());
        let (x, y) = (noise(1, 100), noise(2, 100));
        let a = coder.encode(&x, &mut scratch, &mut one).unwrap();
        let b = coder.encode(&y, &mut scratch, &mut two).unwrap();
        let query = coder.query_of_code(&one, a.factor, a.offset);
        let [sum, ..] = Portable::four([&two; 4], &query.codes);
        let found = f64::from(query.score(sum, b.factor, b.offset) + query.shift);
        let wanted = truth(metric, &x, &y);
        assert!((found - wanted).abs() < 0.1 * (1.0 + wanted.abs()), "{metric:?} {found} {wanted}");
    }
}

#[test]
fn vectors_without_length_score_zero_and_those_without_end_are_refused() {
    let coder = Coder::new(3, Metric::Cosine);
    let terms = coder.encode(&[0.0; 3], &mut Vec::new(), &mut vec![0; coder.stride()]).unwrap();
    assert_eq!(terms, Terms { factor: 0.0, offset: 0.0, error: 0.0, inverse_norm: 0.0 });
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
        assert!(coder.query(&[0.0, bad, 1.0]).is_err());
        assert!(coder.encode(&[0.0, bad, 1.0], &mut Vec::new(), &mut vec![0; coder.stride()]).is_err());
    }
}
