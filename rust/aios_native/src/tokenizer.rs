//! `FastTokenizer` for Python.

use std::sync::OnceLock;

use aios_fast_tokenizer::{Refusal, TEXT_BYTES_MAX, Tokenizer, Wish};
use pyo3::conversion::FromPyObjectOwned;
use pyo3::exceptions::{PyNotImplementedError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyList, PyString};

use crate::bytes;

/// Shorter texts are done before another thread could have begun.
const ATTACHED_BYTES_MAX: usize = 1 << 10;
/// Ids whose Python numbers are kept; those of larger vocabularies are made anew.
const NUMBERS_MAX: usize = 1 << 16;
/// Of one call: 64 MB of ids.
const ITEMS_MAX: usize = 1 << 24;

/// A tokenizer.json that has a fast path.
#[pyclass(module = "aios._native", frozen)]
pub struct FastTokenizer {
    tokenizer: Tokenizer,
    numbers: OnceLock<Vec<Py<PyInt>>>,
}

#[pymethods]
impl FastTokenizer {
    /// Read a file's bytes. NotImplementedError says what has no fast path, ValueError what contradicts the format or
    /// is too large.
    #[new]
    fn new(source: &Bound<'_, PyAny>) -> PyResult<FastTokenizer> {
        let opened = bytes::with(source, Tokenizer::open)?;
        let tokenizer = opened.map_err(|refusal| match refusal {
            Refusal::Unsupported(why) => PyNotImplementedError::new_err(why),
            Refusal::Malformed(_) | Refusal::TooLarge(_) => PyValueError::new_err(refusal.to_string()),
        })?;
        Ok(FastTokenizer { tokenizer, numbers: OnceLock::new() })
    }

    /// The ids of a text. `special`: reserved tokens spelled out in it are themselves; `framed`: with the tokens that
    /// the model wants around a text. UnicodeEncodeError for lone surrogates.
    #[pyo3(signature = (text, *, special = false, framed = false))]
    fn encode<'py>(
        &self,
        text: &Bound<'py, PyString>,
        special: bool,
        framed: bool,
    ) -> PyResult<Bound<'py, PyList>> {
        let (py, text) = (text.py(), readable(text)?);
        let wish = Wish { special, framed, length_max: None };
        let encode = || {
            let mut ids = Vec::new();
            self.tokenizer.encode(text, wish, &mut ids);
            ids
        };
        let ids = if text.len() <= ATTACHED_BYTES_MAX { encode() } else { py.detach(encode) };
        self.list(py, &ids)
    }

    /// The ids of many texts on up to `threads` threads; at most `length_max` each, the frame's included.
    #[pyo3(signature = (texts, *, special = false, framed = false, length_max = None, threads = 1))]
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        special: bool,
        framed: bool,
        length_max: Option<usize>,
        threads: usize,
    ) -> PyResult<Bound<'py, PyList>> {
        let taken = if framed { self.tokenizer.frame_length() } else { 0 };
        if length_max.is_some_and(|length| length <= taken) {
            return Err(PyValueError::new_err("length_max leaves no room for the text"));
        }
        let texts: Vec<Bound<'_, PyString>> = listed(texts)?;
        let texts = texts.iter().map(readable).collect::<PyResult<Vec<&str>>>()?;
        let wish = Wish { special, framed, length_max };
        let portions = py.detach(|| self.tokenizer.encode_batch(&texts, wish, threads));
        let lists = PyList::empty(py);
        for (ids, ends) in portions {
            let mut begin = 0;
            for end in ends {
                lists.append(self.list(py, &ids[begin..end])?)?;
                begin = end;
            }
        }
        Ok(lists)
    }

    /// The text of ids; bytes that are no text are replaced, ids that are no token are nothing.
    #[pyo3(signature = (ids, *, skip_special = true))]
    fn decode(&self, ids: &Bound<'_, PyAny>, skip_special: bool) -> PyResult<String> {
        Ok(self.tokenizer.decode(&listed::<u32>(ids)?, skip_special))
    }

    /// The id of a token by its spelling in the file, or None.
    fn token_id(&self, spelling: &str) -> Option<u32> {
        self.tokenizer.id(spelling)
    }

    /// Spelling, id, and whether it is special, of every added token in the order of the file.
    fn added(&self) -> Vec<(&str, u32, bool)> {
        let added = self.tokenizer.added().iter();
        added.map(|token| (token.content.as_str(), token.id, token.special)).collect()
    }

    /// How many tokens there are, added ones included.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.tokenizer.size()
    }

    /// How many tokens are put around a text that is framed.
    #[getter]
    fn frame_length(&self) -> usize {
        self.tokenizer.frame_length()
    }
}

impl FastTokenizer {
    /// A Python list of ids, made of numbers that exist already.
    fn list<'py>(&self, py: Python<'py>, ids: &[u32]) -> PyResult<Bound<'py, PyList>> {
        let numbers = self.numbers.get_or_init(|| {
            let end = self.tokenizer.ids_end().min(NUMBERS_MAX) as u32;
            (0..end).map(|id| PyInt::new(py, id).unbind()).collect()
        });
        PyList::new(
            py,
            ids.iter().map(|&id| match numbers.get(id as usize) {
                Some(number) => number.bind(py).clone(),
                None => PyInt::new(py, id),
            }),
        )
    }
}

/// The items of an iterable that is no string; what it says about its length is no reason to allocate.
fn listed<'py, T: FromPyObjectOwned<'py>>(items: &Bound<'py, PyAny>) -> PyResult<Vec<T>> {
    if items.is_instance_of::<PyString>() {
        return Err(PyTypeError::new_err("a string is no sequence of them"));
    }
    let too_many = || PyValueError::new_err("more than 16 million items");
    if items.len()? > ITEMS_MAX {
        return Err(too_many());
    }
    let mut all = Vec::new();
    for item in items.try_iter()? {
        if all.len() == ITEMS_MAX {
            return Err(too_many());
        }
        all.push(item?.extract().map_err(Into::into)?);
    }
    Ok(all)
}

/// The UTF-8 of a string.
fn readable<'a>(text: &'a Bound<'_, PyString>) -> PyResult<&'a str> {
    let text = text.to_str()?;
    if text.len() > TEXT_BYTES_MAX {
        return Err(PyValueError::new_err("a text of more than 4 GB"));
    }
    Ok(text)
}
