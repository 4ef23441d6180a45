//! CRC32C (Castagnoli): a table path that is the truth, and a hardware path that must equal it.

/// The Castagnoli polynomial, bits reversed. Source: Castagnoli, Braeuer, Herrmann (1993); RFC 3720, appendix B.4.
const POLYNOMIAL: u32 = 0x82F6_3B78;

/// `TABLES[k][b]`: the remainder of byte `b` followed by `k` zero bytes.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0u32; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut zeros = 1;
    while zeros < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[zeros - 1][byte];
            tables[zeros][byte] = (before >> 8) ^ tables[0][(before & 0xFF) as usize];
            byte += 1;
        }
        zeros += 1;
    }
    tables
}

/// The CRC32C of `data`, continued from `seed`, the CRC32C of what came before (0 at the start).
#[must_use]
pub fn crc32c(data: &[u8], seed: u32) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("sse4.2") {
        // SAFETY: SSE4.2 was detected on this machine just now.
        return unsafe { crc32c_sse42(data, seed) };
    }
    crc32c_table(data, seed)
}

/// The same by table, eight bytes at a time ("slicing by eight"); runs everywhere.
#[must_use]
pub fn crc32c_table(data: &[u8], seed: u32) -> u32 {
    let (words, tail) = data.as_chunks::<8>();
    let mut crc = !seed;
    for word in words {
        let mixed = u64::from_le_bytes(*word) ^ u64::from(crc);
        crc = mixed
            .to_le_bytes()
            .iter()
            .zip(TABLES.iter().rev())
            .fold(0, |sum, (&byte, table)| sum ^ table[usize::from(byte)]);
    }
    for &byte in tail {
        crc = (crc >> 8) ^ TABLES[0][usize::from(crc as u8 ^ byte)];
    }
    !crc
}

/// The same by the `crc32` instruction.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
fn crc32c_sse42(data: &[u8], seed: u32) -> u32 {
    use std::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u64};
    let (words, tail) = data.as_chunks::<8>();
    let crc = words.iter().fold(u64::from(!seed), |crc, word| _mm_crc32_u64(crc, u64::from_le_bytes(*word)));
    !tail.iter().fold(crc as u32, |crc, &byte| _mm_crc32_u8(crc, byte))
}
