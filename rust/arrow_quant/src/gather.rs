//! Rows of a packed matrix by number: an embedding, or the whole matrix.

use crate::fault::Fault;
use crate::half::widen;
use crate::isa::{Work, fastest};
use crate::matmul::{Matrix, each_chunk, worth};
use crate::order::{BLOCK_BYTES, PANEL_ROWS, spread};

/// Weights that make one more thread worth waking.
const WEIGHTS_PER_THREAD: usize = 1 << 16;

/// out (ids, columns) = the rows that `ids` name, residual included.
pub fn gather(w: &Matrix<'_>, ids: &[i64], out: &mut [f32], threads: usize) -> Result<(), Fault> {
    let row = |id: i64| usize::try_from(id).ok().filter(|&row| row < w.rows());
    if let Some(&id) = ids.iter().find(|&&id| row(id).is_none()) {
        return Err(Fault::Row { id, rows: w.rows() });
    }
    crate::fault::length("the gathered rows", ids.len().saturating_mul(w.columns()), out.len())?;
    fill(w, out, threads, |index| row(ids[index]).unwrap_or_default());
    Ok(())
}

/// out (rows, columns) = the whole matrix, residual included.
pub fn dequantize(w: &Matrix<'_>, out: &mut [f32], threads: usize) -> Result<(), Fault> {
    crate::fault::length("the weights", w.rows() * w.columns(), out.len())?;
    fill(w, out, threads, |row| row);
    Ok(())
}

/// Fills the rows of `out` with the matrix's rows that `row` names.
fn fill(w: &Matrix<'_>, out: &mut [f32], threads: usize, row: impl Fn(usize) -> usize + Sync) {
    if out.is_empty() {
        return;
    }
    let threads = worth(out.len(), WEIGHTS_PER_THREAD, threads);
    each_chunk(out, PANEL_ROWS * w.columns(), threads, |chunk, out| {
        for (index, out) in out.chunks_exact_mut(w.columns()).enumerate() {
            fastest(Row { w, row: row(chunk * PANEL_ROWS + index), out });
        }
    });
}

/// One row of weights.
struct Row<'a> {
    w: &'a Matrix<'a>,
    row: usize,
    out: &'a mut [f32],
}

impl Work for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (w, row) = (self.w, self.row);
        match w.packed().layout.bits() {
            8 => weights::<8, 4>(w, row, self.out),
            4 => weights::<4, 8>(w, row, self.out),
            _ => weights::<2, 16>(w, row, self.out),
        }
        if let Some(residual) = w.residual() {
            let left = &residual.left[row * residual.rank..][..residual.rank];
            for (&left, right) in left.iter().zip(residual.right.chunks_exact(self.out.len())) {
                let left = widen(left);
                self.out.iter_mut().zip(right).for_each(|(out, &right)| *out += left * widen(right));
            }
        }
    }
}

#[inline(always)]
fn weights<const BITS: usize, const PER_BLOCK: usize>(w: &Matrix<'_>, row: usize, out: &mut [f32]) {
    let (panel, r) = (row / PANEL_ROWS, row % PANEL_ROWS);
    let group_size = w.packed().layout.group_size();
    let groups = w.blocks(panel).chunks(group_size / PER_BLOCK).zip(out.chunks_mut(group_size));
    for (group, (blocks, out)) in groups.enumerate() {
        let (scale, zero) = w.affine_of(panel, group, r);
        for (block, out) in blocks.iter().zip(out.chunks_mut(PER_BLOCK)) {
            let mut codes = [0; PER_BLOCK];
            spread::<BITS>(word(block, r), &mut codes);
            for (out, code) in out.iter_mut().zip(codes) {
                *out = zero + scale * f32::from(code);
            }
        }
    }
}

#[inline(always)]
fn word(block: &[u8; BLOCK_BYTES], r: usize) -> u32 {
    let word = block.as_chunks::<4>().0[r];
    u32::from_le_bytes(word)
}
