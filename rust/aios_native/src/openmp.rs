//! The OpenMP that the host's matrix products run on, shared instead of rivalled.

use std::ffi::CString;
use std::mem;

use aios_arrow_quant::matmul::{self, OpenMp};
use pyo3::prelude::*;

/// Run products on the OpenMP threads of a library that this process has loaded already; False where it has none.
#[pyfunction]
pub fn join_openmp(library: &str) -> bool {
    let Ok(path) = CString::new(library) else { return false };
    // SAFETY: both strings end in a zero. A library that is not loaded yet is not loaded by this.
    let parallel = unsafe {
        let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY);
        if handle.is_null() {
            return false;
        }
        libc::dlsym(handle, c"GOMP_parallel".as_ptr()) // in the library or in what it needs
    };
    if parallel.is_null() {
        return false;
    }
    // SAFETY: a function of this name has this type, by the ABI of GNU's OpenMP, which others adopted. The handle is
    // never closed, so that it stays.
    unsafe { matmul::join(mem::transmute::<*mut libc::c_void, OpenMp>(parallel)) };
    true
}
