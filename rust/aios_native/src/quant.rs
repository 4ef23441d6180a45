//! ArrowQuant as Python sees it: buffers checked, then the crate's functions without the interpreter.

use aios_arrow_quant::fault::Fault;
use aios_arrow_quant::order::Layout;
use aios_arrow_quant::pack::{self, Packed, PackedMut};
use aios_arrow_quant::{gptq, hqq, low_rank, rtn, threads};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::shared::{Shared, apart};

/// Sizes of a packed matrix: (rows, columns, bits, group size).
type Sizes = (usize, usize, usize, usize);

/// Codes, scales and zeros to be read.
type Parts<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>, Option<Bound<'py, PyAny>>);

fn refused(fault: Fault) -> PyErr {
    PyValueError::new_err(fault.to_string())
}

fn layout((rows, columns, bits, group_size): Sizes) -> PyResult<Layout> {
    Layout::new(rows, columns, bits, group_size).map_err(refused)
}

/// Codes, scales and zeros of a call, read or written.
struct PackedBuffers {
    codes: Shared<u8>,
    scales: Shared<u16>,
    zeros: Option<Shared<u16>>,
}

impl PackedBuffers {
    fn get((codes, scales, zeros): &Parts<'_>, writable: bool) -> PyResult<Self> {
        Ok(PackedBuffers {
            codes: Shared::get(codes, writable)?,
            scales: Shared::get(scales, writable)?,
            zeros: zeros.as_ref().map(|zeros| Shared::get(zeros, writable)).transpose()?,
        })
    }

    fn spans(&self) -> Vec<std::ops::Range<usize>> {
        let zeros = self.zeros.as_ref().map(Shared::span);
        [self.codes.span(), self.scales.span()].into_iter().chain(zeros).collect()
    }

    fn packed(&self, layout: Layout) -> Result<Packed<'_>, Fault> {
        let zeros = self.zeros.as_ref().map(Shared::slice);
        Packed::new(layout, self.codes.slice(), self.scales.slice(), zeros)
    }

    fn packed_mut(&mut self, layout: Layout) -> Result<PackedMut<'_>, Fault> {
        let zeros = self.zeros.as_mut().map(Shared::slice_mut);
        PackedMut::new(layout, self.codes.slice_mut(), self.scales.slice_mut(), zeros)
    }
}

/// Packs plain codes (rows, columns) u8, scales and zeros (rows, groups) f16 bits into `out`.
#[pyfunction]
pub fn quant_pack(
    py: Python<'_>,
    sizes: Sizes,
    plain: Parts<'_>,
    out: Parts<'_>,
    threads: usize,
) -> PyResult<()> {
    let layout = layout(sizes)?;
    let (plain, mut out) = (PackedBuffers::get(&plain, false)?, PackedBuffers::get(&out, true)?);
    apart(&out.spans(), &plain.spans())?;
    py.detach(|| {
        let mut out = out.packed_mut(layout)?;
        let zeros = plain.zeros.as_ref().map(Shared::slice);
        let (codes, scales) = (plain.codes.slice(), plain.scales.slice());
        threads::on(threads, || pack::pack(codes, scales, zeros, &mut out))
    })
    .map_err(refused)
}

/// The plain codes (rows, columns), scales and zeros (rows, groups) of a packed matrix, into `out`.
#[pyfunction]
pub fn quant_unpack(
    py: Python<'_>,
    sizes: Sizes,
    packed: Parts<'_>,
    out: Parts<'_>,
    threads: usize,
) -> PyResult<()> {
    let layout = layout(sizes)?;
    let (packed, mut out) = (PackedBuffers::get(&packed, false)?, PackedBuffers::get(&out, true)?);
    apart(&out.spans(), &packed.spans())?;
    py.detach(|| {
        let packed = packed.packed(layout)?;
        let codes = out.codes.slice_mut();
        threads::on(threads, || pack::unpack_codes(packed, codes))?;
        pack::unpack_scales(layout, packed.scales, out.scales.slice_mut())?;
        match (packed.zeros, &mut out.zeros) {
            (Some(packed), Some(out)) => pack::unpack_scales(layout, packed, out.slice_mut()),
            _ => Ok(()),
        }
    })
    .map_err(refused)
}

/// The weights (rows, columns) f32 that a packed matrix stands for, without its residual, into `out`.
#[pyfunction]
pub fn quant_dequantize(
    py: Python<'_>,
    sizes: Sizes,
    packed: Parts<'_>,
    out: &Bound<'_, PyAny>,
    threads: usize,
) -> PyResult<()> {
    let layout = layout(sizes)?;
    let (packed, mut out) = (PackedBuffers::get(&packed, false)?, Shared::<f32>::get(out, true)?);
    apart(&[out.span()], &packed.spans())?;
    py.detach(|| {
        let (packed, out) = (packed.packed(layout)?, out.slice_mut());
        threads::on(threads, || pack::dequantize(packed, out))
    })
    .map_err(refused)
}

