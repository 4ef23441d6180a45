//! The store of memories for Python; everything waits, reads and writes without the interpreter.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use aios_arrow_storage::StorageError;
use aios_arrow_storage::memory::{
    self as core, Clear, Filter, GROUP_MAX, Incoming, Options, StoreKey, TAGS_MAX,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::bytes;
use crate::few::Few;
use crate::weights::raised;

/// Names in a filter.
const NAMES_MAX: usize = 1000;
/// Ids forgotten by one call.
const FORGET_MAX: usize = 1 << 20;
/// Of one scan or one request for vectors.
const VECTOR_BYTES_MAX: usize = 64 << 20;

/// namespace, tags, source, provenance.
type Columns = (String, Few<String, { TAGS_MAX + 1 }>, String, String);
/// time, namespace, tags, source, provenance, sealed, wrapped key.
type Found<'py> = (i64, String, Vec<String>, String, String, Bound<'py, PyBytes>, Bound<'py, PyBytes>);
/// live, forgotten, rows to compact, segments, rows in the log, bytes.
type Counts = (usize, usize, usize, usize, usize, u64);

/// A store of memories: the one writer, or a reader's snapshot.
#[pyclass(module = "aios._native", frozen)]
pub struct MemoryStore(RwLock<Option<Arc<core::Store>>>);

impl MemoryStore {
    fn store(&self) -> PyResult<Arc<core::Store>> {
        let open = self.0.read().unwrap_or_else(PoisonError::into_inner);
        open.clone().ok_or_else(|| PyValueError::new_err("the store is closed"))
    }

    fn with<T: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&core::Store) -> Result<T, StorageError> + Send,
    ) -> PyResult<T> {
        let store = self.store()?;
        py.detach(|| call(&store)).map_err(raised)
    }
}

#[pymethods]
impl MemoryStore {
    /// Open the store in a folder, as its writer or for reading; `key` is of one that is encrypted as a whole.
    #[new]
    #[pyo3(signature = (folder, writable, key = None))]
    fn new(
        py: Python<'_>,
        folder: PathBuf,
        writable: bool,
        key: Option<&Bound<'_, PyBytes>>,
    ) -> PyResult<Self> {
        let key = key.map(store_key).transpose()?;
        let open = || {
            if writable { core::Store::open(&folder, key) } else { core::Store::open_reader(&folder, key) }
        };
        let store = py.detach(open).map_err(raised)?;
        Ok(MemoryStore(RwLock::new(Some(Arc::new(store)))))
    }

    /// Make an empty store; `identity` is 16 random bytes; with a key of 32 it is encrypted as a whole.
    #[staticmethod]
    #[pyo3(signature = (folder, dim, half, identity, key = None))]
    fn create(
        py: Python<'_>,
        folder: PathBuf,
        dim: usize,
        half: bool,
        identity: &Bound<'_, PyBytes>,
        key: Option<&Bound<'_, PyBytes>>,
    ) -> PyResult<()> {
        let identity = identity.as_bytes().try_into();
        let identity = identity.map_err(|_| PyValueError::new_err("an identity has 16 bytes"))?;
        let key = key.map(store_key).transpose()?;
        py.detach(|| core::Store::create(&folder, Options { dim, half, identity, key })).map_err(raised)
    }

    /// The 16 bytes that name the store in a folder, and whether it opens with a key only; None if there is none.
    #[staticmethod]
    fn look(py: Python<'_>, folder: PathBuf) -> PyResult<Option<(Bound<'_, PyBytes>, bool)>> {
        let found = py.detach(|| core::Store::look(&folder)).map_err(raised)?;
        Ok(found.map(|(identity, sealed)| (PyBytes::new(py, &identity), sealed)))
    }

