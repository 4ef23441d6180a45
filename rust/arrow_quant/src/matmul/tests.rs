//! Every instruction set against sums in f64 over weights taken code by code.

use super::*;
use crate::gather::{dequantize, gather};
use crate::half::{narrow, widen};
use crate::order::Layout;
use crate::pack::Packed;

/// Small numbers that repeat for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    fn below(&mut self, end: usize) -> usize {
        self.next() as usize % end
    }

    fn float(&mut self) -> f32 {
        self.next() as f32 / (1u32 << 30) as f32 - 1.0
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }

    fn halves(&mut self, count: usize) -> Vec<u16> {
        (0..count).map(|_| narrow(self.float())).collect()
    }
}

struct Owned {
    layout: Layout,
    codes: Vec<u8>,
    scales: Vec<u16>,
    zeros: Option<Vec<u16>>,
    residual: Option<(Vec<u16>, Vec<u16>, usize)>,
}

impl Owned {
    /// Random codes, also where only padding lies: nothing may depend on them.
    fn random(random: &mut Random, layout: Layout, symmetric: bool, rank: usize) -> Self {
        let (rows, columns) = (layout.rows(), layout.columns());
        Owned {
            layout,
            codes: (0..layout.codes_bytes()).map(|_| random.next() as u8).collect(),
            scales: random.halves(layout.scales()),
            zeros: (!symmetric).then(|| random.halves(layout.scales())),
            residual: (rank > 0).then(|| (random.halves(rows * rank), random.halves(rank * columns), rank)),
        }
    }

    fn matrix(&self) -> Matrix<'_> {
        let packed = Packed::new(self.layout, &self.codes, &self.scales, self.zeros.as_deref()).unwrap();
        let residual =
            self.residual.as_ref().map(|(left, right, rank)| (left.as_slice(), right.as_slice(), *rank));
        Matrix::new(packed, residual).unwrap()
    }

    /// The weight in f64, and how large the terms are that make it.
    fn weight(&self, row: usize, column: usize) -> (f64, f64) {
        let (byte, bit) = self.layout.place(row, column);
        let code = self.codes[byte] >> bit & self.layout.code_max();
        let group = row / PANEL_ROWS * self.layout.groups() + column / self.layout.group_size();
        let at = group * PANEL_ROWS + row % PANEL_ROWS;
        let scale = f64::from(widen(self.scales[at]));
        let zero = self
            .zeros
            .as_ref()
            .map_or(-scale * f64::from(self.layout.middle()), |zeros| f64::from(widen(zeros[at])));
        let mut weight = zero + scale * f64::from(code);
        let mut size = zero.abs() + scale.abs() * f64::from(code);
        if let Some((left, right, rank)) = &self.residual {
            for r in 0..*rank {
                let product = f64::from(widen(left[row * rank + r]))
                    * f64::from(widen(right[r * self.layout.columns() + column]));
                weight += product;
                size += product.abs();
            }
        }
        (weight, size)
    }
}

/// Checks one product against f64 on every level; the bound is that of f32 sums of terms of that size.
fn check(owned: &Owned, random: &mut Random, m: usize, threads: usize) {
    let (rows, columns) = (owned.layout.rows(), owned.layout.columns());
    let x = random.floats(m * columns);
    for isa in Isa::reachable() {
        let mut y = vec![f32::NAN; m * rows];
        matmul_on(isa, &owned.matrix(), m, &x, &mut y, threads).unwrap();
        for (at, &have) in y.iter().enumerate() {
            let (row, x) = (at % rows, &x[at / rows * columns..][..columns]);
            let (mut want, mut size) = (0.0, 0.0);
            for (column, &x) in x.iter().enumerate() {
                let (weight, terms) = owned.weight(row, column);
                want += f64::from(x) * weight;
                size += f64::from(x).abs() * terms;
            }
            let bound = f64::from(f32::EPSILON) * size * (4.0 + (columns as f64).sqrt());
            assert!(
                (f64::from(have) - want).abs() <= bound,
                "{}: {have} is not {want} +- {bound}",
                isa.name()
            );
        }
    }
}

