//! The directory of a GGUF file: its metadata and where its tensors lie.
//!
//! Layout: "GGUF", version, counts, key-value pairs, tensor infos, padding, tensors at aligned offsets; little-endian.
//! Source: the GGUF specification of the ggml project, versions 2 and 3.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;

use super::blocks::BlockType;
use super::{Fault, NAME_BYTES_MAX, TENSORS_MAX, elements, malformed, shown};

const MAGIC: &[u8; 4] = b"GGUF";
const VERSIONS: std::ops::RangeInclusive<u32> = 2..=3;
const AXES_MAX: u32 = 4;
const ALIGNMENT: &str = "general.alignment";
const ALIGNMENT_DEFAULT: u64 = 32;
const ALIGNMENT_MAX: u64 = 1 << 16;

/// Key-value pairs; models in use have about 50.
pub const PAIRS_MAX: u64 = 10_000;
/// One string; the longest in use are chat templates of some 20 kB.
pub const STRING_BYTES_MAX: u64 = 16 << 20;
/// Elements of all arrays together; the largest vocabulary in use has 256,000 tokens and 600,000 merges.
pub const ELEMENTS_MAX: u64 = 8 << 20;
/// Bytes of all metadata and tensor infos; the largest vocabularies take about 20 MB.
pub const DIRECTORY_BYTES_MAX: u64 = 256 << 20;
/// Fewest bytes of a tensor's info: name length, axes, type, offset.
const INFO_BYTES_MIN: u64 = 24;

/// A metadata value; numbers of all widths are widened.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// An unsigned or signed integer.
    Int(i128),
    /// The f64 with the shortest decimal form that reads back as the stored f32, or the stored f64.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// Integers.
    Ints(Vec<i64>),
    /// Floating-point numbers.
    Floats(Vec<f64>),
    /// Truth values.
    Bools(Vec<bool>),
    /// Texts.
    Texts(Vec<String>),
}

/// Where one tensor lies: `begin..end` are bytes of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Its name.
    pub name: String,
    /// How its elements are stored.
    pub kind: BlockType,
    /// Its shape, slowest axis first (the file has it the other way round).
    pub shape: Vec<u64>,
    /// Its first byte.
    pub begin: u64,
    /// Behind its last byte.
    pub end: u64,
}

/// What a GGUF file says about itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Directory {
    /// Version of the format, 2 or 3.
    pub version: u32,
    /// Metadata by key.
    pub metadata: BTreeMap<String, Value>,
    /// Tensors in file order; none overlaps another or reaches behind the end.
    pub tensors: Vec<Extent>,
}

