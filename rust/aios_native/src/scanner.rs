//! `FrameScanner` for Python: the crate's scanner, and nothing of its own.

use aios_frame_scanner as core;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::bytes;

/// Finds where MessagePack frames end in a stream fed in any pieces; builds no object.
#[pyclass(module = "aios._native")]
pub struct FrameScanner(core::FrameScanner);

#[pymethods]
impl FrameScanner {
    #[new]
    fn new(bytes_max: u64, depth_max: usize, elements_max: u64) -> PyResult<Self> {
        if depth_max > core::DEPTH_LIMIT {
            return Err(PyValueError::new_err(format!("depth_max is at most {}", core::DEPTH_LIMIT)));
        }
        Ok(FrameScanner(core::FrameScanner::new(core::Limits { bytes_max, depth_max, elements_max })))
    }

    /// Read on. Returns the offsets in `piece` behind every frame that became complete, and why the rest is
    /// refused (None while all is well); a refused scanner stays refused.
    fn feed(&mut self, piece: &Bound<'_, PyAny>) -> PyResult<(Vec<usize>, Option<String>)> {
        let mut ends = Vec::new();
        let result = bytes::with(piece, |bytes| self.0.feed(bytes, &mut ends))?;
        Ok((ends, result.err().map(|fault| fault.to_string())))
    }

    /// True when the last byte fed was not the last of a frame.
    #[getter]
    fn partial(&self) -> bool {
        self.0.partial()
    }
}
