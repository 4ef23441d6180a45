//! `aios._native`: the Rust half of AIOS as Python sees it. Thin: every idea lives in a crate without pyo3.

mod bytes;
mod cpu;
mod encoder;
mod few;
mod imports;
mod memory;
mod openmp;
mod packed_layer;
mod packed_matrix;
mod peak;
mod quant;
mod sample;
mod scanner;
mod shared;
mod tokenizer;
mod train_product;
mod vectors;
mod weights;

use pyo3::prelude::*;

/// The Rust half of AIOS.
#[pymodule]
mod _native {
    #[pymodule_export]
    use super::cpu::cpu_features;
    #[pymodule_export]
    use super::crc32c;
    #[pymodule_export]
    use super::encoder::PackedEncoder;
    #[pymodule_export]
    use super::imports::{gguf_block, gguf_dequantize, gguf_pack, read_gguf, read_safetensors};
    #[pymodule_export]
    use super::memory::MemoryStore;
    #[pymodule_export]
    use super::openmp::join_openmp;
    #[pymodule_export]
    use super::packed_layer::{PackedLayer, advance_layers};
    #[pymodule_export]
    use super::packed_matrix::{PackedMatrix, matmul_together};
    #[pymodule_export]
    use super::peak::{peak_products, peak_read};
    #[pymodule_export]
    use super::quant::{
        quant_dequantize, quant_gptq, quant_hqq, quant_pack, quant_residual, quant_rtn, quant_unpack,
    };
    #[pymodule_export]
    use super::sample::LogitRows;
    #[pymodule_export]
    use super::scanner::FrameScanner;
    #[pymodule_export]
    use super::tokenizer::FastTokenizer;
    #[pymodule_export]
    use super::train_product::{train_pack, train_packed_len, train_product, train_weight_gradient};
    #[pymodule_export]
    use super::vectors::VectorSearch;
    #[pymodule_export]
    use super::weights::{StorageError, WeightFile, WeightWriter};
}

/// The CRC32C of a contiguous bytes-like object, continued from `seed`, the CRC32C of what came before.
#[pyfunction]
#[pyo3(signature = (data, seed = 0))]
fn crc32c(data: &Bound<'_, PyAny>, seed: u32) -> PyResult<u32> {
    bytes::with(data, |bytes| aios_crc32c::crc32c(bytes, seed))
}
