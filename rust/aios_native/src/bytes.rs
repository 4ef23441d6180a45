//! Reading Python's bytes-like objects in place.

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;

/// Call `read` with the bytes of any C-contiguous buffer; the interpreter stays attached meanwhile.
pub fn with<T>(data: &Bound<'_, PyAny>, read: impl FnOnce(&[u8]) -> T) -> PyResult<T> {
    let buffer = PyUntypedBuffer::get(data)?;
    if !buffer.is_c_contiguous() {
        return Err(PyBufferError::new_err("the buffer is not contiguous"));
    }
    if buffer.len_bytes() == 0 {
        return Ok(read(&[])); // an empty buffer's pointer may be null
    }
    // SAFETY: the exporter keeps len_bytes() contiguous bytes alive while `buffer` lives, and no Python code
    // runs to change them, because `read` has no access to the interpreter and we stay attached.
    Ok(read(unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<u8>(), buffer.len_bytes()) }))
}
