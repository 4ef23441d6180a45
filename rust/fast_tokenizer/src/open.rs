//! From a file to a tokenizer.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::added::{Added, Finder};
use crate::bert::Bert;
use crate::bpe::{Bpe, Rule};
use crate::cut;
use crate::decode::{Decoder, bytes_of};
use crate::file::{File, Merge, Model as ModelFile};
use crate::frame::Frame;
use crate::refusal::{Refusal, unsupported};
use crate::wordpiece::WordPiece;
use crate::{Model, Token, Tokenizer};

/// Tables by id are made as large as the largest one: 16 times the largest vocabularies in use.
const IDS_MAX: u32 = 1 << 22;
/// All spellings together: the largest vocabularies in use have 2 MB.
const SPELLINGS_BYTES_MAX: usize = 16 << 20;
/// Added tokens become an automaton: the largest vocabularies in use have 7,000, of 100 kB.
const ADDED_BYTES_MAX: usize = 1 << 20;

pub fn open(bytes: &[u8]) -> Result<Tokenizer, Refusal> {
    let file = File::parse(bytes)?;
    let mut described = file.model()?;
    let decoder = Decoder::read(file.decoder()?)?;
    let frame = Frame::read(file.post_processor()?)?;
    if described.vocab.values().any(|&id| id >= IDS_MAX) {
        return Err(Refusal::TooLarge("an id of four million or more"));
    }
    if described.vocab.keys().map(String::len).sum::<usize>() > SPELLINGS_BYTES_MAX {
        return Err(Refusal::TooLarge("a vocabulary of more than 16 MB of text"));
    }
    let added = added(&file, &described.vocab)?;
    let (model, normalising) = match (described.kind.as_str(), &decoder) {
        ("BPE", Decoder::ByteLevel) => bpe(&file, &mut described)?,
        ("WordPiece", Decoder::WordPiece { .. }) => wordpiece(&file, &described)?,
        _ => return unsupported("a decoder that does not belong to the model"),
    };
    let (raw, normalised) = finders(&file, &added, normalising)?;
    let (tokens, ids) = tokens(described.vocab, &added, &decoder)?;
    if frame.before.iter().chain(&frame.behind).any(|&id| tokens.get(id as usize).is_none()) {
        return unsupported("a token around texts that does not exist");
    }
    Ok(Tokenizer { model, raw, normalised, frame, decoder, tokens, ids, added, idle: Mutex::default() })
}

/// How much a normaliser may change added tokens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Normalising {
    Nothing,
    Composing,
    Everything,
}

/// The added tokens; their ids must be those that the library would give them.
fn added(file: &File<'_>, vocab: &HashMap<String, u32>) -> Result<Vec<Added>, Refusal> {
    if file.added_tokens.iter().map(|token| token.content.len()).sum::<usize>() > ADDED_BYTES_MAX {
        return Err(Refusal::TooLarge("added tokens of more than 1 MB of text"));
    }
    let mut seen = HashMap::new();
    let mut found = Vec::new();
    let mut next = vocab.len() as u32;
    for token in &file.added_tokens {
        let expected = vocab.get(&token.content).copied().unwrap_or_else(|| {
            next += 1;
            next - 1
        });
        if token.content.is_empty() || token.single_word || seen.insert(&token.content, ()).is_some() {
            return unsupported("added tokens that are empty, alike or single words");
        }
        if token.id != expected {
            return unsupported("an added token whose id is not the next one");
        }
        found.push(Added {
            content: token.content.clone(),
            id: token.id,
            lstrip: token.lstrip,
            rstrip: token.rstrip,
            special: token.special,
        });
    }
    Ok(found)
}

/// What finds added tokens before and after normalising.
fn finders(
    file: &File<'_>,
    added: &[Added],
    normalising: Normalising,
) -> Result<(Option<Finder>, Option<Finder>), Refusal> {
    let (mut raw, mut normalised) = (Vec::new(), Vec::new());
    for (token, declared) in added.iter().zip(&file.added_tokens) {
        let changed = match normalising {
            Normalising::Nothing => false,
            Normalising::Composing => !token.content.is_ascii(),
            Normalising::Everything => true,
        };
        match declared.normalized {
            false => raw.push(token.clone()),
            true if changed => return unsupported("an added token that is normalised itself"),
            true => normalised.push(token.clone()),
        }
    }
    Ok((Finder::new(raw)?, Finder::new(normalised)?))
}

