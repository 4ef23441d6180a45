//! IEEE 754 half precision: exact to f32, and back by rounding to nearest, ties to even.

/// The f32 of the same value.
#[inline]
pub fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff);
    match magnitude {
        0x7c00.. => f32::from_bits(sign | 0x7f80_0000 | magnitude << 13),
        0x0400.. => f32::from_bits(sign | ((magnitude << 13) + ((127 - 15) << 23))),
        // A subnormal half is a multiple of 2^-24: exact in f32.
        _ => f32::from_bits(sign | (magnitude as f32 * (1.0 / (1u32 << 24) as f32)).to_bits()),
    }
}

/// The nearest half; beyond the largest finite half it is infinite, a NaN stays one.
#[inline]
pub fn f16_from_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    let half = match magnitude {
        0x7f80_0001.. => 0x7e00 | (magnitude >> 13 & 0x3ff) as u16,
        0x4780_0000.. => 0x7c00,
        0x3880_0000.. => {
            // Rounding may carry into the exponent, and from the largest finite half into infinity: as it should.
            let rounded = magnitude + 0x0fff + (magnitude >> 13 & 1);
            ((rounded >> 13) - ((127 - 15) << 10)) as u16
        }
        // Adding 0.5 puts the units of 2^-24 at the end of the mantissa and rounds to nearest even there.
        _ => (f32::from_bits(magnitude) + 0.5).to_bits() as u16,
    };
    sign | half
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_survives_the_round_trip() {
        for bits in 0..=u16::MAX {
            let value = f16_to_f32(bits);
            if value.is_nan() {
                assert!(f16_to_f32(f16_from_f32(value)).is_nan());
            } else {
                assert_eq!(f16_from_f32(value), bits, "{value}");
            }
        }
    }

    #[test]
    fn values_between_two_halves_go_to_the_nearer_and_ties_to_the_even() {
        for bits in 0..0x7bffu16 {
            let (low, high) = (f64::from(f16_to_f32(bits)), f64::from(f16_to_f32(bits + 1)));
            let middle = ((low + high) / 2.0) as f32;
            let even = if bits % 2 == 0 { bits } else { bits + 1 };
            assert_eq!(f16_from_f32(middle), even);
            assert_eq!(f16_from_f32(f32::from_bits(middle.to_bits() + 1)), bits + 1);
            assert_eq!(f16_from_f32(f32::from_bits(middle.to_bits() - 1)), bits);
            assert_eq!(f16_from_f32(-middle), 0x8000 | even);
        }
        assert_eq!(f16_from_f32(65520.0), 0x7c00);
        assert_eq!(f16_from_f32(65519.9), 0x7bff);
        assert_eq!(f16_from_f32(f32::INFINITY), 0x7c00);
    }
}