#[test]
fn every_level_multiplies_by_the_weights_that_the_order_defines() {
    let mut random = Random(7);
    for round in 0..if cfg!(miri) { 4 } else { 150 } {
        let bits = [8, 4, 2][round % 3];
        let group_size = crate::order::GROUP_SIZES[random.below(3)];
        let layout = Layout::new(1 + random.below(100), 1 + random.below(300), bits, group_size).unwrap();
        let rank = if random.below(2) == 0 { 0 } else { 1 + random.below(40) };
        let symmetric = random.below(2) == 0;
        let owned = Owned::random(&mut random, layout, symmetric, rank);
        let (m, threads) = ([1, 1 + random.below(14)][random.below(2)], 1 + random.below(3));
        check(&owned, &mut random, m, threads);
    }
}

/// Integer activations of both widths, on every level: the same bits, near what f64 says of the rounded x.
fn check_integer(owned: &[&Owned], random: &mut Random, m: usize, threads: usize) {
    let columns = owned[0].layout.columns();
    let x = random.floats(m * columns);
    for (width, most) in [(Width::Bits16, 32639.0), (Width::Bits8, 127.0)] {
        let products = Isa::reachable().into_iter().map(|isa| {
            let mut ys: Vec<_> = owned.iter().map(|owned| vec![f32::NAN; m * owned.layout.rows()]).collect();
            let mut products: Vec<_> =
                owned.iter().zip(&mut ys).map(|(owned, y)| Product { w: owned.matrix(), y }).collect();
            matmul_integer_on(isa, &mut products, m, &x, width, threads).unwrap();
            ys
        });
        let products: Vec<_> = products.collect();
        for ((at, owned), y) in owned.iter().enumerate().zip(&products[0]) {
            let (rows, group_size) = (owned.layout.rows(), owned.layout.group_size());
            if owned.residual.is_none() {
                assert!(products.iter().all(|other| &other[at] == y), "the same bits everywhere");
            }
            for (at, &have) in y.iter().enumerate() {
                let (row, x) = (at % rows, &x[at / rows * columns..][..columns]);
                let (mut want, mut size, mut step) = (0.0, 0.0, 0.0);
                // Two neighbours may have to share the range: see `Form::Bounded`.
                let range = if (width, owned.layout.bits()) == (Width::Bits8, 8) { most / 2.0 } else { most };
                for (group, x) in x.chunks(group_size).enumerate() {
                    let largest = x.iter().fold(0f32, |largest, x| largest.max(x.abs()));
                    for (column, &x) in x.iter().enumerate() {
                        let (weight, terms) = owned.weight(row, group * group_size + column);
                        want += f64::from(x) * weight;
                        size += f64::from(x).abs() * terms;
                        step += f64::from(largest) / range * (0.5 + 1e-3) * terms;
                    }
                }
                let bound = step + f64::from(f32::EPSILON) * size * (8.0 + (columns as f64).sqrt());
                assert!(
                    (f64::from(have) - want).abs() <= bound,
                    "{width:?}: {have} is not {want} +- {bound}"
                );
            }
        }
    }
}

#[test]
fn integer_activations_multiply_as_their_rounding_allows_and_alike_everywhere() {
    let mut random = Random(21);
    for round in 0..if cfg!(miri) { 2 } else { 150 } {
        let columns = 1 + random.below(300);
        let count = 1 + random.below(3);
        let owned: Vec<_> = (0..count)
            .map(|at| {
                let bits = [8, 4, 2][(round + at) % 3];
                let group_size = crate::order::GROUP_SIZES[random.below(3)];
                let layout = Layout::new(1 + random.below(100), columns, bits, group_size).unwrap();
                let rank = if random.below(3) > 0 { 0 } else { 1 + random.below(40) };
                let symmetric = random.below(2) == 0;
                Owned::random(&mut random, layout, symmetric, rank)
            })
            .collect();
        let (m, threads) = ([1, 1 + random.below(14)][random.below(2)], 1 + random.below(3));
        check_integer(&owned.iter().collect::<Vec<_>>(), &mut random, m, threads);
    }
    let owned = Owned::random(&mut random, Layout::new(40, 70, 4, 32).unwrap(), false, 3);
    check_integer(&[&owned], &mut random, 2 * ROWS_MAX + 1, 2);
}

