//! A packed matrix at work: its buffers checked once and kept, products and rows without the interpreter.

use std::ops::Range;

use aios_arrow_quant::fault::Fault;
use aios_arrow_quant::gather;
use aios_arrow_quant::matmul::{self, Matrix, Product, Width};
use aios_arrow_quant::order::Layout;
use aios_arrow_quant::pack::Packed;
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;

use crate::few::Few;
use crate::shared::{Shared, apart};

/// More matrices than any layer reads its input with.
const TOGETHER_MAX: usize = 64;

/// Codes, scales, zeros and residual of a packed matrix, used where they are.
#[pyclass(module = "aios._native", frozen)]
pub struct PackedMatrix {
    layout: Layout,
    codes: Shared<u8>,
    scales: Shared<u16>,
    zeros: Option<Shared<u16>>,
    residual: Option<(Shared<u16>, Shared<u16>, usize)>,
}

#[pymethods]
impl PackedMatrix {
    /// Halves come as u16 bits; `left` (rows, rank) and `right` (rank, columns) together or not at all.
    #[new]
    #[pyo3(signature = (rows, columns, bits, group_size, codes, scales, zeros = None, left = None, right = None))]
    #[expect(clippy::too_many_arguments, reason = "the fields of PackedTensor")]
    fn new(
        rows: usize,
        columns: usize,
        bits: usize,
        group_size: usize,
        codes: &Bound<'_, PyAny>,
        scales: &Bound<'_, PyAny>,
        zeros: Option<&Bound<'_, PyAny>>,
        left: Option<&Bound<'_, PyAny>>,
        right: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let residual = match (left, right) {
            (None, None) => None,
            (Some(left), Some(right)) => {
                let (left, right) = (Shared::get(left, false)?, Shared::get(right, false)?);
                let rank = right.0.shape().first().copied().unwrap_or(0);
                Some((left, right, rank))
            }
            _ => return Err(PyValueError::new_err("a residual has two factors")),
        };
        let matrix = PackedMatrix {
            layout: Layout::new(rows, columns, bits, group_size).map_err(refused)?,
            codes: Shared::get(codes, false)?,
            scales: Shared::get(scales, false)?,
            zeros: zeros.map(|zeros| Shared::get(zeros, false)).transpose()?,
            residual,
        };
        matrix.matrix().map_err(refused)?;
        Ok(matrix)
    }

    /// out (m, rows) = x (m, columns) times the matrix transposed, on so many threads; f32 both.
    ///
    /// x is used as it is (32 bits), or as integers of 16 or 8 bits with a scale for each group of columns.
    #[pyo3(signature = (x, out, threads = 1, activation_bits = 32))]
    fn matmul(
        &self,
        py: Python<'_>,
        x: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        threads: usize,
        activation_bits: u32,
    ) -> PyResult<()> {
        let x = Shared::<f32>::get(x, false)?;
        let mut out = self.out(out, Some(x.span()))?;
        let m = self.inputs(&x, &out);
        let width = width(activation_bits)?;
        py.detach(|| {
            let (w, x, y) = (self.matrix()?, x.slice(), out.slice_mut());
            match width {
                None => matmul::matmul(&w, m, x, y, threads),
                Some(width) => matmul::matmul_integer(&mut [Product { w, y }], m, x, width, threads),
            }
        })
        .map_err(refused)
    }

    /// out (n, columns) f32 = the rows that `ids` (n) i64 name; IndexError where there is none.
    #[pyo3(signature = (ids, out, threads = 1))]
    fn gather(
        &self,
        py: Python<'_>,
        ids: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        threads: usize,
    ) -> PyResult<()> {
        let ids = Shared::<i64>::get(ids, false)?;
        let mut out = self.out(out, Some(ids.span()))?;
        py.detach(|| gather::gather(&self.matrix()?, ids.slice(), out.slice_mut(), threads)).map_err(refused)
    }

    /// out (rows, columns) f32 = the whole matrix.
    #[pyo3(signature = (out, threads = 1))]
    fn dequantize(&self, py: Python<'_>, out: &Bound<'_, PyAny>, threads: usize) -> PyResult<()> {
        let mut out = self.out(out, None)?;
        py.detach(|| gather::dequantize(&self.matrix()?, out.slice_mut(), threads)).map_err(refused)
    }
}

