//! A whole sentence encoder over packed matrices, without the interpreter.

use std::ops::Range;

use aios_arrow_quant::encoder::{Encoder, EncoderLayer, Norm, Shape, Words};
use aios_arrow_quant::fault::Fault;
use aios_arrow_quant::layer::Linear;
use aios_arrow_quant::matmul::Width;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::few::Few;
use crate::packed_matrix::{PackedMatrix, refused};
use crate::shared::{Shared, apart};

/// More layers than any encoder has; lists from outside end there.
const LAYERS_MAX: usize = 4096;

/// One layer as it comes: matrices, biases and norms.
type GivenLayer = (Few<Py<PackedMatrix>, 4>, Few<Option<Py<PyAny>>, 4>, Few<Py<PyAny>, 4>);

/// A network's weights, used where they are.
#[pyclass(module = "aios._native", frozen)]
pub struct PackedEncoder {
    shape: Shape,
    words: Vocabulary,
    places: Shared<f32>,
    norm: [Shared<f32>; 2],
    layers: Vec<Layer>,
}

enum Vocabulary {
    Packed(Py<PackedMatrix>),
    Plain(Shared<f32>),
}

struct Layer {
    matrices: [Py<PackedMatrix>; 4],
    biases: [Option<Shared<f32>>; 4],
    norms: [Shared<f32>; 4],
}

#[pymethods]
impl PackedEncoder {
    /// shape: (hidden, heads, ffn, eps). words: a PackedMatrix or (vocabulary, hidden) f32. places (positions, hidden).
    /// norm: weight and bias. Of a layer: matrices and biases (None where there is none) of queries, keys and values
    /// together, out, up, down; weight and bias of the norm behind attention, then behind the feed-forward. Sizes are
    /// checked when the encoder is used.
    #[new]
    fn new(
        py: Python<'_>,
        shape: (usize, usize, usize, f32),
        words: &Bound<'_, PyAny>,
        places: &Bound<'_, PyAny>,
        norm: Few<Py<PyAny>, 2>,
        layers: Few<GivenLayer, LAYERS_MAX>,
    ) -> PyResult<Self> {
        let (hidden, heads, ffn, eps) = shape;
        let words = match words.cast::<PackedMatrix>() {
            Ok(matrix) => Vocabulary::Packed(matrix.clone().unbind()),
            Err(_) => Vocabulary::Plain(Shared::get(words, false)?),
        };
        Ok(PackedEncoder {
            shape: Shape { hidden, heads, ffn, eps },
            words,
            places: Shared::get(places, false)?,
            norm: vectors(py, norm)?,
            layers: layers.0.into_iter().map(|layer| Layer::new(py, layer)).collect::<PyResult<_>>()?,
        })
    }

    /// out (texts, hidden) f32 = a unit vector for each text; `ids` i64 are the tokens of all, `lengths` i64 how many
    /// each has. IndexError where an id is none of the vocabulary.
    #[pyo3(signature = (ids, lengths, out, threads = 1, activation_bits = 8))]
    fn encode(
        &self,
        py: Python<'_>,
        ids: &Bound<'_, PyAny>,
        lengths: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        threads: usize,
        activation_bits: u32,
    ) -> PyResult<()> {
        let width = match activation_bits {
            16 => Width::Bits16,
            8 => Width::Bits8,
            _ => return Err(PyValueError::new_err("activations of an encoder have 16 or 8 bits")),
        };
        let (ids, lengths) = (Shared::<i64>::get(ids, false)?, Shared::<i64>::get(lengths, false)?);
        let mut out = Shared::<f32>::get(out, true)?;
        let read: Vec<_> = self.spans().into_iter().chain([ids.span(), lengths.span()]).collect();
        apart(&[out.span()], &read)?;
        let counts = lengths.slice().iter().map(|&length| usize::try_from(length));
        let lengths: Vec<usize> =
            counts.collect::<Result<_, _>>().map_err(|_| PyValueError::new_err("a length is negative"))?;
        py.detach(|| {
            let layers = self.layers.iter().map(Layer::layer).collect::<Result<Vec<_>, _>>()?;
            let words = match &self.words {
                Vocabulary::Packed(matrix) => Words::Packed(matrix.get().matrix()?),
                Vocabulary::Plain(words) => Words::Plain(words.slice()),
            };
            let (places, norm) = (self.places.slice(), pair(&self.norm));
            let encoder = Encoder { shape: self.shape, words, places, norm, layers: &layers, width, threads };
            encoder.encode(ids.slice(), &lengths, out.slice_mut())
        })
        .map_err(refused)
    }
}

impl PackedEncoder {
    fn spans(&self) -> Vec<Range<usize>> {
        let words = match &self.words {
            Vocabulary::Packed(matrix) => matrix.get().spans(),
            Vocabulary::Plain(words) => vec![words.span()],
        };
        let own = self.norm.iter().chain([&self.places]).map(Shared::span);
        self.layers.iter().flat_map(Layer::spans).chain(words).chain(own).collect()
    }
}

impl Layer {
    fn new(py: Python<'_>, (matrices, biases, norms): GivenLayer) -> PyResult<Self> {
        let take = |bias: Option<Py<PyAny>>| bias.map(|bias| Shared::get(bias.bind(py), false)).transpose();
        let biases: Vec<_> = biases.0.into_iter().map(take).collect::<PyResult<_>>()?;
        let counted = "a layer has four matrices, and a bias or None for each";
        Ok(Layer {
            matrices: matrices.0.try_into().map_err(|_| PyValueError::new_err(counted))?,
            biases: biases.try_into().map_err(|_| PyValueError::new_err(counted))?,
            norms: vectors(py, norms)?,
        })
    }

    fn layer(&self) -> Result<EncoderLayer<'_>, Fault> {
        let linear = |at: usize| {
            let bias = self.biases[at].as_ref().map(Shared::slice);
            Ok(Linear { w: self.matrices[at].get().matrix()?, bias })
        };
        let [attention_weight, attention_bias, ffn_weight, ffn_bias] =
            self.norms.each_ref().map(Shared::slice);
        Ok(EncoderLayer {
            qkv: linear(0)?,
            out: linear(1)?,
            attention_norm: Norm { weight: attention_weight, bias: attention_bias },
            up: linear(2)?,
            down: linear(3)?,
            ffn_norm: Norm { weight: ffn_weight, bias: ffn_bias },
        })
    }

    fn spans(&self) -> Vec<Range<usize>> {
        let vectors = self.biases.iter().flatten().chain(&self.norms).map(Shared::span);
        self.matrices.iter().flat_map(|matrix| matrix.get().spans()).chain(vectors).collect()
    }
}

/// Exactly so many buffers.
fn vectors<const N: usize>(py: Python<'_>, buffers: Few<Py<PyAny>, N>) -> PyResult<[Shared<f32>; N]> {
    let taken = buffers.0.iter().map(|buffer| Shared::get(buffer.bind(py), false));
    let wrong = || PyValueError::new_err(format!("{N} vectors of norms belong there"));
    taken.collect::<PyResult<Vec<_>>>()?.try_into().map_err(|_| wrong())
}

fn pair(norm: &[Shared<f32>; 2]) -> Norm<'_> {
    let [weight, bias] = norm.each_ref().map(Shared::slice);
    Norm { weight, bias }
}
