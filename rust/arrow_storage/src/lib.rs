//! Parquet V2 weight files: written streaming, mapped in place, checked before anything is used.
//!
//! Read in this order: `layout` (what a tensor is), `schema` and `footer` (how Parquet says it), `file` (opening),
//! `check` (whether it is true), `writer` with its `journal`, `mapping` with its `guard`, and `reader`, which puts them
//! together. Foreign formats are in `import`, and the store of memories in `memory`.

mod check;
mod error;
mod file;
mod footer;
mod guard;
pub mod import;
mod journal;
mod layout;
mod mapping;
pub mod memory;
mod reader;
mod schema;
mod thrift;
mod writer;

pub use error::{Result, StorageError};
pub use file::Contents;
pub use layout::{AXES_MAX, Dtype, Extent, NAME_BYTES_MAX, PARTS, TENSORS_MAX, TensorEntry, TensorSpec, hex};
pub use mapping::Mapping;
pub use reader::WeightFile;
pub use writer::WeightWriter;