#[test]
fn extreme_codes_and_activations_overflow_nothing() {
    for bits in [8, 4, 2] {
        let layout = Layout::new(33, 256, bits, 128).unwrap();
        let owned = Owned {
            layout,
            codes: vec![0xff; layout.codes_bytes()],
            scales: vec![narrow(1.0); layout.scales()],
            zeros: Some(vec![0; layout.scales()]),
            residual: None,
        };
        let want = 256.0 * f32::from(layout.code_max());
        for (m, sign, width) in [
            (1, 1.0, Width::Bits16),
            (7, -1.0, Width::Bits16),
            (1, -1.0, Width::Bits8),
            (7, 1.0, Width::Bits8),
            (7, -1.0, Width::Bits8),
        ] {
            for isa in Isa::reachable() {
                let mut y = vec![0.0; m * 33];
                let mut products = [Product { w: owned.matrix(), y: &mut y }];
                matmul_integer_on(isa, &mut products, m, &vec![sign; m * 256], width, 1).unwrap();
                // Neighbours share the range where 8 bits meet 8: 1 becomes 64 of 63.5.
                let bound = if (width, bits) == (Width::Bits8, 8) { 8e-3 } else { 1e-3 };
                assert!(y.iter().all(|y| (y - sign * want).abs() < bound * want), "{bits} bits, {width:?}");
            }
        }
    }
}

#[test]
fn rows_that_are_no_numbers_stay_none_and_others_are_not_touched() {
    let owned = Owned::random(&mut Random(4), Layout::new(40, 64, 4, 32).unwrap(), false, 0);
    for (bad, width) in
        [(f32::NAN, Width::Bits8), (f32::INFINITY, Width::Bits16), (f32::NEG_INFINITY, Width::Bits8)]
    {
        let mut x = vec![1.0; 3 * 64];
        x[64 + 40] = bad;
        x[128..].fill(f32::MIN_POSITIVE / 8.0);
        let mut y = vec![0.0; 3 * 40];
        matmul_integer(&mut [Product { w: owned.matrix(), y: &mut y }], 3, &x, width, 1).unwrap();
        assert!(y[..40].iter().all(|y| y.is_finite()));
        assert!(y[40..80].iter().all(|y| y.is_nan()));
        assert!(y[80..].iter().all(|&y| y == 0.0));
    }
}

#[test]
fn more_rows_than_a_chunk_are_multiplied_too() {
    let mut random = Random(8);
    let owned = Owned::random(&mut random, Layout::new(40, 70, 4, 32).unwrap(), false, 3);
    check(&owned, &mut random, 2 * ROWS_MAX + 1, 2);
}

#[test]
fn threads_change_no_bit() {
    let mut random = Random(9);
    let owned = Owned::random(&mut random, Layout::new(500, 700, 2, 64).unwrap(), false, 8);
    for m in [1, 5] {
        let x = random.floats(m * 700);
        let products = [1, 2, 7].map(|threads| {
            let mut y = vec![0.0; m * 500];
            matmul(&owned.matrix(), m, &x, &mut y, threads).unwrap();
            y
        });
        assert_eq!(products[0], products[1]);
        assert_eq!(products[0], products[2]);
    }
}

