//! Weight files for Python: the crate's reader and writer, the map as a buffer, and the one place errors cross.

use std::ffi::c_int;
use std::path::PathBuf;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aios_arrow_storage as storage;
use pyo3::exceptions::{PyBufferError, PyException, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::{create_exception, ffi};

use crate::bytes;
use crate::few::Few;

create_exception!(aios._native, StorageError, PyException, "(kind, tensor or None, why) of a weight file.");

/// Copied at once, so that the interpreter can be left while the bytes are hashed and written: half a cache.
const PIECE_BYTES: usize = 256 << 10;
/// Axes or metadata pairs that are taken from Python before the crate's own limits apply.
const LIST_MAX: usize = 10_000;
/// How long a wait goes on before Python's signals are looked at.
const WAIT: Duration = Duration::from_millis(100);

/// The one mapping from the crate's errors: the system's become OSError, all others StorageError.
pub fn raised(error: storage::StorageError) -> PyErr {
    use storage::StorageError as Error;
    let why = error.to_string();
    let (kind, tensor) = match error {
        Error::Io { doing, error } => {
            let reason = std::io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(0)).to_string();
            return match error.raw_os_error() {
                Some(number) => PyOSError::new_err((number, format!("{doing}: {reason}"))),
                None => PyOSError::new_err(why),
            };
        }
        Error::Corrupt { tensor, .. } => ("corrupt", tensor),
        Error::Input { tensor, .. } => ("input", tensor),
        Error::Limit { tensor, .. } => ("limit", tensor),
        Error::Busy => ("busy", None),
        Error::Stopped { .. } => ("stopped", None),
    };
    StorageError::new_err((kind, tensor, why))
}

/// (name, dtype, shape, group_size, symmetric, order, rank, [(offset, bytes) of each part], checksum, sha256).
type Record = (String, &'static str, Vec<u64>, u32, bool, u32, u32, Vec<(u64, u64)>, u32, String);

fn record(entry: &storage::TensorEntry) -> Record {
    let spec = &entry.spec;
    (
        spec.name.clone(),
        spec.dtype.name(),
        spec.shape.clone(),
        spec.group_size,
        spec.symmetric,
        spec.order(),
        spec.rank,
        entry.parts.iter().map(|part| (part.offset, part.bytes)).collect(),
        entry.checksum,
        storage::hex(&entry.sha256),
    )
}

/// A weight file, open and mapped; as a buffer it is the whole file, writable, and writes stay in this process.
#[pyclass(module = "aios._native", frozen)]
pub struct WeightFile(storage::WeightFile);

#[pymethods]
impl WeightFile {
    /// Open and check everything but the tensors' bytes, which a background thread checks if `check` says so.
    #[new]
    fn new(py: Python<'_>, path: PathBuf, check: bool) -> PyResult<Self> {
        py.detach(|| storage::WeightFile::open(&path, check)).map(WeightFile).map_err(raised)
    }

    /// The tensors' names, in file order.
    fn names(&self) -> Vec<&str> {
        self.0.entries().iter().map(|entry| entry.spec.name.as_str()).collect()
    }

    /// Keys and values of the footer.
    fn metadata(&self) -> Vec<(String, String)> {
        self.0.contents().metadata.clone()
    }

    /// The identity of all tensors, in hexadecimal.
    fn tensors_sha256(&self) -> String {
        storage::hex(&self.0.contents().tensors_sha256)
    }

    /// Everything about tensor number `index`.
    fn record(&self, index: usize) -> PyResult<Record> {
        let entry = self.0.entries().get(index);
        entry.map(record).ok_or_else(|| PyValueError::new_err("there is no tensor of that number"))
    }

    /// Check everything about tensor number `index`: gaps, page headers, page CRC, CRC32C, SHA-256.
    fn verify(&self, py: Python<'_>, index: usize) -> PyResult<()> {
        py.detach(|| self.0.verify(index)).map_err(raised)
    }

    /// Raise what is known to be wrong; with `wait`, after the background check is through. False: it still runs.
    fn intact(&self, py: Python<'_>, wait: bool) -> PyResult<bool> {
        if !wait {
            return self.0.intact(Duration::ZERO).map_err(raised); // too short to leave the interpreter for
        }
        while !py.detach(|| self.0.intact(WAIT)).map_err(raised)? {
            py.check_signals()?;
        }
        Ok(true)
    }

    /// End the background check. The map goes with the last object that uses it.
    fn close(&self) {
        self.0.close();
    }

    /// The whole map.
    ///
    /// # Safety
    /// The interpreter passes a valid view to fill.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("there is no view to fill"));
        }
        let mapping = slf.get().0.mapping();
        let length = ffi::Py_ssize_t::try_from(mapping.bytes())
            .map_err(|_| PyBufferError::new_err("the file is larger than the address space"))?;
        // SAFETY: the map is `length` bytes, writable, and lives as long as this object, to which the view takes a
        // reference; Rust itself never reads or writes through it.
        let filled =
            unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), mapping.address().cast(), length, 0, flags) };
        if filled != 0 {
            // SAFETY: a view whose filling failed must have no owner.
            unsafe { (*view).obj = ptr::null_mut() };
            return Err(
                PyErr::take(slf.py()).unwrap_or_else(|| PyBufferError::new_err("the view was not filled"))
            );
        }
        Ok(())
    }
}

