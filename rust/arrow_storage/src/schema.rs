//! The Parquet side of the format: sixteen columns, one row group a tensor, one plain page a value.
//!
//! Source: apache/parquet-format, parquet.thrift (format 2.11) and Encodings.md.

use crate::layout::TensorEntry;
use crate::thrift::{Malformed, Reader, Writer};

/// First and last bytes of every Parquet file.
pub const MAGIC: &[u8; 4] = b"PAR1";
/// A page header of this format never takes more: 5 bytes for each of three 32-bit numbers.
pub const HEADER_BYTES_MAX: u64 = 31;
/// The plain encoding of a byte array begins with its length.
pub const LENGTH_BYTES: u64 = 4;
/// Parquet's physical types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Physical {
    Boolean = 0,
    Int32 = 1,
    Int64 = 2,
    ByteArray = 6,
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    Text,
    Shape,
    Flag,
    Small,
    Large,
    Bytes,
}

/// The columns, in order; `data` to `right` are the heavy ones.
pub const COLUMNS: [(&str, Holds); 16] = [
    ("name", Holds::Text),
    ("shape", Holds::Shape),
    ("dtype", Holds::Text),
    ("group_size", Holds::Small),
    ("symmetric", Holds::Flag),
    ("order", Holds::Small),
    ("rank", Holds::Small),
    ("data", Holds::Bytes),
    ("scales", Holds::Bytes),
    ("zeros", Holds::Bytes),
    ("left", Holds::Bytes),
    ("right", Holds::Bytes),
    ("offset", Holds::Large),
    ("pad", Holds::Small),
    ("checksum", Holds::Large),
    ("sha256", Holds::Bytes),
];
/// Number of columns.
pub const WIDTH: usize = COLUMNS.len();
/// Index of `data`.
pub const HEAVY: usize = 7;

impl Holds {
    /// Its type in Parquet.
    pub fn physical(self) -> Physical {
        match self {
            Holds::Text | Holds::Bytes => Physical::ByteArray,
            Holds::Shape | Holds::Large => Physical::Int64,
            Holds::Flag => Physical::Boolean,
            Holds::Small => Physical::Int32,
        }
    }
}

/// Where a column chunk, one page, lies in the file.
#[derive(Debug, Clone, Copy, Default)]
pub struct Chunk {
    /// Where its page header begins.
    pub start: u64,
    /// Bytes of header and page.
    pub bytes: u64,
    /// Values in it: 1, or the axes of a shape.
    pub values: u64,
}

/// The header of a v1 data page with `values` plain values in `bytes` bytes.
pub fn page_header(bytes: u32, crc32: u32, values: u32) -> Vec<u8> {
    let mut out = Writer::default();
    out.bytes.reserve_exact(HEADER_BYTES_MAX as usize + 5); // more than one value, more bytes
    out.open();
    out.field_i32(1, 0); // DATA_PAGE
    out.field_i32(2, bytes as i32);
    out.field_i32(3, bytes as i32);
    out.field_i32(4, crc32 as i32);
    out.field_struct(5);
    out.field_i32(1, values as i32);
    out.field_i32(2, 0); // PLAIN
    out.field_i32(3, 3); // RLE definition levels
    out.field_i32(4, 3); // RLE repetition levels
    out.close();
    out.close();
    out.bytes
}

/// A page whole: its header, then `body`.
fn page(body: &[u8], values: u32, out: &mut Vec<u8>) {
    out.extend(page_header(body.len() as u32, crc32fast::hash(body), values));
    out.extend_from_slice(body);
}

/// One value of a column, before it is a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value<'a> {
    /// A string or bytes.
    Bytes(&'a [u8]),
    /// A list of integers.
    List(Vec<i64>),
    /// A number of 32 or 64 bits, or a boolean.
    Number(i64),
}

/// The plain encoding of one row of column `column`, levels included, and how many values Parquet counts in it.
fn encode(column: usize, value: &Value<'_>) -> (Vec<u8>, u32) {
    match (COLUMNS[column].1, value) {
        (Holds::Text | Holds::Bytes, Value::Bytes(bytes)) => {
            ([&(bytes.len() as u32).to_le_bytes()[..], bytes].concat(), 1)
        }
        (Holds::Shape, Value::List(axes)) => (encode_list(axes), axes.len().max(1) as u32),
        (Holds::Flag, Value::Number(flag)) => (vec![*flag as u8], 1),
        (Holds::Small, Value::Number(number)) => ((*number as i32).to_le_bytes().to_vec(), 1),
        (Holds::Large, Value::Number(number)) => (number.to_le_bytes().to_vec(), 1),
        _ => unreachable!("every column is given its own type of value"),
    }
}

