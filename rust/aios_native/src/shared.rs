//! Buffers of Python's that are used where they are, also without the interpreter.

use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::prelude::*;

/// A buffer of Python's that stays where it is while this lives.
pub struct Shared<T: Element>(pub PyBuffer<T>);

impl<T: Element> Shared<T> {
    /// A contiguous buffer of T in this machine's byte order.
    pub fn get(data: &Bound<'_, PyAny>, writable: bool) -> PyResult<Self> {
        let buffer = PyBuffer::get(data)?;
        // Elements of the other byte order pass as compatible.
        if cfg!(target_endian = "little") && matches!(buffer.format().to_bytes().first(), Some(b'>' | b'!')) {
            return Err(PyBufferError::new_err("the buffer is not in this machine's byte order"));
        }
        if !buffer.is_c_contiguous() {
            return Err(PyBufferError::new_err("the buffer is not contiguous"));
        }
        if writable && buffer.readonly() {
            return Err(PyBufferError::new_err("the buffer is read-only"));
        }
        Ok(Shared(buffer))
    }

    /// Its addresses.
    pub fn span(&self) -> std::ops::Range<usize> {
        let start = self.0.buf_ptr() as usize;
        start..start + self.0.len_bytes()
    }

    /// Its elements.
    pub fn slice(&self) -> &[T] {
        if self.0.item_count() == 0 {
            return &[]; // an empty buffer's pointer may be null
        }
        // SAFETY: `PyBuffer::get` checked format and alignment, `get` that it is contiguous; the exporter keeps the
        // memory while `self` lives, and every bit pattern is a T. As with every function of NumPy or torch that
        // releases the interpreter, the caller does not write here meanwhile.
        unsafe { std::slice::from_raw_parts(self.0.buf_ptr().cast::<T>(), self.0.item_count()) }
    }

    /// Its elements, to be written.
    pub fn slice_mut(&mut self) -> &mut [T] {
        if self.0.item_count() == 0 {
            return &mut [];
        }
        // SAFETY: as for `slice`; `get` checked that it may be written, `apart` that no other buffer of this call
        // overlaps it.
        unsafe { std::slice::from_raw_parts_mut(self.0.buf_ptr().cast::<T>(), self.0.item_count()) }
    }

    /// Its shape as a matrix.
    pub fn shape(&self) -> PyResult<[usize; 2]> {
        self.0.shape().try_into().map_err(|_| PyValueError::new_err("the matrix does not have two axes"))
    }
}

/// Refuses outputs that overlap one another or an input.
pub fn apart(outputs: &[std::ops::Range<usize>], inputs: &[std::ops::Range<usize>]) -> PyResult<()> {
    for (index, output) in outputs.iter().enumerate() {
        let others = outputs[index + 1..].iter().chain(inputs);
        if others.clone().any(|other| output.start.max(other.start) < output.end.min(other.end)) {
            return Err(PyBufferError::new_err("an output overlaps another buffer"));
        }
    }
    Ok(())
}
