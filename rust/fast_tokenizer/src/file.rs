//! A tokenizer.json as it is written. Whatever is not understood to the letter is refused: ids that are almost right
//! are worse than a slow tokenizer.

use std::collections::HashMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::refusal::{Refusal, unsupported};

/// The largest vocabularies in use (256k entries) are about 35 MB.
pub const BYTES_MAX: usize = 64 << 20;
/// The parts that are not vocabulary have at most a few kilobytes.
const SECTION_BYTES_MAX: usize = 64 << 10;

/// The whole file; sections that are small are parsed by who needs them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File<'a> {
    version: Option<String>,
    // Not the file's matter: whoever encodes says how long a text may be.
    #[serde(borrow, rename = "truncation")]
    _truncation: Option<&'a RawValue>,
    #[serde(borrow, rename = "padding")]
    _padding: Option<&'a RawValue>,
    /// Tokens found before all else.
    #[serde(default)]
    pub added_tokens: Vec<AddedToken>,
    #[serde(borrow)]
    normalizer: Option<&'a RawValue>,
    #[serde(borrow)]
    pre_tokenizer: Option<&'a RawValue>,
    #[serde(borrow)]
    post_processor: Option<&'a RawValue>,
    #[serde(borrow)]
    decoder: Option<&'a RawValue>,
    #[serde(borrow)]
    model: &'a RawValue,
}

/// One entry of `added_tokens`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the file's own names")]
pub struct AddedToken {
    pub id: u32,
    pub content: String,
    pub single_word: bool,
    pub lstrip: bool,
    pub rstrip: bool,
    pub normalized: bool,
    pub special: bool,
}

/// The model of either kind; what belongs to the other kind is absent.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the file's own names")]
pub struct Model {
    #[serde(rename = "type")]
    pub kind: String,
    pub vocab: HashMap<String, u32>,
    pub merges: Option<Vec<Merge>>,
    pub dropout: Option<f32>,
    pub unk_token: Option<String>,
    pub continuing_subword_prefix: Option<String>,
    pub end_of_word_suffix: Option<String>,
    #[serde(default)]
    pub fuse_unk: bool,
    #[serde(default)]
    pub byte_fallback: bool,
    #[serde(default)]
    pub ignore_merges: bool,
    pub max_input_chars_per_word: Option<usize>,
}

