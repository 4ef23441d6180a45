//! What the machine could do at best, beside which measurements put the kernels.

use aios_arrow_quant::matmul::peak::{self, Sequence};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::shared::Shared;

/// More rounds than a measurement needs at a time: some 20 ms of work.
const ROUNDS_MAX: u64 = 1 << 22;
/// More threads than one measures with.
const THREADS_MAX: usize = 64;

/// Makes exact products of bytes from registers on every thread and returns how many; 0 where there is no such loop.
///
/// sequence: "halves" (pmaddwd, paddd) or "bytes" (pmaddubsw, pmaddwd, paddd).
#[pyfunction]
pub fn peak_products(py: Python<'_>, sequence: &str, rounds: u64, threads: usize) -> PyResult<u64> {
    let sequence = match sequence {
        "halves" => Sequence::Halves,
        "bytes" => Sequence::Bytes,
        _ => return Err(PyValueError::new_err("a sequence is halves or bytes")),
    };
    if rounds > ROUNDS_MAX || threads > THREADS_MAX {
        return Err(PyValueError::new_err("that many rounds or threads would take too long"));
    }
    Ok(py.detach(|| peak::products(sequence, rounds, threads)))
}

/// Reads a contiguous buffer of bytes on so many threads and returns the exclusive or of its words of 8 bytes.
#[pyfunction]
pub fn peak_read(py: Python<'_>, memory: &Bound<'_, PyAny>, threads: usize) -> PyResult<u64> {
    let memory = Shared::<u8>::get(memory, false)?;
    Ok(py.detach(|| peak::read(memory.slice(), threads)))
}
