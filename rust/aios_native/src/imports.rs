//! Readers of foreign weight files as Python sees them.
//!
//! Faults are built-in exceptions: OSError for what cannot be read, ValueError for what contradicts its format or is
//! too large, NotImplementedError for what is well formed and unknown here.

use std::fs::File;
use std::io::{BufReader, Read};

use aios_arrow_quant::order::Layout;
use aios_arrow_quant::pack::{PackedMut, pack};
use aios_arrow_storage::import::blocks::{self, BlockType, GROUP, Refusal};
use aios_arrow_storage::import::gguf::{self, Value};
use aios_arrow_storage::import::{Fault, safetensors};
use pyo3::exceptions::{PyNotImplementedError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString};

use crate::bytes;

/// Name, element type, shape, first byte, behind the last byte.
type Extent = (String, &'static str, Vec<u64>, u64, u64);
/// Version, metadata, tensors.
type Gguf<'py> = (u32, Bound<'py, PyDict>, Vec<Extent>);
/// Codes, scales, zeros.
type Packed<'py> = (Bound<'py, PyBytes>, Bound<'py, PyBytes>, Option<Bound<'py, PyBytes>>);

/// The tensors of a safetensors file, given by its path or as bytes, in file order.
#[pyfunction]
pub fn read_safetensors(source: &Bound<'_, PyAny>) -> PyResult<Vec<Extent>> {
    let extents = directory(source, |reader, length| safetensors::directory(reader, length))?;
    Ok(extents.into_iter().map(|one| (one.name, one.dtype, one.shape, one.begin, one.end)).collect())
}

/// Version, metadata and tensors of a GGUF file, given by its path or as bytes.
#[pyfunction]
pub fn read_gguf<'py>(source: &Bound<'py, PyAny>) -> PyResult<Gguf<'py>> {
    let found = directory(source, |reader, length| gguf::directory(reader, length))?;
    let metadata = PyDict::new(source.py());
    for (key, value) in found.metadata {
        match value {
            Value::Int(number) => metadata.set_item(key, number)?,
            Value::Float(number) => metadata.set_item(key, number)?,
            Value::Bool(truth) => metadata.set_item(key, truth)?,
            Value::Text(text) => metadata.set_item(key, text)?,
            Value::Ints(numbers) => metadata.set_item(key, numbers)?,
            Value::Floats(numbers) => metadata.set_item(key, numbers)?,
            Value::Bools(truths) => metadata.set_item(key, truths)?,
            Value::Texts(texts) => metadata.set_item(key, texts)?,
        }
    }
    let tensors =
        found.tensors.into_iter().map(|one| (one.name, one.kind.name(), one.shape, one.begin, one.end));
    Ok((found.version, metadata, tensors.collect()))
}

/// Of a block type: elements and bytes of a block, and the bits and the presence of zeros of its codes, if it can be
/// repacked without loss (else 0 bits).
#[pyfunction]
pub fn gguf_block(kind: &str) -> PyResult<(usize, usize, u32, bool)> {
    let kind = block_type(kind)?;
    Ok((kind.elements(), kind.bytes(), kind.code_bits().unwrap_or(0), kind.has_zeros()))
}

/// The values of whole blocks, little-endian f32, or f16 rounded to nearest.
#[pyfunction]
#[pyo3(signature = (kind, data, half = false))]
pub fn gguf_dequantize<'py>(
    kind: &str,
    data: &Bound<'py, PyAny>,
    half: bool,
) -> PyResult<Bound<'py, PyBytes>> {
    let kind = block_type(kind)?;
    let width = if half { 2 } else { 4 };
    bytes::with(data, |blocks| {
        let length = (blocks.len() / kind.bytes()).checked_mul(kind.elements() * width);
        let length = length.ok_or_else(|| PyValueError::new_err("too many blocks"))?;
        PyBytes::new_with(data.py(), length, |out| {
            let done = match half {
                true => blocks::dequantize_half(kind, blocks, out),
                false => blocks::dequantize_single(kind, blocks, out),
            };
            done.map_err(refused)
        })
    })?
}

