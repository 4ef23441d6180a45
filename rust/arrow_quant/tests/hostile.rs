//! Whatever sizes, lengths and bit patterns come in: a fault or a result, never a panic, and nothing beside a buffer.

use aios_arrow_quant::gather;
use aios_arrow_quant::matmul::{self, Matrix};
use aios_arrow_quant::order::Layout;
use aios_arrow_quant::pack::{self, Packed, PackedMut};
use aios_arrow_quant::{gptq, hqq, low_rank, rtn};
use proptest::prelude::*;

/// The numbers at which sizes overflow.
fn any_size() -> impl Strategy<Value = usize> {
    prop_oneof![
        0usize..300,
        (0u32..64).prop_map(|bits| 1usize << bits),
        (0u32..64).prop_map(|bits| (1usize << bits) - 1),
        any::<usize>()
    ]
}

/// A matrix of small odd sizes with random bits in all its buffers.
#[derive(Clone, Debug)]
struct Noise {
    layout: Layout,
    codes: Vec<u8>,
    scales: Vec<u16>,
    zeros: Option<Vec<u16>>,
}

impl Noise {
    fn packed(&self) -> Packed<'_> {
        Packed::new(self.layout, &self.codes, &self.scales, self.zeros.as_deref()).unwrap()
    }
}

fn any_layout() -> impl Strategy<Value = Layout> {
    let bits = prop::sample::select(vec![2usize, 4, 8]);
    let group = prop::sample::select(vec![32usize, 64, 128]);
    (0usize..70, 0usize..200, bits, group)
        .prop_map(|(n, k, bits, group)| Layout::new(n, k, bits, group).unwrap())
}

fn bits16(count: usize) -> impl Strategy<Value = Vec<u16>> {
    prop::collection::vec(any::<u16>(), count)
}

fn any_noise() -> impl Strategy<Value = Noise> {
    any_layout().prop_flat_map(|layout| {
        let codes = prop::collection::vec(any::<u8>(), layout.codes_bytes());
        let zeros = prop::option::of(bits16(layout.scales()));
        (Just(layout), codes, bits16(layout.scales()), zeros)
            .prop_map(|(layout, codes, scales, zeros)| Noise { layout, codes, scales, zeros })
    })
}

/// Weights of any bit pattern, NaN and infinite ones now and then.
fn any_weights(count: usize) -> impl Strategy<Value = Vec<f32>> {
    let weight = prop_oneof![40 => -2.0f32..2.0, 1 => any::<u32>().prop_map(f32::from_bits)];
    prop_oneof![
        prop::collection::vec(-2.0f32..2.0, count),
        prop::collection::vec(weight, count),
        prop::collection::vec(any::<u32>().prop_map(f32::from_bits), count),
    ]
}

/// A buffer between two runs of known values.
struct Guarded<T>(Vec<T>);

const GUARD: usize = 64;

impl<T: Copy + PartialEq + std::fmt::Debug> Guarded<T> {
    fn new(count: usize, fill: T) -> Self {
        Guarded(vec![fill; count + 2 * GUARD])
    }

    fn inside(&mut self) -> &mut [T] {
        let end = self.0.len() - GUARD;
        &mut self.0[GUARD..end]
    }

