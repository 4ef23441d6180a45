#![cfg(target_arch = "x86_64")]

use super::*;
use crate::code::tests::noise;
use crate::dots::x86::Avx2;
use crate::rotation::splitmix;

fn codes(seed: u64, rows: usize, stride: usize, full: bool) -> Vec<u8> {
    let mut state = seed;
    (0..rows * stride).map(|_| if full { 255 } else { splitmix(&mut state) as u8 }).collect()
}

fn integers(seed: u64, count: usize, full: bool) -> Vec<i8> {
    let mut state = seed;
    let any = |state: &mut u64| (splitmix(state) % 127) as i8 - 63;
    (0..count).map(|_| if full { 63 } else { any(&mut state) }).collect()
}

/// Everything that `Dots` makes of rows and queries of so many steps.
#[inline(always)]
fn everything<D: Dots>(steps: usize, full: bool) -> (Vec<i32>, Vec<u8>, Vec<i32>, u32) {
    let stride = steps * STEP_BYTES;
    let rows = codes(steps as u64, 2 * GROUP, stride, full);
    let queries: Vec<Vec<i8>> = (0..4).map(|seed| integers(seed, steps * STEP, full)).collect();
    let mut sums = Vec::new();
    for four in rows.chunks_exact(4 * stride) {
        let (a, b) = four.split_at(2 * stride);
        let ((a, b), (c, d)) = (a.split_at(stride), b.split_at(stride));
        sums.extend(D::four([a, b, c, d], &queries[0]));
    }
    let mut groups = vec![0; 2 * GROUP * steps * STEP];
    let (one, two) = groups.split_at_mut(GROUP * steps * STEP);
    D::spread(&rows[..GROUP * stride], stride, one);
    D::spread(&rows[GROUP * stride..], stride, two);
    let tiles = D::tile([one, two], [&queries[0], &queries[1], &queries[2], &queries[3]]);
    let (factors, offsets, errors) = ([0.5; GROUP], [0.25; GROUP], [1.0; GROUP]);
    let shapes = Shapes { factors: &factors, offsets: &offsets, errors: &errors };
    let query = Query { codes: Vec::new(), scale: 0.5, bias: 2.0, reach: 0.5, shift: 0.0, inverse_norm: 1.0 };
    let (mask, _) = D::sift(&tiles[0], shapes, &query, tiles[0][3] as f32 * 0.25);
    (sums, groups, tiles.concat(), mask)
}

#[target_feature(enable = "avx2,fma")]
fn with_avx2(steps: usize, full: bool) -> (Vec<i32>, Vec<u8>, Vec<i32>, u32) {
    everything::<Avx2>(steps, full)
}

#[test]
fn vector_instructions_equal_the_portable_code_to_the_bit_also_at_the_largest_values() {
    if !std::arch::is_x86_feature_detected!("avx2") || !std::arch::is_x86_feature_detected!("fma") {
        return;
    }
    for steps in [1, 2, 6, 8, 9, 17, 64] {
        for full in [false, true] {
            let wanted = everything::<Portable>(steps, full);
            // SAFETY: avx2 and fma were detected just now.
            let found = unsafe { with_avx2(steps, full) };
            assert_eq!(found, wanted, "{steps} {full}");
            // A tile says the same as four rows do.
            assert_eq!(wanted.0[..GROUP], wanted.2[..GROUP]);
            assert_eq!(wanted.0[GROUP..], wanted.2[QUERIES * GROUP..][..GROUP]);
        }
    }
}

#[test]
fn products_and_distances_are_those_of_double_precision() {
    for count in [0, 1, 31, 32, 33, 100, 384] {
        let (a, b) = (noise(1, count), noise(2, count));
        let pairs = || a.iter().zip(&b).map(|(a, b)| (f64::from(*a), f64::from(*b)));
        let (dot, far): (f64, f64) =
            (pairs().map(|(a, b)| a * b).sum(), pairs().map(|(a, b)| (a - b) * (a - b)).sum());
        assert!((f64::from(Portable::product(&a, &b)) - dot).abs() < 1e-4);
        assert!((f64::from(Portable::distance(&a, &b)) - far).abs() < 1e-3);
    }
}