/// Writes one weight file, tensor after tensor, each part in pieces of any size.
#[pyclass(module = "aios._native", frozen)]
pub struct WeightWriter(Mutex<storage::WeightWriter>);

impl WeightWriter {
    fn lock(&self) -> MutexGuard<'_, storage::WeightWriter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl WeightWriter {
    /// Begin `path`, or go on where a run of the same `source` (if it is not empty) was interrupted.
    #[new]
    fn new(py: Python<'_>, path: PathBuf, source: &str) -> PyResult<Self> {
        let writer = py.detach(|| storage::WeightWriter::create(&path, source)).map_err(raised)?;
        Ok(WeightWriter(Mutex::new(writer)))
    }

    /// The tensors that are complete, in file order.
    fn done(&self, py: Python<'_>) -> Vec<String> {
        py.detach(|| self.lock().entries().iter().map(|entry| entry.spec.name.clone()).collect())
    }

    /// Begin a tensor; returns the bytes that each part must receive.
    #[pyo3(signature = (name, dtype, shape, group_size, symmetric, rank))]
    #[expect(clippy::too_many_arguments, reason = "the fields of a tensor")]
    fn begin(
        &self,
        py: Python<'_>,
        name: String,
        dtype: &str,
        shape: Few<u64, LIST_MAX>,
        group_size: u32,
        symmetric: bool,
        rank: u32,
    ) -> PyResult<[u64; 5]> {
        let dtype = storage::Dtype::parse(dtype)
            .ok_or_else(|| raised(storage::StorageError::input_tensor(&name, "its dtype is unknown")))?;
        let spec = storage::TensorSpec { name, dtype, shape: shape.0, group_size, symmetric, rank };
        py.detach(|| self.lock().begin(spec)).map_err(raised)
    }

    /// The next bytes of a part of the tensor begun; the interpreter is left while they are hashed and written.
    fn write(&self, py: Python<'_>, part: &str, piece: &Bound<'_, PyAny>) -> PyResult<()> {
        let part = storage::PARTS.iter().position(|known| *known == part).ok_or_else(|| {
            raised(storage::StorageError::input("a part is data, scales, zeros, left or right"))
        })?;
        let length = bytes::with(piece, <[u8]>::len)?;
        let mut copy = Vec::with_capacity(length.min(PIECE_BYTES));
        let mut at = 0;
        loop {
            copy.clear();
            bytes::with(piece, |bytes| {
                let rest = bytes.get(at..).unwrap_or(&[]); // the object may have shrunk meanwhile
                copy.extend_from_slice(&rest[..rest.len().min(PIECE_BYTES)]);
            })?;
            py.detach(|| self.lock().write(part, &copy)).map_err(raised)?;
            at += copy.len();
            if at >= length || copy.is_empty() {
                return Ok(());
            }
        }
    }

    /// The tensor is complete.
    fn end(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.lock().end()).map_err(raised)
    }

    /// The identity of the tensors so far, in hexadecimal.
    fn tensors_sha256(&self, py: Python<'_>) -> String {
        py.detach(|| storage::hex(&self.lock().tensors_sha256()))
    }

    /// Write directory and footer, sync, rename into place.
    fn finish(&self, py: Python<'_>, metadata: Few<(String, String), LIST_MAX>) -> PyResult<()> {
        py.detach(|| self.lock().finish(&metadata.0)).map_err(raised)
    }

    /// Remove the partial file and its journal.
    fn abandon(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.lock().abandon()).map_err(raised)
    }
}