    fn check(&self, fill: T) {
        assert!(self.0[..GUARD].iter().chain(&self.0[self.0.len() - GUARD..]).all(|one| *one == fill));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sizes_are_refused_or_every_derived_size_is_exact(
        rows in any_size(), columns in any_size(), bits in any_size(), group in any_size(),
        known in any::<bool>(),
    ) {
        let (bits, group) = if known { ([2, 4, 8][bits % 3], [32, 64, 128][group % 3]) } else { (bits, group) };
        if let Ok(layout) = Layout::new(rows, columns, bits, group) {
            let padded = layout.panels() as u128 * 32 * layout.columns_padded() as u128;
            prop_assert_eq!(layout.codes_bytes() as u128, padded * bits as u128 / 8);
            prop_assert_eq!(layout.scales() as u128, layout.panels() as u128 * layout.groups() as u128 * 32);
        }
    }

    #[test]
    fn buffers_of_another_length_are_refused(
        layout in any_layout(), codes in 0usize..2000, scales in 0usize..2000, zeros in prop::option::of(0usize..2000),
    ) {
        let (codes, scales) = (vec![0; codes], vec![0; scales]);
        let zeros = zeros.map(|count| vec![0; count]);
        let fits = codes.len() == layout.codes_bytes()
            && scales.len() == layout.scales()
            && zeros.as_ref().is_none_or(|zeros| zeros.len() == layout.scales());
        prop_assert_eq!(Packed::new(layout, &codes, &scales, zeros.as_deref()).is_ok(), fits);
    }

    #[test]
    fn any_bits_are_read_and_written_back_as_they_are(noise in any_noise()) {
        let layout = noise.layout;
        let (rows, columns, groups) = (layout.rows(), layout.columns(), layout.groups());
        let mut codes = vec![0; rows * columns];
        let (mut scales, mut zeros) = (vec![0; rows * groups], vec![0; rows * groups]);
        pack::unpack_codes(noise.packed(), &mut codes).unwrap();
        pack::unpack_scales(layout, &noise.scales, &mut scales).unwrap();
        if let Some(packed) = &noise.zeros {
            pack::unpack_scales(layout, packed, &mut zeros).unwrap();
        }
        prop_assert!(codes.iter().all(|&code| code <= layout.code_max()));
        let mut again = Noise {
            layout,
            codes: vec![0xFF; layout.codes_bytes()],
            scales: vec![0xFF; layout.scales()],
            zeros: noise.zeros.as_ref().map(|_| vec![0xFF; layout.scales()]),
        };
        let plain = noise.zeros.as_ref().map(|_| &zeros[..]);
        let mut out =
            PackedMut::new(layout, &mut again.codes, &mut again.scales, again.zeros.as_deref_mut()).unwrap();
        pack::pack(&codes, &scales, plain, &mut out).unwrap();
        let mut back = vec![0; rows * columns];
        pack::unpack_codes(again.packed(), &mut back).unwrap();
        prop_assert_eq!(codes, back);
    }

    #[test]
    fn a_packed_matrix_of_noise_is_used_without_a_panic(
        noise in any_noise(), m in 0usize..9, threads in any_size(), rank in 0usize..4, factor in any::<u16>(),
        ids in prop::collection::vec(any_size(), 0..9), short in any::<bool>(),
    ) {
        let layout = noise.layout;
        let (left, right) = (vec![factor; layout.rows() * rank], vec![factor; rank * layout.columns()]);
        let residual = (rank > 0).then_some((&left[..], &right[..], rank));
        let w = Matrix::new(noise.packed(), residual).unwrap();
        let x = vec![1.0f32; m * layout.columns()];
        let mut y = Guarded::new(m * layout.rows() + usize::from(short), 7.0f32);
        let answer = matmul::matmul(&w, m, &x, y.inside(), threads % 4);
        prop_assert_eq!(answer.is_err(), short);
        y.check(7.0);
        let ids: Vec<i64> = ids.iter().map(|&id| if short { id as i64 } else { (id % 70) as i64 }).collect();
        let known = ids.iter().all(|&id| id >= 0 && (id as usize) < layout.rows());
        let mut out = Guarded::new(ids.len() * layout.columns(), 7.0f32);
        prop_assert_eq!(gather::gather(&w, &ids, out.inside(), threads % 4).is_ok(), known);
        out.check(7.0);
        let mut whole = Guarded::new(layout.rows() * layout.columns(), 7.0f32);
        gather::dequantize(&w, whole.inside(), threads % 4).unwrap();
        whole.check(7.0);
    }

    #[test]
    fn any_weights_are_quantised_or_refused_by_place(
        (layout, weights) in any_layout().prop_flat_map(|layout| {
            (Just(layout), any_weights(layout.rows() * layout.columns()))
        }),
        symmetric in any::<bool>(), method in 0usize..4,
    ) {
        let mut codes = Guarded::new(layout.codes_bytes(), 0xA5u8);
        let (mut scales, mut zeros) = (Guarded::new(layout.scales(), 1u16), Guarded::new(layout.scales(), 1u16));
        let hessian: Vec<f64> = (0..layout.columns() * layout.columns())
            .map(|at| f64::from(u8::from(at / layout.columns() == at % layout.columns())))
            .collect();
        let zeros_inside = (!symmetric).then(|| zeros.inside());
        let mut out = PackedMut::new(layout, codes.inside(), scales.inside(), zeros_inside).unwrap();
        let answer = match method {
            0 => rtn::quantize(&weights, false, None, &mut out),
            1 => rtn::quantize(&weights, true, None, &mut out),
            2 => hqq::quantize(&weights, &mut out),
            _ => gptq::quantize(&weights, &hessian, 0.01, false, &mut out),
        };
        if weights.iter().any(|weight| !weight.is_finite()) {
            prop_assert!(answer.is_err());
        }
        codes.check(0xA5);
        scales.check(1);
        zeros.check(1);
        if answer.is_ok() && layout.rows() > 0 {
            let mut again = vec![0.0f32; layout.rows() * layout.columns()];
            let zeros = (!symmetric).then(|| &*zeros.inside());
            let packed = Packed::new(layout, codes.inside(), scales.inside(), zeros).unwrap();
            pack::dequantize(packed, &mut again).unwrap();
            prop_assert!(again.iter().all(|weight| weight.is_finite()), "a weight became NaN or infinite");
        }
    }

    #[test]
    fn a_residual_of_any_loss_is_found_or_refused(
        rows in 0usize..12, columns in 0usize..12, rank in 0usize..5, extra in 0usize..2,
        bits in prop::collection::vec(any::<u32>(), 144), hessian in prop::option::of(any::<u64>()), tame in any::<bool>(),
    ) {
        let lost: Vec<f32> = bits[..rows * columns]
            .iter()
            .map(|&bits| if tame { bits as f32 / u32::MAX as f32 } else { f32::from_bits(bits) })
            .collect();
        let (mut left, mut right) = (Guarded::new(rows * rank + extra, 9), Guarded::new(rank * columns, 9));
        let hessian = hessian.map(|bits| vec![f64::from_bits(bits); columns * columns]);
        let hessian = hessian.as_ref().map(|values| (&values[..], 0.01));
        let _ = low_rank::factors(&lost, columns, hessian, left.inside(), right.inside());
        left.check(9);
        right.check(9);
    }
}
