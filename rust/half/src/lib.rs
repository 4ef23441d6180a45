//! f16 (IEEE binary16) as bit patterns, to and from f32.

/// The largest finite f16.
pub const MAX: f32 = 65504.0;

/// The exact f32 of an f16.
#[inline(always)]
#[must_use]
pub fn widen(half: u16) -> f32 {
    // Exponent and fraction at their places in f32, then times 2^112 to correct the bias: exact, subnormals too.
    let magnitude = f32::from_bits(u32::from(half & 0x7FFF) << 13) * f32::from_bits((127 + 112) << 23);
    let special = if half & 0x7C00 == 0x7C00 { 0x7F80_0000 } else { 0 }; // infinities and NaN
    f32::from_bits(magnitude.to_bits() | special | u32::from(half & 0x8000) << 16)
}

/// The nearest f16, ties to even; beyond the largest it is infinite.
#[inline(always)]
#[must_use]
pub fn narrow(value: f32) -> u16 {
    let sign = (value.to_bits() >> 16) as u16 & 0x8000;
    let magnitude = value.abs();
    let bits = if magnitude.is_nan() {
        0x7E00
    } else if magnitude >= 65520.0 {
        0x7C00
    } else if magnitude < f32::from_bits((127 - 14) << 23) {
        // A subnormal counts units of 2^-24: adding 2^-1 lines that unit up with the last bit of f32's fraction.
        (magnitude + 0.5).to_bits().wrapping_sub(0.5f32.to_bits()) as u16
    } else {
        let bits = magnitude.to_bits();
        let even = (bits >> 13) & 1;
        ((bits + 0xFFF + even - ((127 - 15) << 23)) >> 13) as u16
    };
    sign | bits
}

/// `narrow` and back: the f32 that storing it keeps.
#[inline(always)]
#[must_use]
pub fn round(value: f32) -> f32 {
    widen(narrow(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_survives_the_way_there_and_back() {
        for half in 0..=u16::MAX {
            let wide = widen(half);
            if half & 0x7FFF > 0x7C00 {
                assert!(wide.is_nan() && widen(narrow(wide)).is_nan());
            } else {
                assert_eq!(narrow(wide), half);
            }
        }
    }

    #[test]
    fn narrowing_goes_to_the_nearest_and_ties_to_even() {
        for half in 0..0x7BFF_u16 {
            let (low, high) = (widen(half), widen(half + 1));
            let middle = low + (high - low) / 2.0; // exact: f32 has 13 more bits
            assert_eq!(narrow(middle), half + (half & 1));
            assert_eq!(narrow(middle.next_down()), half);
            assert_eq!(narrow(middle.next_up()), half + 1);
            assert_eq!(narrow(-middle), (half + (half & 1)) | 0x8000);
        }
        assert_eq!(narrow(65519.996), 0x7BFF);
        assert_eq!(narrow(65520.0), 0x7C00);
        assert_eq!(narrow(f32::INFINITY), 0x7C00);
        assert_eq!(narrow(0.0), 0);
        assert_eq!(narrow(-0.0), 0x8000);
    }
}
