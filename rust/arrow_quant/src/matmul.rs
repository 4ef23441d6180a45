//! Activations times a packed matrix: y[m, n] = sum over k of x[m, k] * w[n, k], read in the packed order.
//!
//! Weights become f32 exactly as the order defines them, and sums are f32. A panel (32 rows of w) is unpacked piece
//! by piece into a buffer that stays in the first-level cache, while a tile of sums in registers runs over the rows
//! of x; a single row of x meets the codes in registers, without the buffer. The same source is compiled for every
//! instruction set; they differ in the order of sums and in fused rounding only.

mod isa;
mod kernel;
mod matrix;
#[cfg(test)]
mod tests;
mod threads;

pub use isa::Isa;
pub use matrix::{Matrix, Residual};
pub use threads::{OpenMp, join};
pub(crate) use threads::{each_chunk, worth};

use crate::fault::{Fault, length};
use crate::order::PANEL_ROWS;
use kernel::{Inputs, Scratch};
use matrix::Lanes;

/// Rows of x that share one unpacking: their sums over a panel take 24 KiB, and unpacking costs 2 % of their products.
const ROWS_MAX: usize = 192;
/// Products that make one more thread worth waking: some 10 us of them.
const PRODUCTS_PER_THREAD: usize = 1 << 18;

/// y = x w^T plus the residual's share, for row-major x (m, columns) and y (m, rows), with the instructions at hand.
pub fn matmul(w: &Matrix<'_>, m: usize, x: &[f32], y: &mut [f32], threads: usize) -> Result<(), Fault> {
    matmul_on(Isa::here(), w, m, x, y, threads)
}

/// `matmul` on the given instruction set.
pub fn matmul_on(
    isa: Isa,
    w: &Matrix<'_>,
    m: usize,
    x: &[f32],
    y: &mut [f32],
    threads: usize,
) -> Result<(), Fault> {
    length("x", m.saturating_mul(w.columns()), x.len())?;
    length("y", m.saturating_mul(w.rows()), y.len())?;
    if y.is_empty() || x.is_empty() {
        y.fill(0.0); // a sum of nothing
        return Ok(());
    }
    for (x, y) in x.chunks(ROWS_MAX * w.columns()).zip(y.chunks_mut(ROWS_MAX * w.rows())) {
        multiply(isa, w, x, y, threads);
    }
    Ok(())
}

/// One chunk of at most `ROWS_MAX` rows.
fn multiply(isa: Isa, w: &Matrix<'_>, x: &[f32], y: &mut [f32], threads: usize) {
    let m = x.len() / w.columns();
    let tiling = isa.tiling(m);
    let low = w.residual().map_or_else(Vec::new, |residual| isa.project(residual, x));
    let packed = if m == 1 { None } else { Some((tiling.pack(x), tiling.pack(&low))) };
    let (x, low) = packed.as_ref().map_or((x, low.as_slice()), |(x, low)| (x, low));
    let totals: Vec<f32> = match m {
        1 => x.chunks(w.packed().layout.group_size()).map(|x| x.iter().sum()).collect(),
        _ => Vec::new(),
    };
    let inputs = Inputs { x, low, totals: &totals, tiling };
    let products = m * w.rows() * w.columns(); // below 192 times the weights, which a `Layout` keeps addressable
    let y = Columns { start: y.as_mut_ptr(), rows: m, width: w.rows() };
    let threads = worth(products, PRODUCTS_PER_THREAD, threads);
    threads::each(
        w.rows().div_ceil(PANEL_ROWS),
        threads,
        || Scratch::new(m),
        |scratch, panel| {
            isa.panel(w, panel, inputs, scratch);
            // SAFETY: `each` hands out every panel once, so that no two calls write the same columns; `y` is borrowed
            // mutably until all have returned.
            unsafe { y.put(panel, &scratch.sums) };
        },
    );
}

/// A row-major matrix that several threads fill, each other columns.
struct Columns {
    start: *mut f32,
    rows: usize,
    width: usize,
}

// SAFETY: the pointer is only written through `put`, whose caller keeps the columns of threads apart.
unsafe impl Sync for Columns {}

impl Columns {
    /// Writes the columns of one panel.
    ///
    /// # Safety
    /// `start` points to rows * width floats, and nobody else touches the columns of this panel meanwhile.
    unsafe fn put(&self, panel: usize, sums: &[Lanes]) {
        let from = panel * PANEL_ROWS;
        let count = PANEL_ROWS.min(self.width - from);
        for (row, sums) in sums.iter().enumerate().take(self.rows) {
            // SAFETY: row < rows and from + count <= width, so this lies within what `start` points to; `sums`
            // is other memory.
            unsafe { self.start.add(row * self.width + from).copy_from_nonoverlapping(sums.as_ptr(), count) };
        }
    }
}