/// outs[i] (m, rows of matrices[i]) = x (m, columns) times each matrix transposed; `PackedMatrix.matmul` of all at once.
#[pyfunction]
#[pyo3(signature = (matrices, x, outs, threads = 1, activation_bits = 16))]
pub fn matmul_together(
    py: Python<'_>,
    matrices: Few<Py<PackedMatrix>, TOGETHER_MAX>,
    x: &Bound<'_, PyAny>,
    outs: Few<Py<PyAny>, TOGETHER_MAX>,
    threads: usize,
    activation_bits: u32,
) -> PyResult<()> {
    let Some(width) = width(activation_bits)? else {
        return Err(PyValueError::new_err("activations that are shared have 16 or 8 bits"));
    };
    if matrices.0.len() != outs.0.len() {
        return Err(PyValueError::new_err("there are not as many results as matrices"));
    }
    let x = Shared::<f32>::get(x, false)?;
    let matrices: Vec<&PackedMatrix> = matrices.0.iter().map(Py::get).collect();
    let mut taken = Vec::with_capacity(outs.0.len());
    for (matrix, out) in matrices.iter().zip(&outs.0) {
        taken.push(matrix.out(out.bind(py), Some(x.span()))?);
    }
    apart_from_each_other(&matrices, &taken)?;
    let m = matrices.first().zip(taken.first()).map_or(0, |(matrix, out)| matrix.inputs(&x, out));
    py.detach(|| {
        let mut products = Vec::with_capacity(taken.len());
        for (matrix, out) in matrices.iter().zip(&mut taken) {
            products.push(Product { w: matrix.matrix()?, y: out.slice_mut() });
        }
        matmul::matmul_integer(&mut products, m, x.slice(), width, threads)
    })
    .map_err(refused)
}

/// No result lies over another, or over what any of the matrices reads.
fn apart_from_each_other(matrices: &[&PackedMatrix], outs: &[Shared<f32>]) -> PyResult<()> {
    let written: Vec<_> = outs.iter().map(Shared::span).collect();
    let read: Vec<_> = matrices.iter().flat_map(|matrix| matrix.spans()).collect();
    apart(&written, &read)
}

/// How activations of so many bits are kept; None is as they come.
fn width(activation_bits: u32) -> PyResult<Option<Width>> {
    match activation_bits {
        32 => Ok(None),
        16 => Ok(Some(Width::Bits16)),
        8 => Ok(Some(Width::Bits8)),
        _ => Err(PyValueError::new_err("activations have 32, 16 or 8 bits")),
    }
}

impl PackedMatrix {
    /// The rows of an input, or of a result where the matrix has no columns.
    fn inputs(&self, x: &Shared<f32>, out: &Shared<f32>) -> usize {
        let rows = x.0.item_count().checked_div(self.layout.columns());
        rows.or_else(|| out.0.item_count().checked_div(self.layout.rows())).unwrap_or(0)
    }

    pub(crate) fn matrix(&self) -> Result<Matrix<'_>, Fault> {
        let zeros = self.zeros.as_ref().map(Shared::slice);
        let packed = Packed::new(self.layout, self.codes.slice(), self.scales.slice(), zeros)?;
        let residual = self.residual.as_ref().map(|(left, right, rank)| (left.slice(), right.slice(), *rank));
        Matrix::new(packed, residual)
    }

    /// A result's buffer, apart from the matrix and the input.
    fn out(&self, data: &Bound<'_, PyAny>, input: Option<Range<usize>>) -> PyResult<Shared<f32>> {
        let out = Shared::get(data, true)?;
        apart(&[out.span()], &self.spans().into_iter().chain(input).collect::<Vec<_>>())?;
        Ok(out)
    }

    /// Where the matrix lies.
    pub(crate) fn spans(&self) -> Vec<Range<usize>> {
        let halves = [Some(&self.scales), self.zeros.as_ref()].into_iter().flatten();
        let factors = self.residual.iter().flat_map(|(left, right, _)| [left, right]);
        halves.chain(factors).map(Shared::span).chain([self.codes.span()]).collect()
    }
}

pub(crate) fn refused(fault: Fault) -> PyErr {
    let why = fault.to_string();
    if matches!(fault, Fault::Row { .. }) { PyIndexError::new_err(why) } else { PyValueError::new_err(why) }
}
