//! The tokens that a model wants around a text.

use std::collections::HashMap;

use serde_json::Value;

use crate::file::Section;
use crate::refusal::{Refusal, unsupported};

/// More than a beginning and an end nobody asks for.
const TOKENS_MAX: usize = 64;

/// Token ids before and behind a text.
#[derive(Default, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Before it.
    pub before: Vec<u32>,
    /// Behind it.
    pub behind: Vec<u32>,
}

impl Frame {
    /// The frame that a post-processor puts around a single text.
    pub fn read(section: Option<Section>) -> Result<Frame, Refusal> {
        let Some(mut section) = section else { return Ok(Frame::default()) };
        let frame = match section.kind.as_str() {
            "ByteLevel" => {
                section.flag("add_prefix_space")?;
                section.flag("trim_offsets")?;
                section.flag_or("use_regex", true)?;
                Frame::default()
            }
            "BertProcessing" => pair(&mut section)?,
            "RobertaProcessing" => {
                section.flag("trim_offsets")?;
                section.flag("add_prefix_space")?;
                pair(&mut section)?
            }
            "TemplateProcessing" => template(&mut section)?,
            "Sequence" => {
                let mut frame = Frame::default();
                for processor in section.list("processors")? {
                    let outer = Frame::read(Some(processor))?;
                    frame.before.splice(0..0, outer.before);
                    frame.behind.extend(outer.behind);
                }
                frame
            }
            _ => return section.unknown(),
        };
        section.end()?;
        match frame.before.len() + frame.behind.len() {
            0..=TOKENS_MAX => Ok(frame),
            _ => unsupported("many tokens around a text"),
        }
    }

    /// How many tokens it adds.
    pub fn tokens(&self) -> usize {
        self.before.len() + self.behind.len()
    }
}

fn pair(section: &mut Section) -> Result<Frame, Refusal> {
    let mut token = |field| match section.take(field)?.as_array().map(Vec::as_slice) {
        Some([Value::String(_), id]) => number(id),
        _ => Err(Refusal::Malformed(format!("{field} is no token"))),
    };
    Ok(Frame { behind: vec![token("sep")?], before: vec![token("cls")?] })
}

fn template(section: &mut Section) -> Result<Frame, Refusal> {
    let mut frame = Frame::default();
    let (single, pair) = (pieces(section.take("single")?)?, pieces(section.take("pair")?)?);
    let tokens = special_tokens(section.take("special_tokens")?)?;
    let ids = |name: &str| tokens.get(name).ok_or_else(malformed);
    for piece in &pair {
        if let Piece::Token(name) = piece {
            ids(name)?; // not asked for here, but no template without it
        }
    }
    let mut text_seen = false;
    for piece in &single {
        match piece {
            Piece::Text(which) if which == "A" && !text_seen => text_seen = true,
            Piece::Text(_) => return unsupported("a template that is not one text with tokens around it"),
            Piece::Token(name) if text_seen => frame.behind.extend(ids(name)?),
            Piece::Token(name) => frame.before.extend(ids(name)?),
        }
    }
    let texts = pair.iter().filter(|piece| matches!(piece, Piece::Text(_))).count();
    if text_seen && texts == 2 { Ok(frame) } else { unsupported("a template without its texts") }
}

enum Piece {
    Text(String),
    Token(String),
}

fn malformed() -> Refusal {
    Refusal::Malformed("a template of another shape".into())
}

/// The pieces of a template, each exactly as the format has it.
fn pieces(value: Value) -> Result<Vec<Piece>, Refusal> {
    let Value::Array(values) = value else { return Err(malformed()) };
    let piece = |value: &Value| {
        let (kind, fields) = value.as_object().filter(|piece| piece.len() == 1)?.iter().next()?;
        let fields = fields.as_object().filter(|fields| fields.len() == 2)?;
        u32::try_from(fields.get("type_id")?.as_u64()?).ok()?;
        let id = fields.get("id")?.as_str()?.to_owned();
        match kind.as_str() {
            "Sequence" if id == "A" || id == "B" => Some(Piece::Text(id)),
            "SpecialToken" => Some(Piece::Token(id)),
            _ => None,
        }
    };
    values.iter().map(piece).collect::<Option<_>>().ok_or_else(malformed)
}

/// The ids of every special token that a template may name.
fn special_tokens(value: Value) -> Result<HashMap<String, Vec<u32>>, Refusal> {
    let Value::Object(values) = value else { return Err(malformed()) };
    let token = |(name, value): (String, Value)| {
        let fields = value.as_object().filter(|fields| fields.len() == 3).ok_or_else(malformed)?;
        let list = |field| fields.get(field).and_then(Value::as_array).ok_or_else(malformed);
        let (ids, spellings) = (list("ids")?, list("tokens")?);
        let named = fields.get("id").and_then(Value::as_str) == Some(&name);
        if !named || ids.len() != spellings.len() || spellings.iter().any(|one| !one.is_string()) {
            return Err(malformed());
        }
        Ok((name, ids.iter().map(number).collect::<Result<_, _>>()?))
    };
    values.into_iter().map(token).collect()
}

fn number(value: &Value) -> Result<u32, Refusal> {
    let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
    number.ok_or_else(|| Refusal::Malformed("a token id is no number".into()))
}
