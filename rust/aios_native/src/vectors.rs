//! `VectorSearch` for Python: buffers in, buffers out, the interpreter left while vectors are added or searched.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use aios_arrow_storage::StorageError;
use aios_arrow_storage::memory::{Kind, open_sealed, write_sealed};
use aios_vector_search::{Effort, Fault, K_MAX, Metric, THREADS_MAX, VectorSearch as Index};
use pyo3::exceptions::{PyOSError, PyOverflowError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::memory::store_key;
use crate::shared::{Shared, apart};

/// An id that answers nothing: the place behind the last answer.
const NOTHING: u64 = u64::MAX;

fn refused(fault: Fault) -> PyErr {
    match fault {
        Fault::Io { doing, error } => match error.raw_os_error() {
            Some(number) => PyOSError::new_err((number, format!("{doing}: {error}"))),
            None => PyOSError::new_err(format!("{doing}: {error}")),
        },
        Fault::Limit(why) => PyOverflowError::new_err(why),
        Fault::Input(why) => PyValueError::new_err(why),
        Fault::Corrupt(why) => PyOSError::new_err(why),
    }
}

fn fault(error: StorageError) -> Fault {
    match error {
        StorageError::Io { doing, error } => Fault::Io { doing, error },
        other => Fault::Corrupt(other.to_string()),
    }
}

/// Vectors of one dimension by u64 ids; searched exactly, or by a graph once it is built.
#[pyclass(module = "aios._native", frozen)]
pub struct VectorSearch(RwLock<Index>);

impl VectorSearch {
    fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl VectorSearch {
    /// An empty index; the metric is cosine, dot or l2.
    #[new]
    fn new(dim: usize, metric: &str) -> PyResult<Self> {
        let metric = match metric {
            "cosine" => Metric::Cosine,
            "dot" => Metric::Dot,
            "l2" => Metric::L2,
            _ => return Err(PyValueError::new_err("the metric is cosine, dot or l2")),
        };
        Ok(VectorSearch(RwLock::new(Index::new(dim, metric).map_err(refused)?)))
    }

    /// The index that `save` wrote, in place.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        py.detach(|| Index::open(&path)).map(|index| VectorSearch(RwLock::new(index))).map_err(refused)
    }

    /// Write the index to a file, durably.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        py.detach(|| self.read().save(&path)).map_err(refused)
    }

    /// The index that `save_sealed` wrote under this key and number, opened into memory.
    #[staticmethod]
    fn open_sealed(py: Python<'_>, path: PathBuf, key: &Bound<'_, PyBytes>, number: u64) -> PyResult<Self> {
        let key = store_key(key)?;
        let open = || {
            let map = open_sealed(&path, &key, Kind::Index, number).map_err(fault)?;
            Index::of(map.ok_or_else(|| Fault::Io { doing: "opening", error: ErrorKind::NotFound.into() })?)
        };
        py.detach(open).map(|index| VectorSearch(RwLock::new(index))).map_err(refused)
    }

    /// Write the index to a file, durably, encrypted under 32 bytes of key and a number that it opens with only.
    fn save_sealed(
        &self,
        py: Python<'_>,
        path: PathBuf,
        key: &Bound<'_, PyBytes>,
        number: u64,
    ) -> PyResult<()> {
        let key = store_key(key)?;
        py.detach(|| write_sealed(&path, &key, Kind::Index, number, |out| self.read().write_to(out)))
            .map_err(|error| refused(fault(error)))
    }

    /// Check all of the file that the index was opened from.
    fn verify(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.read().verify()).map_err(refused)
    }

    /// Add vectors (n, dim) f32 under ids (n) u64 that are not there yet: all or none.
    #[pyo3(signature = (ids, vectors, threads = 1))]
    fn add(
        &self,
        py: Python<'_>,
        ids: &Bound<'_, PyAny>,
        vectors: &Bound<'_, PyAny>,
        threads: usize,
    ) -> PyResult<()> {
        let (ids, vectors) = (Shared::<u64>::get(ids, false)?, Shared::<f32>::get(vectors, false)?);
        let [_, columns] = vectors.shape()?;
        py.detach(|| {
            let mut index = self.write();
            if columns != index.dim() {
                return Err(Fault::Input(format!("vectors have {} coordinates, not {columns}", index.dim())));
            }
            index.add(ids.slice(), vectors.slice(), threads)
        })
        .map_err(refused)
    }

    /// Remove ids (n) u64 and zero their vectors; returns how many were there.
    fn remove(&self, py: Python<'_>, ids: &Bound<'_, PyAny>) -> PyResult<usize> {
        let ids = Shared::<u64>::get(ids, false)?;
        Ok(py.detach(|| self.write().remove(ids.slice())))
    }

    /// Fill ids and scores (n, k) with the best for queries (n, dim), effort 0 meaning exactly.
    #[pyo3(signature = (queries, ids, scores, allowed = None, effort = 0, threads = 1))]
    #[expect(clippy::too_many_arguments, reason = "inputs, outputs and how")]
    fn search(
        &self,
        py: Python<'_>,
        queries: &Bound<'_, PyAny>,
        ids: &Bound<'_, PyAny>,
        scores: &Bound<'_, PyAny>,
        allowed: Option<&Bound<'_, PyAny>>,
        effort: usize,
        threads: usize,
    ) -> PyResult<()> {
        let queries = Shared::<f32>::get(queries, false)?;
        let allowed = allowed.map(|allowed| Shared::<u64>::get(allowed, false)).transpose()?;
        let (mut ids, mut scores) = (Shared::<u64>::get(ids, true)?, Shared::<f32>::get(scores, true)?);
        let inputs = [queries.span(), allowed.as_ref().map_or(0..0, Shared::span)];
        apart(&[ids.span(), scores.span()], &inputs)?;
        let ([rows, columns], [n, k]) = (queries.shape()?, ids.shape()?);
        if scores.shape()? != [n, k] || rows != n {
            return Err(PyValueError::new_err("ids and scores have a row for each query and equal columns"));
        }
        if k > K_MAX {
            return Err(PyOverflowError::new_err(format!("a query has at most {K_MAX} answers")));
        }
        py.detach(|| {
            let index = self.read();
            if columns != index.dim() {
                return Err(Fault::Input(format!("queries have {} coordinates, not {columns}", index.dim())));
            }
            let effort = if effort == 0 { Effort::Exact } else { Effort::Walk(effort) };
            let allowed = allowed.as_ref().map(Shared::slice);
            let found = index.search(queries.slice(), k, allowed, effort, threads)?;
            let (ids, scores) = (ids.slice_mut(), scores.slice_mut());
            ids.fill(NOTHING);
            scores.fill(f32::NEG_INFINITY);
            for (at, answers) in found.iter().enumerate() {
                for (place, (id, score)) in answers.iter().enumerate() {
                    (ids[at * k + place], scores[at * k + place]) = (*id, *score);
                }
            }
            Ok(())
        })
        .map_err(refused)
    }

    /// Make the graph anew over all vectors.
    #[pyo3(signature = (threads = 1))]
    fn build_graph(&self, py: Python<'_>, threads: usize) -> PyResult<()> {
        py.detach(|| self.write().build_graph(threads.min(THREADS_MAX))).map_err(refused)
    }

    /// Leave the places of removed vectors behind; a graph is made anew.
    #[pyo3(signature = (threads = 1))]
    fn compact(&self, py: Python<'_>, threads: usize) -> PyResult<()> {
        py.detach(|| {
            let mut index = self.write();
            *index = index.compacted(threads)?;
            Ok(())
        })
        .map_err(refused)
    }

    /// The ids that are there as little-endian u64, in no order.
    fn ids(&self, py: Python<'_>) -> Vec<u8> {
        py.detach(|| self.read().ids().iter().flat_map(|id| id.to_le_bytes()).collect())
    }

    /// dim, vectors, places (those of removed vectors too), bytes of a vector, whether there is a graph.
    fn facts(&self, py: Python<'_>) -> (usize, usize, usize, usize, bool) {
        py.detach(|| {
            let index = self.read();
            (index.dim(), index.len(), index.slots(), index.bytes_per_vector(), index.has_graph())
        })
    }

    /// cosine, dot or l2.
    #[getter]
    fn metric(&self, py: Python<'_>) -> &'static str {
        match py.detach(|| self.read().metric()) {
            Metric::Cosine => "cosine",
            Metric::Dot => "dot",
            Metric::L2 => "l2",
        }
    }
}