/// Every token by id, and every id by spelling.
fn tokens(
    vocab: HashMap<String, u32>,
    added: &[Added],
    decoder: &Decoder,
) -> Result<(Vec<Token>, HashMap<String, u32>), Refusal> {
    let mut ids = vocab;
    ids.extend(added.iter().map(|token| (token.content.clone(), token.id)));
    let size = ids.values().max().map_or(0, |&id| id as usize + 1);
    let mut tokens = vec![Token::default(); size];
    for (spelling, &id) in &ids {
        let token = &mut tokens[id as usize];
        if token.bytes.replace(decoder.prepare(spelling).into()).is_some() {
            return unsupported("two tokens of one id");
        }
    }
    for token in added {
        tokens[token.id as usize].special = token.special;
    }
    Ok((tokens, ids))
}

fn bpe(file: &File<'_>, model: &mut ModelFile) -> Result<(Model, Normalising), Refusal> {
    let given = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    if model.dropout.is_some_and(|dropout| dropout != 0.0) {
        return unsupported("BPE with dropout");
    }
    if given(&model.continuing_subword_prefix) || given(&model.end_of_word_suffix) {
        return unsupported("BPE with marks at the ends of words");
    }
    if model.max_input_chars_per_word.is_some() {
        return unsupported("BPE with a longest word");
    }
    let compose = match file.normalizer()? {
        None => false,
        Some(section) if section.kind == "NFC" => {
            section.end()?;
            true
        }
        Some(section) => return section.unknown(),
    };
    let cuts = cut::read(file.pre_tokenizer()?)?;
    let Some(merges) = model.merges.take() else {
        return Err(Refusal::Malformed("BPE without merges".into()));
    };
    let (bytes, whole) = single_and_whole(model)?;
    let rules = rules(&model.vocab, &merges)?;
    let normalising = if compose { Normalising::Composing } else { Normalising::Nothing };
    Ok((Model::Bytes { bpe: Bpe::new(&bytes, &rules, whole), cuts, compose }, normalising))
}

/// Tokens that words are as they are.
type Whole = HashMap<Box<[u8]>, u32>;

/// The tokens of single bytes, and those that words are without any merge.
fn single_and_whole(model: &ModelFile) -> Result<([Option<u32>; 256], Whole), Refusal> {
    let (mut bytes, mut whole) = ([None; 256], HashMap::new());
    for (spelling, &id) in &model.vocab {
        match bytes_of(spelling) {
            Some(word) if word.len() == 1 => bytes[usize::from(word[0])] = Some(id),
            Some(word) if model.ignore_merges => {
                whole.insert(word.into(), id);
            }
            _ => (),
        }
    }
    if bytes.contains(&None) && (model.unk_token.is_some() || model.byte_fallback) {
        return unsupported("BPE that lacks tokens for bytes and has something in their place");
    }
    Ok((bytes, whole))
}

fn rules(vocab: &HashMap<String, u32>, merges: &[Merge]) -> Result<Vec<Rule>, Refusal> {
    let id = |token: &str| {
        let why = || Refusal::Malformed(format!("a merge has {token:.80}, which is no token"));
        vocab.get(token).copied().ok_or_else(why)
    };
    let rule = |Merge(left, right): &Merge| Ok((id(left)?, id(right)?, id(&format!("{left}{right}"))?));
    merges.iter().map(rule).collect()
}

fn wordpiece(file: &File<'_>, model: &ModelFile) -> Result<(Model, Normalising), Refusal> {
    if model.merges.is_some() || model.dropout.is_some() || model.end_of_word_suffix.is_some() {
        return unsupported("WordPiece with what belongs to BPE");
    }
    let missing = || Refusal::Malformed("WordPiece lacks a field".into());
    let unknown = model.unk_token.as_ref().ok_or_else(missing)?;
    let prefix = model.continuing_subword_prefix.as_ref().ok_or_else(missing)?;
    let chars_max = model.max_input_chars_per_word.ok_or_else(missing)?;
    let Some(&unknown) = model.vocab.get(unknown) else {
        return unsupported("an unknown token that does not exist");
    };
    match file.pre_tokenizer()? {
        Some(section) if section.kind == "BertPreTokenizer" => section.end()?,
        Some(section) => return section.unknown(),
        None => return unsupported("WordPiece without a pre-tokenizer"),
    }
    let Some(mut section) = file.normalizer()? else { return unsupported("WordPiece without a normalizer") };
    if section.kind != "BertNormalizer" {
        return section.unknown();
    }
    let lowercase = section.flag("lowercase")?;
    let accents = match section.take("strip_accents")? {
        serde_json::Value::Null => lowercase,
        value => value.as_bool().ok_or_else(missing)?,
    };
    let (clean, chinese) = (section.flag("clean_text")?, section.flag("handle_chinese_chars")?);
    section.end()?;
    let tokens = model.vocab.iter().map(|(token, &id)| (token.as_str(), id));
    let pieces = WordPiece::new(tokens, prefix, unknown, chars_max);
    Ok((Model::Words { pieces, bert: Bert { clean, chinese, accents, lowercase } }, Normalising::Everything))
}