/// Rounds weights (rows, columns) f32 to nearest, into `out`; rows are named from `first_row` on in errors.
#[pyfunction]
#[pyo3(signature = (weights, bits, group_size, out, threads, *, search = false, importance = None, first_row = 0))]
#[allow(clippy::too_many_arguments)] // Python's keywords
pub fn quant_rtn(
    py: Python<'_>,
    weights: &Bound<'_, PyAny>,
    bits: usize,
    group_size: usize,
    out: Parts<'_>,
    threads: usize,
    search: bool,
    importance: Option<&Bound<'_, PyAny>>,
    first_row: usize,
) -> PyResult<()> {
    let importance = importance.map(|of| Shared::<f32>::get(of, false)).transpose()?;
    let job = Job { weights, bits, group_size, out, threads, first_row };
    let span = importance.as_ref().map(Shared::span);
    let importance = importance.as_ref().map(Shared::slice);
    job.run(py, span, |weights, out| rtn::quantize(weights, search, importance, out))
}

/// Quantises weights (rows, columns) f32 by half-quadratic splitting, into `out`.
#[pyfunction]
#[pyo3(signature = (weights, bits, group_size, out, threads, *, first_row = 0))]
pub fn quant_hqq(
    py: Python<'_>,
    weights: &Bound<'_, PyAny>,
    bits: usize,
    group_size: usize,
    out: Parts<'_>,
    threads: usize,
    first_row: usize,
) -> PyResult<()> {
    Job { weights, bits, group_size, out, threads, first_row }.run(py, None, hqq::quantize)
}

/// Quantises weights (rows, columns) f32 by GPTQ with the Hessian (columns, columns) f64, into `out`.
#[pyfunction]
#[pyo3(signature = (weights, bits, group_size, out, threads, *, hessian, damping, search))]
#[allow(clippy::too_many_arguments)] // Python's keywords
pub fn quant_gptq(
    py: Python<'_>,
    weights: &Bound<'_, PyAny>,
    bits: usize,
    group_size: usize,
    out: Parts<'_>,
    threads: usize,
    hessian: &Bound<'_, PyAny>,
    damping: f64,
    search: bool,
) -> PyResult<()> {
    let hessian = Shared::<f64>::get(hessian, false)?;
    let (span, values) = (Some(hessian.span()), hessian.slice());
    Job { weights, bits, group_size, out, threads, first_row: 0 }
        .run(py, span, |weights, out| gptq::quantize(weights, values, damping, search, out))
}

/// Factors (rows, rank) and (rank, columns), f16 bits, of the loss (rows, columns) f32, weighted by the Hessian.
#[pyfunction]
#[pyo3(signature = (lost, left, right, threads, *, hessian = None, damping = 0.0))]
pub fn quant_residual(
    py: Python<'_>,
    lost: &Bound<'_, PyAny>,
    left: &Bound<'_, PyAny>,
    right: &Bound<'_, PyAny>,
    threads: usize,
    hessian: Option<&Bound<'_, PyAny>>,
    damping: f64,
) -> PyResult<()> {
    let lost = Shared::<f32>::get(lost, false)?;
    let hessian = hessian.map(|values| Shared::<f64>::get(values, false)).transpose()?;
    let (mut left, mut right) = (Shared::<u16>::get(left, true)?, Shared::<u16>::get(right, true)?);
    let inputs: Vec<_> = [lost.span()].into_iter().chain(hessian.as_ref().map(Shared::span)).collect();
    apart(&[left.span(), right.span()], &inputs)?;
    let [_, columns] = lost.shape()?;
    let (lost, hessian) = (lost.slice(), hessian.as_ref().map(|values| (values.slice(), damping)));
    let (left, right) = (left.slice_mut(), right.slice_mut());
    py.detach(|| threads::on(threads, || low_rank::factors(lost, columns, hessian, left, right)))
        .map_err(refused)
}

/// The arguments that all methods have in common.
struct Job<'a, 'py> {
    weights: &'a Bound<'py, PyAny>,
    bits: usize,
    group_size: usize,
    out: Parts<'py>,
    threads: usize,
    first_row: usize,
}

impl Job<'_, '_> {
    /// Runs `method` on the weights without the interpreter; `input` is where another input of it lies.
    fn run<F>(self, py: Python<'_>, input: Option<std::ops::Range<usize>>, method: F) -> PyResult<()>
    where
        F: FnOnce(&[f32], &mut PackedMut<'_>) -> Result<(), Fault> + Send,
    {
        let weights = Shared::<f32>::get(self.weights, false)?;
        let mut out = PackedBuffers::get(&self.out, true)?;
        let inputs: Vec<_> = [weights.span()].into_iter().chain(input).collect();
        apart(&out.spans(), &inputs)?;
        let [rows, columns] = weights.shape()?;
        let layout = layout((rows, columns, self.bits, self.group_size))?;
        let (weights, threads) = (weights.slice(), self.threads);
        py.detach(|| {
            let mut out = out.packed_mut(layout)?;
            threads::on(threads, || method(weights, &mut out))
        })
        .map_err(|fault| refused(below(fault, self.first_row)))
    }
}

/// A fault of some rows, with its row counted in the whole matrix.
fn below(fault: Fault, first_row: usize) -> Fault {
    match fault {
        Fault::Weight { row, column, value } => {
            Fault::Weight { row: row.saturating_add(first_row), column, value }
        }
        other => other,
    }
}