#[test]
fn nothing_times_anything_is_zero_or_empty() {
    for (m, rows, columns) in [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)] {
        let layout = Layout::new(rows, columns, 4, 32).unwrap();
        let owned = Owned::random(&mut Random(1), layout, false, 0);
        let mut y = vec![1.0; m * rows];
        matmul(&owned.matrix(), m, &vec![1.0; m * columns], &mut y, 2).unwrap();
        assert!(y.iter().all(|&y| y == 0.0));
        dequantize(&owned.matrix(), &mut vec![0.0; rows * columns], 2).unwrap();
        gather(&owned.matrix(), &[], &mut [], 2).unwrap();
    }
}

#[test]
fn buffers_of_wrong_length_are_refused() {
    let layout = Layout::new(3, 40, 4, 32).unwrap();
    let owned = Owned::random(&mut Random(1), layout, false, 2);
    let w = owned.matrix();
    assert!(matmul(&w, 2, &[0.0; 79], &mut [0.0; 6], 1).is_err());
    assert!(matmul(&w, 2, &[0.0; 80], &mut [0.0; 5], 1).is_err());
    assert!(matmul(&w, usize::MAX, &[0.0; 80], &mut [0.0; 6], 1).is_err());
    assert!(gather(&w, &[0], &mut [0.0; 39], 1).is_err());
    assert!(dequantize(&w, &mut [0.0; 119], 1).is_err());
    let (left, right, rank) = owned.residual.as_ref().unwrap();
    assert!(Matrix::new(w.packed(), Some((left, right, rank + 1))).is_err());
    assert!(Matrix::new(w.packed(), Some((&[], &[], 0))).is_err());
}

#[test]
fn gathered_rows_are_the_weights_themselves() {
    let mut random = Random(3);
    for (bits, rank) in [(8, 0), (4, 0), (2, 0), (2, 5)] {
        let layout = Layout::new(70, 100, bits, 64).unwrap();
        let owned = Owned::random(&mut random, layout, bits == 4, rank);
        let (w, ids) = (owned.matrix(), [69, 0, 33, 33]);
        let mut all = vec![0.0; 7000];
        dequantize(&w, &mut all, 3).unwrap();
        let mut some = vec![0.0; 400];
        gather(&w, &ids, &mut some, 1).unwrap();
        for (id, some) in ids.iter().zip(some.chunks(100)) {
            assert_eq!(some, &all[*id as usize * 100..][..100]);
        }
        for (at, &have) in all.iter().enumerate() {
            let (want, size) = owned.weight(at / 100, at % 100);
            let bound = f64::from(f32::EPSILON) * size * if rank == 0 { 0.5 } else { 8.0 };
            assert!((f64::from(have) - want).abs() <= bound);
        }
        for id in [-1, 70, i64::MAX, i64::MIN] {
            assert_eq!(gather(&w, &[0, id], &mut [0.0; 200], 1), Err(Fault::Row { id, rows: 70 }));
        }
    }
}

/// A stand-in for an OpenMP: every thread anew.
unsafe extern "C" fn parallel(
    work: unsafe extern "C" fn(*mut std::ffi::c_void),
    data: *mut std::ffi::c_void,
    threads: u32,
    _: u32,
) {
    let data = data.expose_provenance();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            // SAFETY: as the caller of `parallel` promised.
            scope.spawn(move || unsafe { work(std::ptr::with_exposed_provenance_mut(data)) });
        }
    });
}

#[test]
fn a_host_s_team_does_all_of_the_work_once() {
    let mut random = Random(11);
    let owned = Owned::random(&mut random, Layout::new(1000, 256, 4, 64).unwrap(), false, 3);
    let x = random.floats(20 * 256);
    let mut expected = vec![0.0; 20 * 1000];
    matmul(&owned.matrix(), 20, &x, &mut expected, 3).unwrap(); // on threads of its own
    // SAFETY: `parallel` keeps what `OpenMp` says, and stays.
    unsafe { join(parallel) };
    for threads in [1, 2, 5, 40] {
        let mut y = vec![f32::NAN; expected.len()];
        matmul(&owned.matrix(), 20, &x, &mut y, threads).unwrap();
        assert_eq!(y, expected);
    }
}
