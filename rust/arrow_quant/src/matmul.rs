//! Activations times a packed matrix: y[m, n] = sum over k of x[m, k] * w[n, k], read in the packed order.
//!
//! Weights become f32 exactly as the order defines them, and sums are f32. A panel (32 rows of w) is unpacked piece
//! by piece into a buffer that stays in the first-level cache, while a tile of sums in registers runs over the rows
//! of x; a single row of x meets the codes in registers, without the buffer. The same source is compiled for every
//! instruction set; they differ in the order of sums and in fused rounding only.

mod activations;
mod integer;
mod isa;
mod kernel;
mod matrix;
pub mod peak;
mod single;
#[cfg(test)]
mod tests;
mod threads;
mod words;

pub use activations::Width;
pub use isa::Isa;
pub use matrix::{Matrix, Residual};
pub use threads::{OpenMp, join};
pub(crate) use threads::{each_chunk, worth};

use crate::fault::{Fault, length};
use crate::order::PANEL_ROWS;
use activations::{Activations, Form};
use kernel::{Inputs, Scratch};
use matrix::Lanes;

/// Rows of x that share one unpacking: their sums over a panel take 24 KiB, and unpacking costs 2 % of their products.
const ROWS_MAX: usize = 192;
/// Products that make one more thread worth waking: some 10 us of them.
const PRODUCTS_PER_THREAD: usize = 1 << 18;
/// Runs of neighbouring panels that each thread takes of a product with one row: few, and none waits long for another.
const RUNS_PER_THREAD: usize = 4;

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

/// One of several products with the same x: y (m, rows) = x w^T.
pub struct Product<'a, 'y> {
    /// The matrix, as wide as x.
    pub w: Matrix<'a>,
    /// Where the result goes, row-major.
    pub y: &'y mut [f32],
}

/// Several products of integer activations, made once of row-major x (m, columns), with the instructions at hand.
pub fn matmul_integer(
    products: &mut [Product<'_, '_>],
    m: usize,
    x: &[f32],
    width: Width,
    threads: usize,
) -> Result<(), Fault> {
    matmul_integer_on(Isa::here(), products, m, x, width, threads)
}

/// `matmul_integer` on the given instruction set; without a residual the bits of y are the same on all of them.
pub fn matmul_integer_on(
    isa: Isa,
    products: &mut [Product<'_, '_>],
    m: usize,
    x: &[f32],
    width: Width,
    threads: usize,
) -> Result<(), Fault> {
    for Product { w, y } in &mut *products {
        length("x", m.saturating_mul(w.columns()), x.len())?;
        length("y", m.saturating_mul(w.rows()), y.len())?;
        if x.is_empty() {
            y.fill(0.0); // a sum of nothing
        }
    }
    if x.is_empty() || products.is_empty() {
        return Ok(());
    }
    let columns = x.len() / m;
    let mut left: Vec<_> = products.iter_mut().map(|product| (product.w, &mut *product.y)).collect();
    for x in x.chunks(ROWS_MAX * columns) {
        let rows = x.len() / columns;
        let now = left.iter_mut().map(|(w, y)| {
            let (now, later) = std::mem::take(y).split_at_mut(rows * w.rows());
            *y = later;
            Task::new(isa, *w, now, rows, x, width)
        });
        multiply_integers(isa, &now.collect::<Vec<_>>(), x, rows, threads);
    }
    Ok(())
}

/// One chunk of at most `ROWS_MAX` rows of one product.
struct Task<'a> {
    w: Matrix<'a>,
    form: Form,
    low: Vec<f32>,
    y: Columns,
}

impl<'a> Task<'a> {
    fn new(isa: Isa, w: Matrix<'a>, y: &mut [f32], rows: usize, x: &[f32], width: Width) -> Self {
        let low = w.residual().map_or_else(Vec::new, |residual| isa.project(residual, x));
        let form = Form::of(width, w.packed().layout.bits(), rows);
        Task {
            w,
            form,
            low: if rows == 1 { low } else { isa.tiling_of(form, rows).pack(&low) },
            y: Columns { start: y.as_mut_ptr(), rows, width: w.rows() },
        }
    }

    fn panels(&self) -> usize {
        self.w.rows().div_ceil(PANEL_ROWS)
    }
}

fn multiply_integers(isa: Isa, tasks: &[Task<'_>], x: &[f32], rows: usize, threads: usize) {
    let mut inputs: Vec<Activations> = Vec::new();
    let mut chosen = Vec::with_capacity(tasks.len());
    for task in tasks {
        let group_size = task.w.packed().layout.group_size();
        let same = |input: &Activations| (input.form, input.group_size) == (task.form, group_size);
        chosen.push(inputs.iter().position(same).unwrap_or_else(|| {
            let tiling = isa.tiling_of(task.form, rows);
            inputs.push(Activations::quantise(isa, x, task.form, group_size, tiling, threads));
            inputs.len() - 1
        }));
    }
    let rank =
        tasks.iter().filter_map(|task| task.w.residual()).map(|residual| residual.rank).max().unwrap_or(0);
    let products: usize = tasks.iter().map(|task| x.len() * task.w.rows()).sum();
    let threads = worth(products, PRODUCTS_PER_THREAD, threads);
    let panels: usize = tasks.iter().map(Task::panels).sum();
    // What one row asks for ahead lies in the next panel soon: it should be for the same thread.
    let run = if rows == 1 { panels.div_ceil(threads * RUNS_PER_THREAD).max(1) } else { 1 };
    threads::each(
        panels.div_ceil(run),
        threads,
        || integer::Scratch::new(rows, rank),
        |scratch, at| {
            for panel in at * run..panels.min((at + 1) * run) {
                let (task, input, panel) = place(tasks, &chosen, panel);
                isa.integer_panel(&task.w, panel, &inputs[input], &task.low, scratch);
                // SAFETY: `each` hands out every panel of every task once, so that no two calls write the same
                // columns; every y is borrowed mutably until all have returned.
                unsafe { task.y.put(panel, &scratch.sums) };
            }
        },
    );
}

/// The task that the panel of this number is of, its input, and the panel's number in it.
fn place<'t, 'a>(tasks: &'t [Task<'a>], chosen: &[usize], mut panel: usize) -> (&'t Task<'a>, usize, usize) {
    let mut at = 0;
    while panel >= tasks[at].panels() {
        panel -= tasks[at].panels();
        at += 1;
    }
    (&tasks[at], chosen[at], panel)
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
            // is other memory. A whole panel's count is known here, which spares a call for each row.
            unsafe {
                let into = self.start.add(row * self.width + from);
                if count == PANEL_ROWS {
                    into.copy_from_nonoverlapping(sums.as_ptr(), PANEL_ROWS);
                } else {
                    into.copy_from_nonoverlapping(sums.as_ptr(), count);
                }
            }
        }
    }
}
