//! Laws that hold for matrices of every size, random bit patterns included.

use aios_arrow_quant::fault::Fault;
use aios_arrow_quant::order::Layout;
use aios_arrow_quant::pack::{Packed, PackedMut, dequantize, pack, unpack_codes, unpack_scales};
use aios_arrow_quant::{gptq, hqq, low_rank, rtn};
use aios_half as half;
use proptest::prelude::*;

/// The buffers of a packed matrix, full of what was there before.
struct Buffers {
    layout: Layout,
    codes: Vec<u8>,
    scales: Vec<u16>,
    zeros: Option<Vec<u16>>,
}

impl Buffers {
    fn new(layout: Layout, symmetric: bool) -> Self {
        let scales = vec![0xABCD; layout.scales()];
        let zeros = (!symmetric).then(|| scales.clone());
        Buffers { layout, codes: vec![0xEF; layout.codes_bytes()], scales, zeros }
    }

    fn out(&mut self) -> PackedMut<'_> {
        PackedMut::new(self.layout, &mut self.codes, &mut self.scales, self.zeros.as_deref_mut()).unwrap()
    }

    fn packed(&self) -> Packed<'_> {
        Packed::new(self.layout, &self.codes, &self.scales, self.zeros.as_deref()).unwrap()
    }

    fn weights(&self) -> Vec<f32> {
        let mut weights = vec![f32::NAN; self.layout.rows() * self.layout.columns()];
        dequantize(self.packed(), &mut weights).unwrap();
        weights
    }
}

fn layouts() -> impl Strategy<Value = Layout> {
    (0usize..70, 0usize..200, prop::sample::select(vec![8, 4, 2]), prop::sample::select(vec![32, 64, 128]))
        .prop_map(|(rows, columns, bits, group)| Layout::new(rows, columns, bits, group).unwrap())
}

/// Numbers by a seed, so that a failing case stays short.
fn numbers(count: usize, mut seed: u64) -> Vec<u32> {
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 32) as u32
    };
    (0..count).map(|_| next()).collect()
}

