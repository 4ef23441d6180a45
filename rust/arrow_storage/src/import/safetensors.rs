//! The directory of a safetensors file.
//!
//! Layout: 8 bytes little-endian header length, a JSON object name -> {dtype, shape, data_offsets}, then the tensors,
//! back to back. Source: the safetensors format description, version 1.

use std::collections::HashSet;
use std::fmt;
use std::io::Read;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use super::{AXES_MAX, Fault, NAME_BYTES_MAX, TENSORS_MAX, elements, malformed, shown};

const LENGTH_BYTES: u64 = 8;
/// A model of 100,000 tensors needs about 10 MB.
pub const HEADER_BYTES_MAX: u64 = 16 << 20;

/// Where one tensor lies: `begin..end` are bytes of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Its name.
    pub name: String,
    /// Its element type, by the name Parquet V2 uses.
    pub dtype: &'static str,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its first byte.
    pub begin: u64,
    /// Behind its last byte.
    pub end: u64,
}

/// Every tensor in file order; together they cover the file to its end: no gap, no overlap.
pub fn directory(mut source: impl Read, file_bytes: u64) -> Result<Vec<Extent>, Fault> {
    let mut length = [0; LENGTH_BYTES as usize];
    if file_bytes < LENGTH_BYTES {
        return malformed(format!("a file of {file_bytes} bytes holds no header"));
    }
    source.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_BYTES_MAX.min(file_bytes - LENGTH_BYTES) {
        return malformed(format!("a header of {length} bytes in a file of {file_bytes}"));
    }
    let mut raw = vec![0; length as usize];
    source.read_exact(&mut raw)?;
    let Header(entries) = serde_json::from_slice(&raw)
        .map_err(|error| Fault::Malformed(format!("its header is no directory of tensors: {error}")))?;
    if entries.is_empty() {
        return malformed("it holds no tensors");
    }
    let payload = LENGTH_BYTES + length;
    let mut extents =
        entries.into_iter().map(|entry| extent(entry, payload, file_bytes)).collect::<Result<Vec<_>, _>>()?;
    extents.sort_by_key(|extent| (extent.begin, extent.end));
    let mut end = payload;
    for extent in &extents {
        if extent.begin != end {
            let (name, begin) = (shown(&extent.name), extent.begin - payload);
            return malformed(format!(
                "tensor {name:?} begins at {begin}, the one before ends at {}",
                end - payload
            ));
        }
        end = extent.end;
    }
    if end != file_bytes {
        return malformed(format!(
            "its tensors end at byte {end}, the file at {file_bytes}: truncated or padded"
        ));
    }
    Ok(extents)
}

fn extent(entry: Entry, payload: u64, file_bytes: u64) -> Result<Extent, Fault> {
    let Entry { name, dtype, shape, offsets: (begin, end) } = entry;
    let (dtype, bytes) = element_type(&name, &dtype)?;
    let size = elements(&shape).and_then(|count| count.checked_mul(bytes));
    if begin > end || end > file_bytes - payload || size != Some(end - begin) {
        let name = shown(&name);
        return malformed(format!(
            "tensor {name:?} of shape {shape:?} does not fit its bytes {begin}..{end}"
        ));
    }
    Ok(Extent { name, dtype, shape, begin: payload + begin, end: payload + end })
}

/// (name in Parquet V2, bytes) of an element type.
fn element_type(name: &str, dtype: &str) -> Result<(&'static str, u64), Fault> {
    Ok(match dtype {
        "F64" => ("f64", 8),
        "F32" => ("f32", 4),
        "F16" => ("f16", 2),
        "BF16" => ("bf16", 2),
        "I64" => ("i64", 8),
        "I32" => ("i32", 4),
        "I16" => ("i16", 2),
        "I8" => ("i8", 1),
        "U8" => ("u8", 1),
        "BOOL" => ("bool", 1),
        other => {
            let (name, other) = (shown(name), shown(other));
            return Err(Fault::Unsupported(format!("tensor {name:?} has the element type {other:?}")));
        }
    })
}

/// The header's tensors in the order they are written, `__metadata__` skipped.
struct Header(Vec<Entry>);

struct Entry {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    offsets: (u64, u64),
}

/// What stands behind a name.
struct Value {
    dtype: String,
    shape: Shape,
    offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Header;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let (mut entries, mut names) = (Vec::new(), HashSet::new());
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if name.len() > NAME_BYTES_MAX || entries.len() as u64 >= TENSORS_MAX {
                        return Err(A::Error::custom("a name is too long, or there are too many tensors"));
                    }
                    if !names.insert(name.clone()) {
                        return Err(A::Error::custom(format_args!(
                            "the name {:?} stands there twice",
                            shown(&name)
                        )));
                    }
                    let Value { dtype, shape, offsets } = map.next_value()?;
                    entries.push(Entry { name, dtype, shape: shape.0, offsets });
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Value;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object of dtype, shape and data_offsets")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let (mut dtype, mut shape, mut offsets) = (None, None, None);
                while let Some(key) = map.next_key::<String>()? {
                    let again = match key.as_str() {
                        "dtype" => dtype.replace(map.next_value::<String>()?).is_some(),
                        "shape" => shape.replace(map.next_value::<Shape>()?).is_some(),
                        "data_offsets" => offsets.replace(map.next_value::<(u64, u64)>()?).is_some(),
                        other => {
                            return Err(A::Error::custom(format_args!(
                                "the unknown field {:?}",
                                shown(other)
                            )));
                        }
                    };
                    if again {
                        return Err(A::Error::custom("a field stands there twice"));
                    }
                }
                let absent = || A::Error::custom("dtype, shape or data_offsets is missing");
                Ok(Value {
                    dtype: dtype.ok_or_else(absent)?,
                    shape: shape.ok_or_else(absent)?,
                    offsets: offsets.ok_or_else(absent)?,
                })
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// At most `AXES_MAX` numbers: a longer list is refused while it is read.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Axes;
        impl<'de> Visitor<'de> for Axes {
            type Value = Shape;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(out, "at most {AXES_MAX} axes")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut axes = Vec::new();
                while let Some(axis) = seq.next_element::<u64>()? {
                    if axes.len() == AXES_MAX {
                        return Err(A::Error::custom("too many axes"));
                    }
                    axes.push(axis);
                }
                Ok(Shape(axes))
            }
        }
        deserializer.deserialize_seq(Axes)
    }
}
