//! The three products of a linear layer's training step: outputs and input gradients as integers of 8 bits, weight
//! gradients as integers of 12.
//!
//! y[m, n] = sum over d of x[m, d] * w[n, d]: a row of x becomes bytes with one scale, and so does a row of w, once
//! for all products with it. Their sums are exact, so that every machine gives the same bits. A weight gradient sums
//! over tokens, whose scales differ, and is what the optimiser adds up: it keeps the accuracy of f32 but for a share
//! far below the noise of a batch (`halves`).
//! Source: Wortsman et al. 2023, "Stable and low-precision training for large-scale vision-language models"
//! (SwitchBack).

mod bytes;
mod halves;
mod pack;
#[cfg(test)]
mod tests;

use std::cell::RefCell;

use crate::fault::{Fault, length};
use crate::matmul::{Isa, each_chunk, worth};
use bytes::{HEIGHT, Tiles};
use halves::{Columns, Line, Part};
pub use pack::{Order, packed_len};
use pack::{panel_len, quantise};

/// Outputs of a panel: two vectors of sums.
const WIDTH: usize = 16;
/// Columns that a step multiplies at once.
const QUAD: usize = 4;
/// Rows of x that one thread takes at a time: their bytes stay in its second-level cache, and of the 1024 rows of a
/// usual piece of a batch two threads get as many.
const ROWS: usize = 13 * HEIGHT;
/// The longest sum: of products up to 255 * 128, it fits 31 bits.
pub const DEPTH_MAX: usize = 1 << 16;
/// Values that make a second thread worth waking.
const VALUES_PER_THREAD: usize = 1 << 15;
/// Products that make a second thread worth waking: some 10 us of them.
const PRODUCTS_PER_THREAD: usize = 1 << 19;

thread_local! {
    /// Kept from product to product: pages that are new cost more than filling them.
    static WORDS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    static COLUMNS: RefCell<Columns> = RefCell::default();
    static LINES: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Asks for the cache lines of some columns of all rows of `out`, which are written when a tile is done.
#[inline(always)]
fn foresee(out: &[f32], width: usize, column: usize) {
    for row in out.chunks_exact(width) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch of any address is harmless.
        #[allow(unsafe_code)]
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(
                row[column..].as_ptr().cast(),
            );
        }
    }
}

/// Makes the bytes of a weight with so many outputs, of which each sums over `depth` values, for `product`.
pub fn pack(
    w: &[f32],
    outputs: usize,
    depth: usize,
    order: Order,
    packed: &mut [u8],
    threads: usize,
) -> Result<(), Fault> {
    length("weight", outputs.saturating_mul(depth), w.len())?;
    length("packed weight", packed_len(outputs, depth)?, packed.len())?;
    let threads = worth(w.len(), VALUES_PER_THREAD, threads);
    each_chunk(packed, panel_len(depth), threads, |panel, bytes| {
        pack::panel(w, outputs, depth, order, panel * WIDTH, bytes);
    });
    Ok(())
}

/// out (m, outputs) = x (m, depth) times a packed weight transposed, row-major, with the instructions at hand.
///
/// A row of x or of the weight that holds a value that is not finite gives sums that are not.
pub fn product(
    x: &[f32],
    packed: &[u8],
    (depth, outputs): (usize, usize),
    out: &mut [f32],
    threads: usize,
) -> Result<(), Fault> {
    product_on(Isa::here(), x, packed, (depth, outputs), out, threads)
}

fn product_on(
    isa: Isa,
    x: &[f32],
    packed: &[u8],
    (depth, outputs): (usize, usize),
    out: &mut [f32],
    threads: usize,
) -> Result<(), Fault> {
    length("packed weight", packed_len(outputs, depth)?, packed.len())?;
    let m = out.len().checked_div(outputs).unwrap_or(0);
    length("out", m * outputs, out.len())?;
    length("x", m.saturating_mul(depth), x.len())?;
    if out.is_empty() || depth == 0 {
        out.fill(0.0); // a sum of nothing
        return Ok(());
    }
    let threads = worth(m.saturating_mul(outputs).saturating_mul(depth), PRODUCTS_PER_THREAD, threads);
    let tiles = Tiles::new(isa, depth);
    each_chunk(out, ROWS * outputs, threads, |block, out| {
        let rows = out.len() / outputs;
        let x = &x[block * ROWS * depth..][..rows * depth];
        WORDS.with_borrow_mut(|words| {
            let mut scales = [0.0; ROWS];
            words.resize(ROWS / HEIGHT * tiles.words(), 0);
            let strips = words.chunks_exact_mut(tiles.words()).zip(scales.chunks_mut(HEIGHT));
            for (x, (words, scales)) in x.chunks(HEIGHT * depth).zip(strips) {
                quantise(x, depth, words, scales);
            }
            for (panel, packed) in packed.chunks_exact(panel_len(depth)).enumerate() {
                tiles.panel(words, &scales[..rows], packed, out, outputs, panel * WIDTH);
            }
        });
    });
    Ok(())
}

/// out (n, k) = g (m, n) transposed times x (m, k), row-major, with the instructions at hand.
///
/// A column of `halves::TOKENS` rows of g or x that holds a value that is not finite gives sums that are not.
pub fn weight_gradient(
    g: &[f32],
    x: &[f32],
    (m, n, k): (usize, usize, usize),
    out: &mut [f32],
    threads: usize,
) -> Result<(), Fault> {
    weight_gradient_on(Isa::here(), g, x, (m, n, k), out, threads)
}

fn weight_gradient_on(
    isa: Isa,
    g: &[f32],
    x: &[f32],
    (m, n, k): (usize, usize, usize),
    out: &mut [f32],
    threads: usize,
) -> Result<(), Fault> {
    length("gradient", m.saturating_mul(n), g.len())?;
    length("x", m.saturating_mul(k), x.len())?;
    length("out", n.saturating_mul(k), out.len())?;
    if out.is_empty() || m == 0 {
        out.fill(0.0); // a sum of nothing
        return Ok(());
    }
    let threads = worth(m.saturating_mul(n).saturating_mul(k), PRODUCTS_PER_THREAD, threads);
    LINES.with_borrow_mut(|lines| {
        let rounds = g.chunks(halves::TOKENS * n).zip(x.chunks(halves::TOKENS * k));
        for (round, (g, x)) in rounds.enumerate() {
            let part = |first| Part { values: x, columns: k, first };
            lines.resize(k.div_ceil(WIDTH) * part(0).lines(), Line::default());
            each_chunk(lines, halves::PANELS * part(0).lines(), threads, |at, lines| {
                halves::panels(part(at * halves::PANELS * WIDTH), lines);
            });
            each_chunk(out, halves::ROWS * k, threads, |block, out| {
                let g = Part { values: g, columns: n, first: block * halves::ROWS };
                COLUMNS.with_borrow_mut(|columns| halves::rows(isa, g, columns, lines, round == 0, k, out));
            });
        }
    });
    Ok(())
}
