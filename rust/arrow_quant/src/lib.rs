//! ArrowQuant: low-bit weights in one packed order.
//!
//! Bottom-up: `order` says where a code lies, `pack` puts codes there and reads them back, `grid` chooses scales and
//! zeros, `rtn`, `hqq` and `gptq` make codes from weights, `low_rank` stores what they lost, `matmul` and `gather` use
//! codes in place

#![deny(unsafe_code)]

mod attention;
pub mod encoder;
pub mod fault;
#[allow(unsafe_code)]
pub mod gather;
pub mod gptq;
mod grid;
mod hessian;
pub mod hqq;
mod isa;
pub mod layer;
pub mod low_rank;
#[allow(unsafe_code)]
pub mod matmul;
pub mod order;
pub mod pack;
pub mod rtn;
pub mod sample;
pub mod threads;
pub mod train;

use aios_half as half;