/// What a merge joins: a pair of strings, or one string with a space between as older files have it.
pub struct Merge(pub String, pub String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Merge, D::Error> {
        struct Pair;
        impl<'de> Visitor<'de> for Pair {
            type Value = Merge;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                to.write_str("two tokens")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Merge, E> {
                match text.split_once(' ') {
                    Some((left, right)) if !right.contains(' ') && !text.starts_with("#version") => {
                        Ok(Merge(left.into(), right.into()))
                    }
                    _ => Err(E::custom("a merge is two tokens with a space between")),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merge, A::Error> {
                let (left, right) = (seq.next_element()?, seq.next_element()?);
                match (left, right, seq.next_element::<String>()?) {
                    (Some(left), Some(right), None) => Ok(Merge(left, right)),
                    _ => Err(de::Error::custom("a merge is two tokens")),
                }
            }
        }
        source.deserialize_any(Pair)
    }
}

impl<'a> File<'a> {
    /// The file's parts; bytes are UTF-8 JSON.
    pub fn parse(bytes: &'a [u8]) -> Result<File<'a>, Refusal> {
        if bytes.len() > BYTES_MAX {
            return Err(Refusal::TooLarge("a tokenizer.json of more than 64 MB"));
        }
        let file: File<'a> = serde_json::from_slice(bytes)?;
        match file.version.as_deref() {
            Some("1.0") => Ok(file),
            _ => unsupported("a version other than 1.0"),
        }
    }

    /// The model; its kind is looked at before anything is built.
    pub fn model(&self) -> Result<Model, Refusal> {
        #[derive(Deserialize)]
        struct Kind {
            #[serde(rename = "type")]
            kind: Option<String>,
        }
        let kind: Kind = serde_json::from_str(self.model.get())?;
        match kind.kind.as_deref() {
            Some("BPE" | "WordPiece") => Ok(serde_json::from_str(self.model.get())?),
            Some(kind) => unsupported(format!("a model of type {kind:.40}")),
            None => unsupported("a model without a type"),
        }
    }

    /// The normaliser, if there is one.
    pub fn normalizer(&self) -> Result<Option<Section>, Refusal> {
        Section::parse("normalizer", self.normalizer)
    }

    /// The pre-tokeniser, if there is one.
    pub fn pre_tokenizer(&self) -> Result<Option<Section>, Refusal> {
        Section::parse("pre_tokenizer", self.pre_tokenizer)
    }

    /// The post-processor, if there is one.
    pub fn post_processor(&self) -> Result<Option<Section>, Refusal> {
        Section::parse("post_processor", self.post_processor)
    }

    /// The decoder, if there is one.
    pub fn decoder(&self) -> Result<Option<Section>, Refusal> {
        Section::parse("decoder", self.decoder)
    }
}

/// An object with a type, whose fields are taken one by one; what is left over in the end is refused.
pub struct Section {
    name: &'static str,
    /// Its type.
    pub kind: String,
    fields: serde_json::Map<String, Value>,
}

impl Section {
    fn parse(name: &'static str, raw: Option<&RawValue>) -> Result<Option<Section>, Refusal> {
        let Some(raw) = raw else { return Ok(None) };
        if raw.get().len() > SECTION_BYTES_MAX {
            return Err(Refusal::TooLarge("a part of the file that is not vocabulary"));
        }
        Section::of(name, serde_json::from_str(raw.get())?).map(Some)
    }

    fn of(name: &'static str, value: Value) -> Result<Section, Refusal> {
        let Value::Object(mut fields) = value else {
            return Err(Refusal::Malformed(format!("{name} is no object")));
        };
        match fields.remove("type") {
            Some(Value::String(kind)) => Ok(Section { name, kind, fields }),
            _ => Err(Refusal::Malformed(format!("{name} has no type"))),
        }
    }

    /// The value of a field, which must be there.
    pub fn take(&mut self, field: &str) -> Result<Value, Refusal> {
        let why = || Refusal::Malformed(format!("{} has no {field}", self.name));
        self.fields.remove(field).ok_or_else(why)
    }

    /// The value of a field that is true or false.
    pub fn flag(&mut self, field: &str) -> Result<bool, Refusal> {
        let why = Refusal::Malformed(format!("{field} is neither true nor false"));
        self.take(field)?.as_bool().ok_or(why)
    }

    /// As `flag`, where the field may be absent.
    pub fn flag_or(&mut self, field: &str, otherwise: bool) -> Result<bool, Refusal> {
        if self.fields.contains_key(field) { self.flag(field) } else { Ok(otherwise) }
    }

    /// The value of a field that is text.
    pub fn text(&mut self, field: &str) -> Result<String, Refusal> {
        match self.take(field)? {
            Value::String(text) => Ok(text),
            _ => Err(Refusal::Malformed(format!("{field} is no text"))),
        }
    }

    /// The sections that a field lists.
    pub fn list(&mut self, field: &str) -> Result<Vec<Section>, Refusal> {
        match self.take(field)? {
            Value::Array(values) => values.into_iter().map(|value| Section::of(self.name, value)).collect(),
            _ => Err(Refusal::Malformed(format!("{field} is no list"))),
        }
    }

    /// Refuses fields that nobody took.
    pub fn end(self) -> Result<(), Refusal> {
        match self.fields.keys().next() {
            None => Ok(()),
            Some(field) => unsupported(format!("{} {} with {field:.40}", self.name, self.kind)),
        }
    }

    /// Refuses a type that is not known here.
    pub fn unknown<T>(&self) -> Result<T, Refusal> {
        unsupported(format!("a {} of type {:.40}", self.name, self.kind))
    }
}
