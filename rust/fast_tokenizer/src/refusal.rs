//! Why a file is not read here.

use std::fmt;

/// Why a tokenizer.json is left to somebody else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It contradicts its format.
    Malformed(String),
    /// It is larger than what is read here.
    TooLarge(&'static str),
    /// It asks for something that has no fast path here; the text says what.
    Unsupported(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Malformed(why) | Refusal::Unsupported(why) => to.write_str(why),
            Refusal::TooLarge(what) => write!(to, "too large: {what}"),
        }
    }
}

impl std::error::Error for Refusal {}

/// A refusal of something well formed.
pub fn unsupported<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Unsupported(why.into()))
}

impl From<serde_json::Error> for Refusal {
    fn from(error: serde_json::Error) -> Refusal {
        Refusal::Malformed(error.to_string())
    }
}