/// Read the directory at the beginning of `source`, of which the whole file has `file_bytes`.
pub fn directory(source: impl Read, file_bytes: u64) -> Result<Directory, Fault> {
    let mut scan = Scan { source, at: 0, end: file_bytes.min(DIRECTORY_BYTES_MAX), file_bytes, elements: 0 };
    if &scan.array::<4>()? != MAGIC {
        return malformed("it does not begin with GGUF");
    }
    let version = scan.u32()?;
    if !VERSIONS.contains(&version) {
        return Err(Fault::Unsupported(format!("GGUF version {version}; little-endian 2 and 3 can be read")));
    }
    let (tensors, pairs) = (scan.u64()?, scan.u64()?);
    if tensors > TENSORS_MAX || pairs > PAIRS_MAX || tensors.saturating_mul(INFO_BYTES_MIN) > file_bytes {
        return Err(Fault::TooLarge(format!(
            "it announces {tensors} tensors and {pairs} pairs of metadata in {file_bytes} bytes; at most \
             {TENSORS_MAX} and {PAIRS_MAX} are read"
        )));
    }
    let mut metadata = BTreeMap::new();
    for _ in 0..pairs {
        let key = scan.text(u64::from(u16::MAX), "a key")?;
        let kind = scan.u32()?;
        let value = scan.value(kind, &key)?;
        if metadata.insert(key.clone(), value).is_some() {
            return malformed(format!("the key {:?} stands there twice", shown(&key)));
        }
    }
    let infos = (0..tensors).map(|_| scan.info()).collect::<Result<Vec<_>, _>>()?;
    let alignment = alignment(&metadata)?;
    let payload = scan.at.next_multiple_of(alignment);
    Ok(Directory { version, metadata, tensors: extents(infos, payload, alignment, file_bytes)? })
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, Fault> {
    match metadata.get(ALIGNMENT) {
        None => Ok(ALIGNMENT_DEFAULT),
        Some(Value::Int(bytes)) => match u64::try_from(*bytes) {
            Ok(bytes) if bytes.is_power_of_two() && bytes <= ALIGNMENT_MAX => Ok(bytes),
            _ => malformed(format!("an alignment of {bytes} bytes")),
        },
        Some(_) => malformed("its alignment is no number"),
    }
}

/// One entry of the tensor list; `offset` counts from the aligned end of the directory.
struct Info {
    name: String,
    kind: BlockType,
    shape: Vec<u64>,
    offset: u64,
}

fn extents(infos: Vec<Info>, payload: u64, alignment: u64, file_bytes: u64) -> Result<Vec<Extent>, Fault> {
    let mut names = HashSet::new();
    let mut extents = Vec::with_capacity(infos.len());
    for Info { name, kind, shape, offset } in infos {
        if !names.insert(name.clone()) {
            return malformed(format!("the tensor {:?} stands there twice", shown(&name)));
        }
        let row = shape.last().copied().unwrap_or(1);
        let bytes = elements(&shape)
            .filter(|_| row.is_multiple_of(kind.elements() as u64))
            .and_then(|count| (count / kind.elements() as u64).checked_mul(kind.bytes() as u64));
        let begin = payload.checked_add(offset).filter(|_| offset.is_multiple_of(alignment));
        let end = begin.zip(bytes).and_then(|(begin, bytes)| begin.checked_add(bytes));
        let (Some(begin), Some(end)) = (begin, end.filter(|end| *end <= file_bytes)) else {
            let (name, kind) = (shown(&name), kind.name());
            return malformed(format!(
                "tensor {name:?} of shape {shape:?} and type {kind} at offset {offset} does not fit the file"
            ));
        };
        extents.push(Extent { name, kind, shape, begin, end });
    }
    extents.sort_by_key(|extent| (extent.begin, extent.end));
    if let Some(pair) = extents.windows(2).find(|pair| pair[1].begin < pair[0].end) {
        return malformed(format!(
            "the tensors {:?} and {:?} overlap",
            shown(&pair[0].name),
            shown(&pair[1].name)
        ));
    }
    Ok(extents)
}

/// A reader that knows where it is and how far it may go.
struct Scan<R> {
    source: R,
    at: u64,
    end: u64,
    file_bytes: u64,
    elements: u64,
}

impl<R: Read> Scan<R> {
    /// Fail before anything is allocated for `bytes` that the file does not have.
    fn need(&self, bytes: u64, what: &str) -> Result<(), Fault> {
        if bytes <= self.end - self.at {
            return Ok(());
        }
        if bytes <= self.file_bytes - self.at {
            return Err(Fault::TooLarge(format!("its directory is longer than {DIRECTORY_BYTES_MAX} bytes")));
        }
        malformed(format!(
            "{what} of {bytes} bytes at byte {} of {}: it is truncated",
            self.at, self.file_bytes
        ))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        self.need(N as u64, "a field")?;
        let mut bytes = [0; N];
        self.source.read_exact(&mut bytes)?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self, bytes_max: u64, what: &str) -> Result<String, Fault> {
        let length = self.u64()?;
        self.need(length, what)?;
        if length > bytes_max {
            return Err(Fault::TooLarge(format!("{what} of {length} bytes; {bytes_max} are the most")));
        }
        let mut bytes = vec![0; length as usize];
        self.source.read_exact(&mut bytes)?;
        self.at += length;
        String::from_utf8(bytes)
            .or_else(|_| malformed(format!("{what} before byte {} is not UTF-8", self.at)))
    }

    fn bool(&mut self) -> Result<bool, Fault> {
        match self.array::<1>()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => malformed(format!("a truth value of {other}")),
        }
    }

    /// A whole number of the GGUF value type `kind`; None when the type is no such number.
    fn integer(&mut self, kind: u32) -> Result<Option<i128>, Fault> {
        Ok(Some(match kind {
            0 => self.array::<1>()?[0].into(),
            1 => i8::from_le_bytes(self.array()?).into(),
            2 => u16::from_le_bytes(self.array()?).into(),
            3 => i16::from_le_bytes(self.array()?).into(),
            4 => self.u32()?.into(),
            5 => i32::from_le_bytes(self.array()?).into(),
            10 => self.u64()?.into(),
            11 => i64::from_le_bytes(self.array()?).into(),
            _ => return Ok(None),
        }))
    }

    fn float(&mut self, kind: u32) -> Result<f64, Fault> {
        if kind == 12 {
            return Ok(f64::from_le_bytes(self.array()?));
        }
        let narrow = f32::from_le_bytes(self.array()?);
        // 1e-5 was written as the f32 nearest to it and is read as 1e-5, not as 9.999999747378752e-06.
        Ok(narrow.to_string().parse().unwrap_or(f64::from(narrow)))
    }

    fn value(&mut self, kind: u32, key: &str) -> Result<Value, Fault> {
        if let Some(number) = self.integer(kind)? {
            return Ok(Value::Int(number));
        }
        match kind {
            6 | 12 => Ok(Value::Float(self.float(kind)?)),
            7 => Ok(Value::Bool(self.bool()?)),
            8 => Ok(Value::Text(self.text(STRING_BYTES_MAX, "a text")?)),
            9 => self.list(key),
            other => malformed(format!("the key {:?} has the unknown value type {other}", shown(key))),
        }
    }

    fn list(&mut self, key: &str) -> Result<Value, Fault> {
        let (kind, count) = (self.u32()?, self.u64()?);
        let bytes_min = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => {
                return Err(Fault::Unsupported(format!("the key {:?} holds an array of arrays", shown(key))));
            }
            other => {
                return malformed(format!(
                    "the key {:?} is an array of the unknown type {other}",
                    shown(key)
                ));
            }
        };
        self.elements = self.elements.saturating_add(count);
        if self.elements > ELEMENTS_MAX {
            return Err(Fault::TooLarge(format!("arrays of more than {ELEMENTS_MAX} elements together")));
        }
        self.need(count.saturating_mul(bytes_min), "an array")?;
        // Not collected into a vector of `count` at once: the elements of a hostile file may end early.
        Ok(match kind {
            6 | 12 => Value::Floats((0..count).map(|_| self.float(kind)).collect::<Result<_, _>>()?),
            7 => Value::Bools((0..count).map(|_| self.bool()).collect::<Result<_, _>>()?),
            8 => Value::Texts(
                (0..count).map(|_| self.text(STRING_BYTES_MAX, "a text")).collect::<Result<_, _>>()?,
            ),
            _ => Value::Ints((0..count).map(|_| self.narrow(kind, key)).collect::<Result<_, _>>()?),
        })
    }

    fn narrow(&mut self, kind: u32, key: &str) -> Result<i64, Fault> {
        let number = self.integer(kind)?.and_then(|number| i64::try_from(number).ok());
        number.map_or_else(|| malformed(format!("a number in {:?} is too large", shown(key))), Ok)
    }

    fn info(&mut self) -> Result<Info, Fault> {
        let name = self.text(NAME_BYTES_MAX as u64, "a tensor's name")?;
        let axes = self.u32()?;
        if axes > AXES_MAX {
            return malformed(format!("tensor {:?} has {axes} axes", shown(&name)));
        }
        let mut shape = (0..axes).map(|_| self.u64()).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        let kind = self.u32()?;
        let kind = BlockType::from_code(kind).ok_or_else(|| {
            let (name, kind) = (shown(&name), BlockType::name_of(kind));
            Fault::Unsupported(format!("tensor {name:?} has the type {kind}, which cannot be read"))
        })?;
        Ok(Info { name, kind, shape, offset: self.u64()? })
    }
}
