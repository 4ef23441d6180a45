//! Whole transformer layers over packed matrices, without the interpreter.

use std::ops::Range;

use aios_arrow_quant::fault::Fault;
use aios_arrow_quant::layer::{Layer, Linear, Piece, Rotation, Shape, Step, Store};
use aios_arrow_quant::matmul::Width;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::few::Few;
use crate::packed_matrix::{PackedMatrix, refused};
use crate::shared::{Shared, apart};

/// More layers, sequences and stores than anything has; lists from outside end there.
const LAYERS_MAX: usize = 4096;
const PIECES_MAX: usize = 1 << 16;

type Vector = Option<Shared<f32>>;

/// One layer's matrices, biases and norms, used where they are.
#[pyclass(module = "aios._native", frozen)]
pub struct PackedLayer {
    matrices: [Py<PackedMatrix>; 7],
    biases: [Vector; 7],
    norms: [Vector; 4],
}

#[pymethods]
impl PackedLayer {
    /// Matrices and biases: query, key, value, out, gate, up, down. Norms: of attention, of the feed-forward, of
    /// queries, of keys; the last two may be None. Sizes are checked when the layer is used.
    #[new]
    fn new(
        matrices: Few<Py<PackedMatrix>, 7>,
        biases: Few<Option<Py<PyAny>>, 7>,
        norms: Few<Option<Py<PyAny>>, 4>,
        py: Python<'_>,
    ) -> PyResult<Self> {
        let matrices =
            matrices.0.try_into().map_err(|_| PyValueError::new_err("a layer has seven matrices"))?;
        let biases = vectors(py, biases.0)?.try_into();
        let biases = biases
            .map_err(|_| PyValueError::new_err("a layer has seven biases, None where there is none"))?;
        let norms: [Vector; 4] = vectors(py, norms.0)?
            .try_into()
            .map_err(|_| PyValueError::new_err("a layer has four norms, None where there is none"))?;
        if norms[0].is_none() || norms[1].is_none() {
            return Err(PyValueError::new_err("attention and the feed-forward have norms before them"));
        }
        Ok(PackedLayer { matrices, biases, norms })
    }
}

fn vectors(py: Python<'_>, buffers: Vec<Option<Py<PyAny>>>) -> PyResult<Vec<Vector>> {
    let take =
        |buffer: Option<Py<PyAny>>| buffer.map(|buffer| Shared::get(buffer.bind(py), false)).transpose();
    buffers.into_iter().map(take).collect()
}

impl PackedLayer {
    fn layer(&self) -> Result<Layer<'_>, Fault> {
        let linear = |at: usize| {
            let bias = self.biases[at].as_ref().map(Shared::slice);
            Ok(Linear { w: self.matrices[at].get().matrix()?, bias })
        };
        let norm = |at: usize| self.norms[at].as_ref().map(Shared::slice);
        Ok(Layer {
            attention_norm: norm(0).unwrap_or_default(),
            query: linear(0)?,
            key: linear(1)?,
            value: linear(2)?,
            query_norm: norm(2),
            key_norm: norm(3),
            out: linear(3)?,
            ffn_norm: norm(1).unwrap_or_default(),
            gate: linear(4)?,
            up: linear(5)?,
            down: linear(6)?,
        })
    }

    fn spans(&self) -> Vec<Range<usize>> {
        let vectors = self.biases.iter().chain(&self.norms).flatten().map(Shared::span);
        self.matrices.iter().flat_map(|matrix| matrix.get().spans()).chain(vectors).collect()
    }
}

/// Turns hidden states x (s, hidden) into those behind all layers, in place; keys and values go into the stores.
///
/// shape: (hidden, heads, kv heads, head dim, ffn, eps). cos, sin (s, head dim). stores: (keys, values, slots,
/// capacity), both [layer][slot][kv head][capacity][head dim]. pieces: (store, slot, tokens before, tokens now, and how many of
/// these, the last ones, see each other whatever their order).
#[pyfunction]
#[pyo3(signature = (layers, shape, x, cos, sin, stores, pieces, threads = 1, activation_bits = 16))]
#[expect(clippy::too_many_arguments, reason = "a call has no fields")]
pub fn advance_layers(
    py: Python<'_>,
    layers: Few<Py<PackedLayer>, LAYERS_MAX>,
    shape: (usize, usize, usize, usize, usize, f32),
    x: &Bound<'_, PyAny>,
    cos: &Bound<'_, PyAny>,
    sin: &Bound<'_, PyAny>,
    stores: Few<(Py<PyAny>, Py<PyAny>, usize, usize), PIECES_MAX>,
    pieces: Few<(usize, usize, usize, usize, usize), PIECES_MAX>,
    threads: usize,
    activation_bits: u32,
) -> PyResult<()> {
    let width = match activation_bits {
        16 => Width::Bits16,
        8 => Width::Bits8,
        _ => return Err(PyValueError::new_err("activations of whole layers have 16 or 8 bits")),
    };
    let (hidden, heads, kv_heads, head_dim, ffn, eps) = shape;
    let shape = Shape { hidden, heads, kv_heads, head_dim, ffn, eps };
    let mut x = Shared::<f32>::get(x, true)?;
    let (cos, sin) = (Shared::<f32>::get(cos, false)?, Shared::<f32>::get(sin, false)?);
    let mut memory = Vec::with_capacity(stores.0.len());
    for (keys, values, slots, capacity) in &stores.0 {
        let (keys, values) = (keys.bind(py), values.bind(py));
        memory.push((Shared::<f32>::get(keys, true)?, Shared::<f32>::get(values, true)?, *slots, *capacity));
    }
    let layers: Vec<&PackedLayer> = layers.0.iter().map(Py::get).collect();
    let written: Vec<_> =
        memory.iter().flat_map(|(keys, values, ..)| [keys.span(), values.span()]).chain([x.span()]).collect();
    let read: Vec<_> =
        layers.iter().flat_map(|layer| layer.spans()).chain([cos.span(), sin.span()]).collect();
    apart(&written, &read)?;
    let pieces: Vec<_> = pieces
        .0
        .into_iter()
        .map(|(store, slot, start, count, open)| Piece { store, slot, start, count, open })
        .collect();
    py.detach(|| {
        let layers = layers.iter().map(|layer| layer.layer()).collect::<Result<Vec<_>, _>>()?;
        let mut stores: Vec<_> = memory
            .iter_mut()
            .map(|(keys, values, slots, capacity)| {
                let (slots, capacity) = (*slots, *capacity);
                Store { keys: keys.slice_mut(), values: values.slice_mut(), slots, capacity }
            })
            .collect();
        let rotation = Rotation { cos: cos.slice(), sin: sin.slice() };
        let step = Step { shape, rotation, pieces: &pieces, width, threads };
        step.advance(&layers, x.slice_mut(), &mut stores)
    })
    .map_err(refused)
}