fn uniform(count: usize, seed: u64) -> Vec<f32> {
    numbers(count, seed).into_iter().map(|bits| bits as f32 / u32::MAX as f32 - 0.5).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_packed_is_unpacked_and_lies_where_place_says(layout in layouts(), symmetric: bool, seed: u64) {
        let codes: Vec<u8> = numbers(layout.rows() * layout.columns(), seed)
            .into_iter().map(|bits| bits as u8 & layout.code_max()).collect();
        let scales: Vec<u16> = numbers(layout.rows() * layout.groups(), !seed).into_iter().map(|b| b as u16).collect();
        let zeros = (!symmetric).then(|| scales.iter().map(|bits| bits ^ 0x5555).collect::<Vec<u16>>());
        let mut buffers = Buffers::new(layout, symmetric);
        pack(&codes, &scales, zeros.as_deref(), &mut buffers.out()).unwrap();
        for (at, &code) in codes.iter().enumerate() {
            let (byte, bit) = layout.place(at / layout.columns(), at % layout.columns());
            prop_assert_eq!(buffers.codes[byte] >> bit & layout.code_max(), code);
        }
        let (mut codes_back, mut scales_back) = (vec![0; codes.len()], vec![0; scales.len()]);
        unpack_codes(buffers.packed(), &mut codes_back).unwrap();
        unpack_scales(layout, &buffers.scales, &mut scales_back).unwrap();
        prop_assert_eq!(codes_back, codes);
        prop_assert_eq!(scales_back, scales);
    }

    #[test]
    fn padding_is_zero(layout in layouts(), symmetric: bool, seed: u64) {
        let weights = uniform(layout.rows() * layout.columns(), seed);
        let mut buffers = Buffers::new(layout, symmetric);
        rtn::quantize(&weights, false, None, &mut buffers.out()).unwrap();
        for row in 0..layout.panels() * 32 {
            for column in 0..layout.columns_padded() {
                if row >= layout.rows() || column >= layout.columns() {
                    let (byte, bit) = layout.place(row, column);
                    prop_assert_eq!(buffers.codes[byte] >> bit & layout.code_max(), 0);
                }
            }
            for group in 0..layout.groups() {
                let at = row / 32 * layout.panel_scales() + group * 32 + row % 32;
                let padded = row >= layout.rows();
                prop_assert!(!padded || buffers.scales[at] == 0);
                prop_assert!(!padded || buffers.zeros.as_ref().is_none_or(|zeros| zeros[at] == 0));
            }
        }
    }

    #[test]
    fn rounding_errs_by_half_a_step_at_most(layout in layouts(), symmetric: bool, seed: u64) {
        let weights = uniform(layout.rows() * layout.columns(), seed);
        let mut buffers = Buffers::new(layout, symmetric);
        rtn::quantize(&weights, false, None, &mut buffers.out()).unwrap();
        for (at, left) in buffers.weights().into_iter().enumerate() {
            let (row, group) = (at / layout.columns(), at % layout.columns() / layout.group_size());
            let step = half::widen(buffers.scales[row / 32 * layout.panel_scales() + group * 32 + row % 32]).abs();
            // The shorter side of a symmetric grid ends a whole step before the range may.
            let most = if symmetric { step } else { 0.5 * step };
            prop_assert!((weights[at] - left).abs() <= most * 1.001 + 0.5 * 2f32.powi(-11) * 1.5 + 1e-6);
        }
    }

    #[test]
    fn any_bits_are_quantised_or_refused_by_name(layout in layouts(), seed: u64) {
        let bits = numbers(layout.rows() * layout.columns(), seed);
        let weights: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        let first_unfit = weights.iter().position(|weight| weight.is_nan() || weight.abs() > half::MAX);
        for method in [
            (|weights, out| rtn::quantize(weights, true, None, out)) as fn(&[f32], &mut PackedMut<'_>) -> _,
            hqq::quantize,
        ] {
            let result = method(&weights, &mut Buffers::new(layout, false).out());
            match (first_unfit, result) {
                (None, result) => prop_assert_eq!(result, Ok(())),
                (Some(at), Err(Fault::Weight { row, column, .. })) => {
                    prop_assert_eq!((row, column), (at / layout.columns(), at % layout.columns()));
                }
                (Some(_), result) => prop_assert!(false, "{result:?}"),
            }
        }
        let fit: Vec<f32> = weights.iter().map(|w| if w.is_nan() { 0.0 } else { w.clamp(-half::MAX, half::MAX) })
            .collect();
        let mut buffers = Buffers::new(layout, false);
        rtn::quantize(&fit, true, None, &mut buffers.out()).unwrap();
        prop_assert!(buffers.weights().iter().all(|weight| weight.is_finite()));
    }
}

#[test]
fn gptq_and_residuals_refuse_what_does_not_fit() {
    let layout = Layout::new(3, 5, 4, 32).unwrap();
    let mut buffers = Buffers::new(layout, false);
    assert!(gptq::quantize(&[0.0; 15], &[0.0; 24], 0.01, true, &mut buffers.out()).is_err());
    assert!(gptq::quantize(&[0.0; 14], &[0.0; 25], 0.01, true, &mut buffers.out()).is_err());
    assert!(gptq::quantize(&[0.0; 15], &[0.0; 25], 0.01, true, &mut buffers.out()).is_ok());
    assert_eq!(low_rank::factors(&[0.0; 15], 5, None, &mut [], &mut []), Err(Fault::Rank(0)));
    assert_eq!(low_rank::factors(&[0.0; 15], 5, None, &mut [0; 12], &mut [0; 20]), Err(Fault::Rank(4)));
    assert!(low_rank::factors(&[0.0; 15], 5, None, &mut [0; 3], &mut [0; 6]).is_err());
    assert!(low_rank::factors(&[0.0; 15], 5, None, &mut [0; 3], &mut [0; 5]).is_ok());
    assert!(low_rank::factors(&[], 0, None, &mut [], &mut []).is_err());
}
