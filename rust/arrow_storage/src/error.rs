//! The one error of this crate.

use std::fmt;
use std::io;

/// Why a weight file could not be written, opened or trusted.
#[derive(Debug)]
pub enum StorageError {
    /// The file is not what it says it is; `tensor` where one tensor is to blame.
    Corrupt {
        /// The tensor to blame, if one is.
        tensor: Option<String>,
        /// What is wrong.
        why: String,
    },
    /// The caller's value cannot be stored, or the calls come in the wrong order.
    Input {
        /// The tensor in question, if any.
        tensor: Option<String>,
        /// What is wrong.
        why: String,
    },
    /// A cap was hit before anything was allocated or written.
    Limit {
        /// The tensor in question, if any.
        tensor: Option<String>,
        /// Which limit.
        why: String,
    },
    /// Another process is writing the same file.
    Busy,
    /// The operating system refused.
    Io {
        /// What was attempted.
        doing: &'static str,
        /// Its answer.
        error: io::Error,
    },
}

/// The result of everything fallible here.
pub type Result<T> = std::result::Result<T, StorageError>;

impl StorageError {
    /// The file as a whole is corrupt.
    pub fn corrupt(why: impl Into<String>) -> Self {
        StorageError::Corrupt { tensor: None, why: why.into() }
    }

    /// The tensor `name` of the file is corrupt.
    pub fn corrupt_tensor(name: &str, why: impl Into<String>) -> Self {
        StorageError::Corrupt { tensor: Some(name.to_owned()), why: why.into() }
    }

    /// The caller's value cannot be used.
    pub fn input(why: impl Into<String>) -> Self {
        StorageError::Input { tensor: None, why: why.into() }
    }

    /// The caller's tensor `name` cannot be used.
    pub fn input_tensor(name: &str, why: impl Into<String>) -> Self {
        StorageError::Input { tensor: Some(name.to_owned()), why: why.into() }
    }

    /// For `map_err`: what was attempted when the system refused.
    pub fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| StorageError::Io { doing, error }
    }
}

impl fmt::Display for StorageError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StorageError::Corrupt { why, .. }
            | StorageError::Input { why, .. }
            | StorageError::Limit { why, .. } => out.write_str(why),
            StorageError::Busy => out.write_str("another process is writing it"),
            StorageError::Io { doing, error } => write!(out, "{doing}: {error}"),
        }
    }
}

impl std::error::Error for StorageError {}