/// Repetition levels 0 1 1 ..., definition levels 1 1 ... (0 for an empty list) as RLE runs, then the axes.
fn encode_list(axes: &[i64]) -> Vec<u8> {
    let run = |length: usize, level: u8| [(length as u8) << 1, level];
    let repeated = if axes.len() > 1 { run(axes.len() - 1, 1).to_vec() } else { Vec::new() };
    let repetition = [&run(1, 0)[..], &repeated].concat();
    let definition = run(axes.len().max(1), u8::from(!axes.is_empty()));
    let mut out = Vec::new();
    for levels in [&repetition[..], &definition[..]] {
        out.extend((levels.len() as u32).to_le_bytes());
        out.extend_from_slice(levels);
    }
    axes.iter().for_each(|axis| out.extend(axis.to_le_bytes()));
    out
}

/// Read a page of column `column` back; the bytes are exactly one chunk. `Err` says what is wrong.
pub fn decode<'a>(column: usize, chunk: &'a [u8], values: u64) -> std::result::Result<Value<'a>, Malformed> {
    let mut reader = Reader::new(chunk);
    reader.structure(|_, _, _| Ok(false))?;
    let (header, body) = chunk.split_at(reader.position());
    let values_in_32 = u32::try_from(values).unwrap_or(u32::MAX);
    // Headers have one form: whatever else one says, or whatever was flipped in it, it is not the one we write.
    if header != page_header(body.len() as u32, crc32fast::hash(body), values_in_32) {
        return Err(Malformed("its page differs from its CRC or its header"));
    }
    let wrong = Malformed("its page has another length");
    match COLUMNS[column].1 {
        Holds::Text | Holds::Bytes => {
            let (length, bytes) = body.split_first_chunk::<4>().ok_or(wrong)?;
            if u32::from_le_bytes(*length) as usize != bytes.len() {
                return Err(wrong);
            }
            Ok(Value::Bytes(bytes))
        }
        Holds::Shape => {
            decode_list(body).filter(|v| v.len().max(1) as u64 == values).map(Value::List).ok_or(wrong)
        }
        Holds::Flag => match body {
            [flag @ (0 | 1)] => Ok(Value::Number((*flag).into())),
            _ => Err(Malformed("its page holds no boolean")),
        },
        Holds::Small => {
            body.try_into().map(|b| Value::Number(i32::from_le_bytes(b).into())).map_err(|_| wrong)
        }
        Holds::Large => body.try_into().map(|b| Value::Number(i64::from_le_bytes(b))).map_err(|_| wrong),
    }
}

/// Axes are at most 8, so that the levels have one possible form; anything else is refused.
fn decode_list(body: &[u8]) -> Option<Vec<i64>> {
    let axes: Vec<i64> = (0..=8).find_map(|axes| {
        let levels = if axes > 1 { 4 + 4 + 4 + 2 } else { 4 + 2 + 4 + 2 };
        (body.len() == levels + 8 * axes)
            .then(|| body[levels..].as_chunks::<8>().0.iter().map(|axis| i64::from_le_bytes(*axis)).collect())
    })?;
    (encode_list(&axes) == body).then_some(axes)
}

/// The small columns of `entry`, and its absent parts, as pages appended to `out`, which begins at `base` in the file.
pub fn directory(entry: &TensorEntry, pad: u64, base: u64, out: &mut Vec<u8>) -> [Chunk; WIDTH] {
    let spec = &entry.spec;
    let (mut chunks, mut offset) = ([Chunk::default(); WIDTH], entry.parts[0].offset);
    let number = |value: u64| Value::Number(value as i64);
    for (column, chunk) in chunks.iter_mut().enumerate() {
        let heavy = (HEAVY..HEAVY + 5).contains(&column);
        if heavy && entry.parts[column - HEAVY].bytes > 0 {
            let part = entry.parts[column - HEAVY];
            *chunk = Chunk { start: part.page, bytes: part.end() - part.page, values: 1 };
            continue;
        }
        let value = match column {
            0 => Value::Bytes(spec.name.as_bytes()),
            1 => Value::List(spec.shape.iter().map(|&axis| axis as i64).collect()),
            2 => Value::Bytes(spec.dtype.name().as_bytes()),
            3 => number(spec.group_size.into()),
            4 => number(spec.symmetric.into()),
            5 => number(spec.order().into()),
            6 => number(spec.rank.into()),
            12 => number(offset),
            13 => number(pad),
            14 => number(entry.checksum.into()),
            15 => Value::Bytes(&entry.sha256),
            _ => Value::Bytes(&[]),
        };
        let start = out.len();
        let (body, values) = encode(column, &value);
        page(&body, values, out);
        *chunk =
            Chunk { start: base + start as u64, bytes: (out.len() - start) as u64, values: values.into() };
        if column == HEAVY {
            offset = base + out.len() as u64; // empty data lies here
        }
    }
    chunks
}
