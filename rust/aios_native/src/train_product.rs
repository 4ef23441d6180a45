//! The products of a training step's linear layers: see `aios_arrow_quant::train`.

use aios_arrow_quant::train::{self, Order};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::packed_matrix::refused;
use crate::shared::{Shared, apart};

/// Bytes of a packed weight of so many outputs, each of which sums over `depth` values.
#[pyfunction]
pub fn train_packed_len(outputs: usize, depth: usize) -> PyResult<usize> {
    train::packed_len(outputs, depth).map_err(refused)
}

/// Makes `packed` (`train_packed_len` bytes) of a weight (outputs, depth) f32, or (depth, outputs) if `transposed`.
#[pyfunction]
#[pyo3(signature = (weight, packed, transposed = false, threads = 1))]
pub fn train_pack(
    py: Python<'_>,
    weight: &Bound<'_, PyAny>,
    packed: &Bound<'_, PyAny>,
    transposed: bool,
    threads: usize,
) -> PyResult<()> {
    let weight = Shared::<f32>::get(weight, false)?;
    let mut packed = Shared::<u8>::get(packed, true)?;
    apart(&[packed.span()], &[weight.span()])?;
    let [rows, columns] = weight.shape()?;
    let (outputs, depth, order) =
        if transposed { (columns, rows, Order::Depth) } else { (rows, columns, Order::Outputs) };
    py.detach(|| train::pack(weight.slice(), outputs, depth, order, packed.slice_mut(), threads))
        .map_err(refused)
}

/// out (m, outputs) f32 = x (m, depth) f32 times a packed weight transposed.
#[pyfunction]
#[pyo3(signature = (x, packed, out, threads = 1))]
pub fn train_product(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    packed: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    threads: usize,
) -> PyResult<()> {
    let (x, packed) = (Shared::<f32>::get(x, false)?, Shared::<u8>::get(packed, false)?);
    let mut out = Shared::<f32>::get(out, true)?;
    apart(&[out.span()], &[x.span(), packed.span()])?;
    let ([m, depth], [rows, outputs]) = (x.shape()?, out.shape()?);
    if m != rows {
        return Err(PyValueError::new_err("x and out do not have the same number of rows"));
    }
    py.detach(|| train::product(x.slice(), packed.slice(), (depth, outputs), out.slice_mut(), threads))
        .map_err(refused)
}

/// out (n, k) f32 = g (m, n) f32 transposed times x (m, k) f32.
#[pyfunction]
#[pyo3(signature = (g, x, out, threads = 1))]
pub fn train_weight_gradient(
    py: Python<'_>,
    g: &Bound<'_, PyAny>,
    x: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    threads: usize,
) -> PyResult<()> {
    let (g, x) = (Shared::<f32>::get(g, false)?, Shared::<f32>::get(x, false)?);
    let mut out = Shared::<f32>::get(out, true)?;
    apart(&[out.span()], &[g.span(), x.span()])?;
    let ([m, n], [rows, k], [out_n, out_k]) = (g.shape()?, x.shape()?, out.shape()?);
    if (m, n, k) != (rows, out_n, out_k) {
        return Err(PyValueError::new_err("the sizes of g, x and out do not fit together"));
    }
    py.detach(|| train::weight_gradient(g.slice(), x.slice(), (m, n, k), out.slice_mut(), threads))
        .map_err(refused)
}