    /// The 16 bytes that name the store.
    fn identity<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.store()?.identity()))
    }

    /// Dimensions of a vector, and whether it is kept in half precision.
    fn shape(&self) -> PyResult<(usize, bool)> {
        Ok(self.store()?.vectors())
    }

    /// The first of `count` ids given to memories to come.
    fn reserve(&self, py: Python<'_>, count: usize) -> PyResult<u64> {
        self.with(py, |store| store.reserve(count)).map(|ids| ids.start)
    }

    /// Keep memories durably, all or none; `vectors` are f32, one after another.
    #[expect(clippy::too_many_arguments, reason = "the columns of a memory")]
    fn append(
        &self,
        py: Python<'_>,
        ids: Few<u64, GROUP_MAX>,
        times: Few<i64, GROUP_MAX>,
        columns: Few<Columns, GROUP_MAX>,
        vectors: &Bound<'_, PyAny>,
        sealed: Few<Py<PyBytes>, GROUP_MAX>,
        keys: Few<Py<PyBytes>, GROUP_MAX>,
    ) -> PyResult<()> {
        let store = self.store()?;
        let (count, (dim, _)) = (ids.0.len(), store.vectors());
        if [times.0.len(), columns.0.len(), sealed.0.len(), keys.0.len()] != [count; 4] {
            return Err(PyValueError::new_err("every memory has each of the columns"));
        }
        let vectors: Vec<f32> = bytes::with(vectors, |bytes| {
            let whole = bytes.len() == count * dim * 4; // compared before anything is copied
            whole.then(|| bytes.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect())
        })?
        .ok_or_else(|| {
            PyValueError::new_err(format!("{count} memories need as many vectors of {dim} f32"))
        })?;
        let mut incoming = Vec::with_capacity(count);
        let rows = ids.0.into_iter().zip(times.0).zip(columns.0).zip(vectors.chunks_exact(dim));
        for ((((id, time), columns), vector), (sealed, key)) in rows.zip(sealed.0.iter().zip(&keys.0)) {
            let (namespace, tags, source, provenance) = columns;
            let key = key.bind(py).as_bytes().try_into();
            incoming.push(Incoming {
                id,
                time,
                clear: Clear { namespace, tags: tags.0, source, provenance },
                vector: vector.to_vec(),
                sealed: sealed.bind(py).as_bytes().to_vec(),
                key: key.map_err(|_| PyValueError::new_err("a wrapped key has 60 bytes"))?,
            });
        }
        py.detach(|| store.append(incoming)).map_err(raised)
    }

    /// Forget memories; the ids that were there.
    fn forget(&self, py: Python<'_>, ids: Few<u64, FORGET_MAX>) -> PyResult<Vec<u64>> {
        self.with(py, |store| store.forget(&ids.0))
    }

    /// A memory, or None.
    fn read<'py>(&self, py: Python<'py>, id: u64) -> PyResult<Option<Found<'py>>> {
        let found = self.with(py, |store| store.read(id))?;
        Ok(found.map(|(record, key)| {
            let clear = record.clear;
            let (sealed, key) = (PyBytes::new(py, &record.sealed), PyBytes::new(py, &key));
            (record.time, clear.namespace, clear.tags, clear.source, clear.provenance, sealed, key)
        }))
    }

    /// Whether an id was forgotten.
    fn forgotten(&self, id: u64) -> PyResult<bool> {
        Ok(self.store()?.forgotten(id))
    }

    /// Every forgotten id, as u64.
    fn forgotten_ids<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let ids = self.with(py, |store| Ok(store.forgotten_ids()))?;
        numbers(py, &ids)
    }

    /// The ids, as u64, of live memories that pass: one of the names, all of the tags, since <= time < until.
    #[expect(clippy::too_many_arguments, reason = "the columns of a filter")]
    fn select<'py>(
        &self,
        py: Python<'py>,
        namespaces: Few<String, NAMES_MAX>,
        tags: Few<String, NAMES_MAX>,
        sources: Few<String, NAMES_MAX>,
        provenances: Few<String, NAMES_MAX>,
        since: Option<i64>,
        until: Option<i64>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let (namespaces, tags, sources, provenances) = (namespaces.0, tags.0, sources.0, provenances.0);
        let filter = Filter { namespaces, tags, sources, provenances, since, until };
        let ids = self.with(py, |store| store.select(&filter))?;
        numbers(py, &ids)
    }

    /// Ids (u64) above a bound and vectors (f32) of `count` live memories from a row on, and the row to go on from, 0 at
    /// the end.
    fn scan<'py>(
        &self,
        py: Python<'py>,
        from: usize,
        count: usize,
        above: u64,
    ) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>, usize)> {
        let dim = checked(&*self.store()?, count)?;
        let (ids, vectors, next) = self.with(py, |store| {
            let (mut ids, mut vectors) = (vec![0; count], vec![0.0; count * dim]);
            let (found, next) = store.scan(from, above, &mut ids, &mut vectors)?;
            ids.truncate(found);
            vectors.truncate(found * dim);
            Ok((ids, vectors, next))
        })?;
        Ok((numbers(py, &ids)?, floats(py, &vectors)?, next))
    }

    /// The vectors (f32) of live memories, each checked.
    fn vectors<'py>(&self, py: Python<'py>, ids: Few<u64, GROUP_MAX>) -> PyResult<Bound<'py, PyBytes>> {
        let dim = checked(&*self.store()?, ids.0.len())?;
        let vectors = self.with(py, |store| {
            let mut vectors = vec![0.0; ids.0.len() * dim];
            store.vectors_of(&ids.0, &mut vectors)?;
            Ok(vectors)
        })?;
        floats(py, &vectors)
    }

    /// Turn the log into a segment.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, core::Store::flush)
    }

    /// Rewrite what holds forgotten memories; whether there was anything to do.
    fn compact(&self, py: Python<'_>) -> PyResult<bool> {
        self.with(py, core::Store::compact)
    }

    /// A reader's newer snapshot.
    fn refresh(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, core::Store::refresh)
    }

    /// Read and check every live memory; how many there are.
    fn verify(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, core::Store::verify)
    }

    /// live, forgotten, rows to compact, segments, rows in the log, bytes.
    fn stats(&self, py: Python<'_>) -> PyResult<Counts> {
        let stats = self.with(py, |store| Ok(store.stats()))?;
        Ok((stats.live, stats.forgotten, stats.to_compact, stats.segments, stats.log_rows, stats.bytes))
    }

    /// Let go of the files and the lock; calls that still run keep them until they end.
    fn close(&self) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// 32 bytes as a key.
