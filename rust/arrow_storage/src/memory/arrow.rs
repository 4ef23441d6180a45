//! The metadata of an Arrow IPC file with one batch of memories: written only, a function of the file's sizes alone.
//!
//! A reader of ours parses none of it: it writes the metadata that belongs to the sizes and compares. Nothing that a
//! file says about itself in flatbuffers is ever believed.
//!
//! Source: "Arrow Columnar Format", IPC file format (version V5); "FlatBuffers internals".

use super::record::Vectors;

/// Buffers begin at multiples of this.
pub const ALIGNMENT: u64 = 64;
const VERSION_V5: i16 = 4;
const SCHEMA: u8 = 1;
const RECORD_BATCH: u8 = 3;
const CONTINUED: [u8; 4] = [0xFF; 4];
const MAGIC: &[u8] = b"ARROW1";

/// A type of Arrow's as a column here has it.
#[derive(Clone, Copy)]
enum Type {
    U64,
    U32,
    Float { half: bool },
    Timestamp,
    Utf8,
    Utf8List,
    LargeBinary,
    Vector(Vectors),
}

/// A place in a batch's body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    /// From the beginning of the body.
    pub offset: u64,
    /// Without padding.
    pub bytes: u64,
}

/// A flatbuffer table: field number and value.
type Table = Vec<(usize, Value)>;

