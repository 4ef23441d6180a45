//! Lists from Python whose claimed length is not believed.

use pyo3::conversion::FromPyObjectOwned;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// The items of an iterable, at most `MOST`.
///
/// pyo3 makes a `Vec` of the size that an object's `__len__` names: `range(1 << 60)` would abort the process.
pub struct Few<T, const MOST: usize>(pub Vec<T>);

impl<'py, T: FromPyObjectOwned<'py>, const MOST: usize> FromPyObject<'_, 'py> for Few<T, MOST> {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let mut items = Vec::new();
        for item in object.try_iter()? {
            if items.len() == MOST {
                return Err(PyValueError::new_err(format!("a list has more than {MOST} items")));
            }
            items.push(item?.extract().map_err(Into::into)?);
        }
        Ok(Few(items))
    }
}