pub fn store_key(bytes: &Bound<'_, PyBytes>) -> PyResult<StoreKey> {
    let bytes = bytes.as_bytes().try_into().map_err(|_| PyValueError::new_err("a key has 32 bytes"))?;
    Ok(StoreKey::new(bytes))
}

/// The dimensions, if so many vectors may be asked for at once.
fn checked(store: &core::Store, count: usize) -> PyResult<usize> {
    let (dim, _) = store.vectors();
    let fits = count.checked_mul(dim * 4).is_some_and(|bytes| bytes <= VECTOR_BYTES_MAX);
    if fits { Ok(dim) } else { Err(PyValueError::new_err("so many vectors are not read at once")) }
}

fn numbers<'py>(py: Python<'py>, ids: &[u64]) -> PyResult<Bound<'py, PyBytes>> {
    PyBytes::new_with(py, ids.len() * 8, |out| {
        out.as_chunks_mut::<8>().0.iter_mut().zip(ids).for_each(|(out, id)| *out = id.to_le_bytes());
        Ok(())
    })
}

fn floats<'py>(py: Python<'py>, values: &[f32]) -> PyResult<Bound<'py, PyBytes>> {
    PyBytes::new_with(py, values.len() * 4, |out| {
        out.as_chunks_mut::<4>().0.iter_mut().zip(values).for_each(|(out, value)| *out = value.to_le_bytes());
        Ok(())
    })
}
