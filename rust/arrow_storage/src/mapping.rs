//! A whole file in memory: private, writable, nothing read until it is touched.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr;

use crate::error::{Result, StorageError};
use crate::guard::{Region, page_bytes};

/// A private map of a file and the guard over it. Writes to it stay in this process.
pub struct Mapping {
    address: *mut u8,
    bytes: usize,
    /// Of a file's map; taken before the map goes.
    region: Option<Region>,
    file: File,
}

// SAFETY: the address is only handed out as a raw pointer; whoever reads through it answers for it.
unsafe impl Send for Mapping {}
// SAFETY: as above; `Region` is made of atomics.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Map the first `bytes` bytes of the file.
    pub fn new(file: File, bytes: usize) -> Result<Self> {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_NORESERVE);
        // SAFETY: a new private map at an address of the kernel's choice touches nothing that exists.
        let address = unsafe { libc::mmap(ptr::null_mut(), bytes, access, flags, file.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED {
            return Err(StorageError::Io { doing: "mapping", error: std::io::Error::last_os_error() });
        }
        let start = address as usize;
        let end = start + bytes.next_multiple_of(page_bytes());
        let region = Region::register(start, end, file.as_raw_fd());
        Ok(Mapping { address: address.cast(), bytes, region: Some(region), file })
    }

    /// Zeros in memory alone, for `bytes` bytes that are made from the file instead of being it.
    pub fn anonymous(file: File, bytes: usize) -> Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: as above.
        let address = unsafe { libc::mmap(ptr::null_mut(), bytes, access, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(StorageError::Io { doing: "taking memory", error: std::io::Error::last_os_error() });
        }
        #[cfg(target_os = "linux")]
        // SAFETY: advice about a map of our own; it is filled at once, and large pages make that several times faster.
        unsafe {
            libc::madvise(address, bytes, libc::MADV_HUGEPAGE)
        };
        Ok(Mapping { address: address.cast(), bytes, region: None, file })
    }

    /// Where it begins.
    #[must_use]
    pub fn address(&self) -> *mut u8 {
        self.address
    }

    /// How long it is.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The file behind it.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether a touch found bytes that are gone.
    #[must_use]
    pub fn fault(&self) -> bool {
        self.region.as_ref().is_some_and(Region::fault)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.region = None;
        // SAFETY: address and length are those of our own map; the guard was dropped, and nobody holds the address,
        // because everything that hands it out keeps this value alive.
        unsafe { libc::munmap(self.address.cast(), self.bytes) };
    }
}
