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
    /// A sync failed earlier; nothing is written until the store is opened again.
    Stopped {
        /// What failed.
        why: String,
    },
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

    /// The same error once more, for everybody who waits for one outcome.
    #[must_use]
    pub fn again(&self) -> Self {
        match self {
            StorageError::Corrupt { tensor, why } => {
                StorageError::Corrupt { tensor: tensor.clone(), why: why.clone() }
            }
            StorageError::Input { tensor, why } => {
                StorageError::Input { tensor: tensor.clone(), why: why.clone() }
            }
            StorageError::Limit { tensor, why } => {
                StorageError::Limit { tensor: tensor.clone(), why: why.clone() }
            }
            StorageError::Busy => StorageError::Busy,
            StorageError::Stopped { why } => StorageError::Stopped { why: why.clone() },
            StorageError::Io { doing, error } => StorageError::Io {
                doing,
                error: error.raw_os_error().map_or_else(
                    || io::Error::new(error.kind(), error.to_string()),
                    io::Error::from_raw_os_error,
                ),
            },
        }
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
            StorageError::Stopped { why } => write!(out, "writing stopped: {why}"),
            StorageError::Busy => out.write_str("another process is writing it"),
            StorageError::Io { doing, error } => write!(out, "{doing}: {error}"),
        }
    }
}

impl std::error::Error for StorageError {}
