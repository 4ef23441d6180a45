//! The laws of CRC32C: published vectors, both paths equal, and continuation.

use aios_crc32c::{crc32c, crc32c_table};

/// Bytes from a linear congruential generator, so that a failure can be repeated.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_u32;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

#[test]
fn published_vectors_hold() {
    // RFC 3720, appendix B.4, and the customary check value.
    let up: Vec<u8> = (0..32).collect();
    let down: Vec<u8> = (0..32).rev().collect();
    let cases: [(&[u8], u32); 6] = [
        (b"", 0),
        (b"123456789", 0xE306_9283),
        (&[0; 32], 0x8A91_36AA),
        (&[0xFF; 32], 0x62A8_AB43),
        (&up, 0x46DD_794E),
        (&down, 0x113F_DB5C),
    ];
    for (data, expected) in cases {
        assert_eq!(crc32c(data, 0), expected);
        assert_eq!(crc32c_table(data, 0), expected);
    }
}

#[test]
fn both_paths_agree_at_every_length_and_alignment() {
    let data = noise(300);
    for start in 0..16 {
        for end in start..data.len() {
            let slice = &data[start..end];
            assert_eq!(crc32c(slice, 7), crc32c_table(slice, 7), "{start}..{end}");
        }
    }
}

#[test]
fn a_sum_continues_over_any_split() {
    let data = noise(100);
    let whole = crc32c(&data, 0);
    for split in 0..=data.len() {
        assert_eq!(crc32c(&data[split..], crc32c(&data[..split], 0)), whole);
    }
}
