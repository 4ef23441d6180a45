//! The one error of this crate.

use std::fmt;
use std::io;

/// Why vectors could not be taken, searched, saved or opened; the message is for people.
#[derive(Debug)]
pub enum Fault {
    /// The caller's value cannot be used.
    Input(String),
    /// A cap was hit before anything was allocated.
    Limit(String),
    /// The file is not what it says it is.
    Corrupt(String),
    /// The operating system refused.
    Io {
        /// What was attempted.
        doing: &'static str,
        /// Its answer.
        error: io::Error,
    },
}

/// The result of everything fallible here.
pub type Result<T> = std::result::Result<T, Fault>;

impl Fault {
    pub(crate) fn input(why: impl Into<String>) -> Self {
        Fault::Input(why.into())
    }

    pub(crate) fn limit(why: impl Into<String>) -> Self {
        Fault::Limit(why.into())
    }

    pub(crate) fn corrupt(why: impl Into<String>) -> Self {
        Fault::Corrupt(why.into())
    }

    /// For `map_err`: what was attempted when the system refused.
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Fault::Io { doing, error }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Input(why) | Fault::Limit(why) | Fault::Corrupt(why) => out.write_str(why),
            Fault::Io { doing, error } => write!(out, "{doing}: {error}"),
        }
    }
}

impl std::error::Error for Fault {}
