//! What an index promises, whatever is added, removed, saved and opened.

use std::path::PathBuf;

use aios_vector_search::{Effort, Metric, VectorSearch};

const METRICS: [Metric; 3] = [Metric::Cosine, Metric::Dot, Metric::L2];

/// Vectors in clusters, the same on every machine.
fn vectors(seed: u64, count: usize, dim: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let centres: Vec<f32> = (0..20 * dim).map(|_| next()).collect();
    let mut out = Vec::with_capacity(count * dim);
    for row in 0..count {
        let centre = &centres[(row * 7 % 20) * dim..][..dim];
        out.extend(centre.iter().map(|x| x + 0.8 * next()));
    }
    out
}

fn score(metric: Metric, q: &[f32], x: &[f32]) -> f64 {
    let sum =
        |f: fn(f64, f64) -> f64| q.iter().zip(x).map(|(q, x)| f(f64::from(*q), f64::from(*x))).sum::<f64>();
    match metric {
        Metric::Cosine => sum(|q, x| q * x) / (sum(|q, _| q * q) * sum(|_, x| x * x)).sqrt(),
        Metric::Dot => sum(|q, x| q * x),
        Metric::L2 => -sum(|q, x| (q - x) * (q - x)),
    }
}

/// The k best of the rows that `keep` keeps, by scores in double precision.
fn nearest(metric: Metric, q: &[f32], rows: &[f32], k: usize, keep: impl Fn(u64) -> bool) -> Vec<(u64, f64)> {
    let mut all: Vec<_> = rows
        .chunks_exact(q.len())
        .enumerate()
        .map(|(id, x)| (id as u64, score(metric, q, x)))
        .filter(|(id, _)| keep(*id))
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all.truncate(k);
    all
}

fn index(metric: Metric, rows: &[f32], dim: usize) -> VectorSearch {
    let mut index = VectorSearch::new(dim, metric).unwrap();
    let ids: Vec<u64> = (0..(rows.len() / dim) as u64).collect();
    index.add(&ids, rows, 2).unwrap();
    index
}

fn recall(found: &[(u64, f32)], wanted: &[(u64, f64)]) -> f64 {
    let hits = found.iter().filter(|one| wanted.iter().any(|other| other.0 == one.0)).count();
    hits as f64 / wanted.len().max(1) as f64
}

#[test]
fn the_exact_search_finds_what_double_precision_finds_one_by_one_and_together() {
    for metric in METRICS {
        for (dim, count) in [(3, 50), (64, 1), (70, 333), (384, 3000)] {
            let (rows, queries) = (vectors(1, count, dim), vectors(2, 9, dim));
            let index = index(metric, &rows, dim);
            let together = index.search(&queries, 10, None, Effort::Exact, 2).unwrap();
            for (query, found) in queries.chunks_exact(dim).zip(&together) {
                let wanted = nearest(metric, query, &rows, 10, |_| true);
                assert_eq!(found.len(), wanted.len());
                for ((_, score), (_, truth)) in found.iter().zip(&wanted) {
                    assert!(
                        (f64::from(*score) - truth).abs() < 1e-4 * (1.0 + truth.abs()),
                        "{metric:?} {dim}"
                    );
                }
                assert_eq!(&index.search(query, 10, None, Effort::Exact, 1).unwrap()[0], found);
            }
        }
    }
}

#[test]
fn the_graph_finds_nearly_all_and_its_scores_are_exact() {
    for metric in [Metric::Cosine, Metric::L2] {
        let (dim, count) = (48, 4000);
        let (rows, queries) = (vectors(3, count, dim), vectors(3, 40, dim));
        let mut index = index(metric, &rows, dim);
        index.build_graph(2).unwrap();
        let found = index.search(&queries, 10, None, Effort::Walk(128), 1).unwrap();
        let mut sum = 0.0;
        for (query, found) in queries.chunks_exact(dim).zip(&found) {
            sum += recall(found, &nearest(metric, query, &rows, 10, |_| true));
            for (id, told) in found {
                let truth = score(metric, query, &rows[*id as usize * dim..][..dim]);
                assert!((f64::from(*told) - truth).abs() < 1e-4 * (1.0 + truth.abs()));
            }
        }
        assert!(sum / 40.0 > 0.98, "{metric:?} {}", sum / 40.0);
    }
}

#[test]
fn a_filter_is_kept_and_costs_no_neighbours_at_any_selectivity() {
    let (dim, count) = (48, 4000);
    let (rows, queries) = (vectors(4, count, dim), vectors(4, 20, dim));
    let mut index = index(Metric::Cosine, &rows, dim);
    index.build_graph(2).unwrap();
    for every in [1, 2, 7, 100, 3999] {
        let allowed: Vec<u64> = (0..count as u64 + 50).filter(|id| id % every == 0).collect();
        let found = index.search(&queries, 10, Some(&allowed), Effort::Walk(96), 2).unwrap();
        let mut sum = 0.0;
        for (query, found) in queries.chunks_exact(dim).zip(&found) {
            assert!(found.iter().all(|(id, _)| id % every == 0));
            sum += recall(found, &nearest(Metric::Cosine, query, &rows, 10, |id| id % every == 0));
        }
        assert!(sum / 20.0 >= 0.99, "{every} {}", sum / 20.0);
    }
    assert!(index.search(&queries, 10, Some(&[]), Effort::Walk(96), 1).unwrap().iter().all(Vec::is_empty));
}