enum Value {
    U8(u8),
    I16(i16),
    I32(i32),
    I64(i64),
    Text(&'static str),
    Table(Table),
    Tables(Vec<Table>),
    /// Number of structs whose bytes these are; all are made of 64-bit words.
    Structs(usize, Vec<u8>),
}

impl Value {
    fn width(&self) -> usize {
        match self {
            Value::U8(_) => 1,
            Value::I16(_) => 2,
            Value::I64(_) => 8,
            _ => 4,
        }
    }
}

/// The columns in the order of the file.
fn columns(vectors: Vectors) -> [(&'static str, Type); 9] {
    [
        ("id", Type::U64),
        ("time", Type::Timestamp),
        ("namespace", Type::Utf8),
        ("tags", Type::Utf8List),
        ("source", Type::Utf8),
        ("provenance", Type::Utf8),
        ("crc32c", Type::U32),
        ("sealed", Type::LargeBinary),
        ("vector", Type::Vector(vectors)),
    ]
}

fn field(name: &'static str, kind: Type) -> Table {
    let (code, about, children): (u8, Table, Vec<Table>) = match kind {
        Type::U64 => (2, vec![(0, Value::I32(64))], vec![]),
        Type::U32 => (2, vec![(0, Value::I32(32))], vec![]),
        Type::Float { half } => (3, vec![(0, Value::I16(if half { 0 } else { 1 }))], vec![]),
        Type::Timestamp => (10, vec![(0, Value::I16(2)), (1, Value::Text("UTC"))], vec![]), // microseconds
        Type::Utf8 => (5, vec![], vec![]),
        Type::Utf8List => (12, vec![], vec![field("item", Type::Utf8)]),
        Type::LargeBinary => (19, vec![], vec![]),
        Type::Vector(of) => {
            let item = field("item", Type::Float { half: of.half });
            (16, vec![(0, Value::I32(of.dim as i32))], vec![item])
        }
    };
    vec![
        (0, Value::Text(name)),
        (1, Value::U8(0)), // never null
        (2, Value::U8(code)),
        (3, Value::Table(about)),
        (5, Value::Tables(children)),
    ]
}

fn schema(vectors: Vectors) -> Table {
    let fields = columns(vectors).into_iter().map(|(name, kind)| field(name, kind)).collect();
    vec![(0, Value::I16(0)), (1, Value::Tables(fields))] // little-endian
}

/// What stands before and behind the body of a file.
pub struct Frame {
    /// From the first byte of the file to the body, which begins at a multiple of `ALIGNMENT`.
    pub before: Vec<u8>,
    /// The end of the stream: behind the body.
    pub after: [u8; 8],
    /// The footer, its length, and the magic: the end of the file.
    pub footer: Vec<u8>,
}

/// The metadata of a batch of `rows` whose body is `body` bytes: validity is left out, the other buffers are `spans`.
///
/// nodes: the lengths of all columns, children behind their parents. spans: in the same order; None is a validity.
pub fn frame(vectors: Vectors, rows: u64, nodes: &[u64], spans: &[Option<Span>], body: u64) -> Frame {
    let schema_message = vec![
        (0, Value::I16(VERSION_V5)),
        (1, Value::U8(SCHEMA)),
        (2, Value::Table(schema(vectors))),
        (3, Value::I64(0)),
    ];
    let nodes = (nodes.len(), nodes.iter().flat_map(|&length| words(&[length, 0])).collect());
    let buffers = spans.iter().map(|span| span.unwrap_or_default());
    let buffers = (spans.len(), buffers.flat_map(|span| words(&[span.offset, span.bytes])).collect());
    let batch = vec![
        (0, Value::I64(rows as i64)),
        (1, Value::Structs(nodes.0, nodes.1)),
        (2, Value::Structs(buffers.0, buffers.1)),
    ];
    let batch_message = vec![
        (0, Value::I16(VERSION_V5)),
        (1, Value::U8(RECORD_BATCH)),
        (2, Value::Table(batch)),
        (3, Value::I64(body as i64)),
    ];
    let mut before = [MAGIC, &[0; 2]].concat();
    message(&schema_message, 8, &mut before);
    let block_at = before.len() as u64;
    message(&batch_message, ALIGNMENT as usize, &mut before);
    let block = words(&[block_at, before.len() as u64 - block_at, body]);
    let footer_table = vec![
        (0, Value::I16(VERSION_V5)),
        (1, Value::Table(schema(vectors))),
        (2, Value::Structs(0, Vec::new())),
        (3, Value::Structs(1, block)),
    ];
    let mut footer = flatbuffer(&footer_table);
    footer.extend((footer.len() as u32).to_le_bytes());
    footer.extend_from_slice(MAGIC);
    let mut after = [0; 8];
    after[..4].copy_from_slice(&CONTINUED);
    Frame { before, after, footer }
}

fn words(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// Append an encapsulated message whose end in the file is a multiple of `alignment`.
fn message(table: &Table, alignment: usize, out: &mut Vec<u8>) {
    let mut bytes = flatbuffer(table);
    let end = (out.len() + 8 + bytes.len()).next_multiple_of(alignment);
    bytes.resize(end - out.len() - 8, 0);
    out.extend(CONTINUED);
    out.extend((bytes.len() as u32).to_le_bytes());
    out.extend(bytes);
}

fn flatbuffer(root: &Table) -> Vec<u8> {
    let mut out = vec![0; 4];
    let at = table(root, &mut out);
    out[..4].copy_from_slice(&(at as u32).to_le_bytes());
    out
}

/// Append a table with its vtable before it and what it points to behind; returns where it begins.
fn table(fields: &Table, out: &mut Vec<u8>) -> usize {
    let slots = fields.iter().map(|(slot, _)| slot + 1).max().unwrap_or(0);
    let mut offsets = vec![0u16; slots];
    let mut size = 4usize;
    for (slot, value) in fields {
        size = size.next_multiple_of(value.width());
        offsets[*slot] = size as u16;
        size += value.width();
    }
    pad(out, 8);
    let vtable = out.len();
    out.extend((4 + 2 * slots as u16).to_le_bytes());
    out.extend((size as u16).to_le_bytes());
    offsets.iter().for_each(|offset| out.extend(offset.to_le_bytes()));
    pad(out, 8);
    let begin = out.len();
    out.extend(((begin - vtable) as i32).to_le_bytes());
    out.resize(begin + size, 0);
    for (slot, value) in fields {
        let at = begin + usize::from(offsets[*slot]);
        match value {
            Value::U8(number) => out[at] = *number,
            Value::I16(number) => out[at..at + 2].copy_from_slice(&number.to_le_bytes()),
            Value::I32(number) => out[at..at + 4].copy_from_slice(&number.to_le_bytes()),
            Value::I64(number) => out[at..at + 8].copy_from_slice(&number.to_le_bytes()),
            pointed => {
                let target = append(pointed, out);
                out[at..at + 4].copy_from_slice(&((target - at) as u32).to_le_bytes());
            }
        }
    }
    begin
}

/// Append what an offset points to; returns where it begins.
fn append(value: &Value, out: &mut Vec<u8>) -> usize {
    match value {
        Value::Text(text) => {
            pad(out, 4);
            let begin = out.len();
            out.extend((text.len() as u32).to_le_bytes());
            out.extend_from_slice(text.as_bytes());
            out.push(0);
            begin
        }
        Value::Table(fields) => table(fields, out),
        Value::Tables(tables) => {
            pad(out, 4);
            let begin = out.len();
            out.extend((tables.len() as u32).to_le_bytes());
            out.resize(begin + 4 + 4 * tables.len(), 0);
            for (index, fields) in tables.iter().enumerate() {
                let at = begin + 4 + 4 * index;
                let target = table(fields, out);
                out[at..at + 4].copy_from_slice(&((target - at) as u32).to_le_bytes());
            }
            begin
        }
        Value::Structs(count, bytes) => {
            pad(out, 8);
            out.extend([0; 4]); // so that the structs themselves are aligned
            let begin = out.len();
            out.extend((*count as u32).to_le_bytes());
            out.extend_from_slice(bytes);
            begin
        }
        _ => out.len(), // numbers stand in their table
    }
}

fn pad(out: &mut Vec<u8>, alignment: usize) {
    out.resize(out.len().next_multiple_of(alignment), 0);
}
