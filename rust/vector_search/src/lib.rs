//! Nearest vectors: a scan of 4-bit codes whose bounds pick the rows to score, a graph, and their file.
//!
//! Read in this order: `rotation` and `code` (what a code says about a score), `dots` (its products, fast), `array`
//! and `rows` (where everything lies), `top` and `scan` (the exact search), `graph` and `build` (the other one),
//! `index` (both behind one door), `file` (saved and opened).

mod array;
mod build;
mod code;
mod dots;
mod fault;
mod file;
mod graph;
mod index;
mod isa;
mod rotation;
mod rows;
mod scan;
mod threads;
mod top;

pub use code::Metric;
pub use fault::{Fault, Result};
pub use index::{Answer, DIM_MAX, EFFORT_MAX, Effort, K_MAX, VectorSearch};
pub use isa::Isa;
pub use rows::SLOTS_MAX;
pub use threads::THREADS_MAX;