#[test]
fn removed_vectors_are_never_found_and_their_neighbours_still_are() {
    let (dim, count) = (32, 3000);
    let (rows, queries) = (vectors(5, count, dim), vectors(5, 30, dim));
    let mut index = index(Metric::L2, &rows, dim);
    index.build_graph(1).unwrap();
    let gone: Vec<u64> = (0..count as u64).filter(|id| id % 3 == 0).collect();
    assert_eq!(index.remove(&gone), gone.len());
    assert_eq!(index.remove(&gone), 0);
    assert_eq!(index.len(), count - gone.len());
    let check = |index: &VectorSearch, least: f64, effort: Effort| {
        let mut sum = 0.0;
        for query in queries.chunks_exact(dim) {
            let found = &index.search(query, 10, None, effort, 1).unwrap()[0];
            assert!(found.iter().all(|(id, _)| id % 3 != 0));
            sum += recall(found, &nearest(Metric::L2, query, &rows, 10, |id| id % 3 != 0));
        }
        assert!(sum / 30.0 >= least, "{effort:?} {}", sum / 30.0);
    };
    check(&index, 1.0, Effort::Exact);
    check(&index, 0.97, Effort::Walk(128));
    let compact = index.compacted(2).unwrap();
    assert_eq!(compact.slots(), index.len());
    check(&compact, 0.98, Effort::Walk(128));
    // The places are used again.
    let back: Vec<f32> = gone.iter().flat_map(|id| &rows[*id as usize * dim..][..dim]).copied().collect();
    index.add(&gone, &back, 2).unwrap();
    assert_eq!((index.len(), index.slots()), (count, count));
    for query in queries.chunks_exact(dim) {
        let found = &index.search(query, 10, None, Effort::Walk(128), 1).unwrap()[0];
        assert!(recall(found, &nearest(Metric::L2, query, &rows, 10, |_| true)) >= 0.8);
    }
}

#[test]
fn an_id_that_is_there_is_refused_and_nothing_of_the_call_is_added() {
    let mut index = index(Metric::Cosine, &vectors(6, 10, 8), 8);
    let two = vectors(7, 2, 8);
    for ids in [[3, 20], [20, 3], [20, 20]] {
        assert!(index.add(&ids, &two, 1).is_err());
        assert_eq!(index.len(), 10);
    }
    assert!(index.add(&[20, 21], &[f32::NAN; 16], 1).is_err());
    assert!(index.add(&[20], &two, 1).is_err());
    index.add(&[20, u64::MAX - 1], &two, 1).unwrap();
    assert_eq!(index.len(), 12);
}

fn place(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("vector-search-{}-{name}", std::process::id()))
}

#[test]
fn an_opened_index_answers_as_the_saved_one_did_and_grows() {
    let (dim, path) = (40, place("opened"));
    for (metric, count) in [(Metric::Cosine, 20), (Metric::L2, 9000)] {
        let (rows, queries) = (vectors(8, count, dim), vectors(9, 5, dim));
        let mut saved = index(metric, &rows, dim);
        saved.build_graph(2).unwrap();
        saved.remove(&[5, 7]);
        saved.save(&path).unwrap();
        let mut opened = VectorSearch::open(&path).unwrap();
        opened.verify().unwrap();
        for effort in [Effort::Exact, Effort::Walk(32)] {
            let answers = |index: &VectorSearch| index.search(&queries, 10, None, effort, 1).unwrap();
            assert_eq!(answers(&opened), answers(&saved));
        }
        let more = vectors(10, 30, dim);
        let ids: Vec<u64> = (100_000..100_030).collect();
        opened.add(&ids, &more, 1).unwrap();
        assert_eq!(opened.len(), count - 2 + 30);
        assert_eq!(opened.search(&more[..dim], 1, None, Effort::Exact, 1).unwrap()[0][0].0, 100_000);
        assert_eq!(opened.remove(&[1]), 1);
        // What the file holds is as it was.
        VectorSearch::open(&path).unwrap().verify().unwrap();
    }
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_damaged_file_is_refused_or_found_out_and_never_read_beyond() {
    let path = place("damaged");
    let mut index = index(Metric::L2, &vectors(11, 300, 16), 16);
    index.build_graph(1).unwrap();
    index.save(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let query = vectors(12, 1, 16);
    for at in (0..76).chain((4096..whole.len()).step_by(97)) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x41;
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(opened) = VectorSearch::open(&path) {
            opened.search(&query, 10, None, Effort::Exact, 1).unwrap();
            opened.search(&query, 10, None, Effort::Walk(64), 1).unwrap();
            let same = opened.search(&query, 10, None, Effort::Exact, 1).unwrap()
                == index.search(&query, 10, None, Effort::Exact, 1).unwrap();
            assert!(opened.verify().is_err() || same, "{at}");
        }
    }
    for length in [0, 1, 100, 4096, whole.len() - 4096, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(VectorSearch::open(&path).is_err());
    }
    std::fs::remove_file(path).unwrap();
}
