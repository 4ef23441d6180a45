//! Rows of logits in Python's buffers.

use aios_arrow_quant::fault::Fault;
use aios_arrow_quant::sample::Rows;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::shared::{Shared, apart};

/// Some rows of logits (n, columns), which stay where they are; the token `barred` has probability 0.
#[pyclass(module = "aios._native", frozen)]
pub struct LogitRows {
    logits: Shared<f32>,
    columns: usize,
    asked: Shared<i64>,
    barred: usize,
}

#[pymethods]
impl LogitRows {
    #[new]
    fn new(logits: &Bound<'_, PyAny>, asked: &Bound<'_, PyAny>, barred: usize) -> PyResult<Self> {
        let (logits, asked) = (Shared::<f32>::get(logits, false)?, Shared::<i64>::get(asked, false)?);
        let [_, columns] = logits.shape()?;
        Ok(LogitRows { logits, columns, asked, barred })
    }

    /// Writes the log-probability of each row's likeliest token.
    fn best(&self, py: Python<'_>, out: &Bound<'_, PyAny>, threads: usize) -> PyResult<()> {
        let mut out = Shared::<f32>::get(out, true)?;
        apart(&[out.span()], &[self.logits.span(), self.asked.span()])?;
        py.detach(|| self.rows()?.best(out.slice_mut(), threads)).map_err(refused)
    }

    /// Writes each row's entropy in nats.
    fn entropy(&self, py: Python<'_>, out: &Bound<'_, PyAny>, threads: usize) -> PyResult<()> {
        let mut out = Shared::<f32>::get(out, true)?;
        apart(&[out.span()], &[self.logits.span(), self.asked.span()])?;
        py.detach(|| self.rows()?.entropy(out.slice_mut(), threads)).map_err(refused)
    }

    /// Draws a token from each row, by as many uniform numbers of [0, 1).
    fn draw(
        &self,
        py: Python<'_>,
        temperature: f32,
        uniforms: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        threads: usize,
    ) -> PyResult<()> {
        let (uniforms, mut out) = (Shared::<f64>::get(uniforms, false)?, Shared::<i64>::get(out, true)?);
        apart(&[out.span()], &[self.logits.span(), self.asked.span(), uniforms.span()])?;
        py.detach(|| self.rows()?.draw(temperature, uniforms.slice(), out.slice_mut(), threads)).map_err(refused)
    }
}

impl LogitRows {
    /// Checked at each use: the numbers of rows are the caller's memory.
    fn rows(&self) -> Result<Rows<'_>, Fault> {
        Rows::new(self.logits.slice(), self.columns, self.asked.slice(), self.barred)
    }
}

fn refused(fault: Fault) -> PyErr {
    PyValueError::new_err(fault.to_string())
}