/// Whole rows of blocks in the packed order, without loss: codes, f16 scales, f16 zeros. The panels of such a piece
/// are those of the whole matrix, if it begins at a multiple of 32 rows.
#[pyfunction]
pub fn gguf_pack<'py>(
    kind: &str,
    data: &Bound<'py, PyAny>,
    rows: usize,
    columns: usize,
) -> PyResult<Packed<'py>> {
    let (py, kind) = (data.py(), block_type(kind)?);
    let Some(bits) = kind.code_bits() else { return Err(refused(Refusal::Type)) };
    let layout = Layout::new(rows, columns, bits as usize, GROUP).map_err(fault)?;
    bytes::with(data, |blocks| {
        // Compared before anything is allocated: rows and columns are only the caller's word.
        if !columns.is_multiple_of(GROUP) || blocks.len() != rows * (columns / GROUP) * kind.bytes() {
            return Err(refused(Refusal::Length));
        }
        let groups = rows * layout.groups();
        let (mut codes, mut scales) = (vec![0; rows * columns], vec![0; groups]);
        let mut zeros = vec![0; if kind.has_zeros() { groups } else { 0 }];
        blocks::codes(kind, blocks, &mut codes, &mut scales, &mut zeros).map_err(refused)?;
        let zeros = kind.has_zeros().then_some(&zeros[..]);
        let mut packed_scales = vec![0; layout.scales()];
        let mut packed_zeros = zeros.map(|_| vec![0; layout.scales()]);
        let packed_codes = PyBytes::new_with(py, layout.codes_bytes(), |out| {
            let mut out = PackedMut::new(layout, out, &mut packed_scales, packed_zeros.as_deref_mut())
                .map_err(fault)?;
            pack(&codes, &scales, zeros, &mut out).map_err(fault)
        })?;
        let packed_zeros = packed_zeros.map(|zeros| halves(py, &zeros)).transpose()?;
        Ok((packed_codes, halves(py, &packed_scales)?, packed_zeros))
    })?
}

/// Call `read` with a reader over the path or the bytes that `source` is, and their length.
fn directory<T>(
    source: &Bound<'_, PyAny>,
    read: impl FnOnce(&mut dyn Read, u64) -> Result<T, Fault>,
) -> PyResult<T> {
    let found = if let Ok(path) = source.cast::<PyString>() {
        let file = File::open(path.to_str()?)?;
        let length = file.metadata()?.len();
        read(&mut BufReader::new(file), length)
    } else {
        bytes::with(source, |mut bytes| {
            let length = bytes.len() as u64;
            read(&mut bytes, length)
        })?
    };
    found.map_err(|fault| match fault {
        Fault::Io(error) => error.into(),
        Fault::Malformed(why) | Fault::TooLarge(why) => PyValueError::new_err(why),
        Fault::Unsupported(why) => PyNotImplementedError::new_err(why),
    })
}

fn block_type(name: &str) -> PyResult<BlockType> {
    BlockType::from_name(name)
        .ok_or_else(|| PyNotImplementedError::new_err("no block type of this name is read"))
}

fn halves<'py>(py: Python<'py>, values: &[u16]) -> PyResult<Bound<'py, PyBytes>> {
    PyBytes::new_with(py, values.len() * 2, |out| {
        out.as_chunks_mut::<2>().0.iter_mut().zip(values).for_each(|(out, value)| *out = value.to_le_bytes());
        Ok(())
    })
}

fn refused(refusal: Refusal) -> PyErr {
    match refusal {
        Refusal::Length => {
            PyValueError::new_err("the bytes are no whole number of blocks, or of the matrix's rows")
        }
        Refusal::Type => PyNotImplementedError::new_err("this block type does not go this way"),
        Refusal::Range => PyValueError::new_err("a value is too large for f16"),
    }
}

fn fault(fault: aios_arrow_quant::fault::Fault) -> PyErr {
    PyValueError::new_err(fault.to_string())
}
