//! The footer: schema, where every column chunk lies, the model's metadata, and a checksum over itself.

use crate::error::{Result, StorageError};
use crate::layout::TENSORS_MAX;
use crate::schema::{COLUMNS, Chunk, Holds, Physical, WIDTH};
use crate::thrift::{Malformed, Reader, Writer, kind};

/// About 600 bytes a tensor: room for 100,000 of them.
pub const FOOTER_BYTES_MAX: u64 = 64 << 20;
/// Keys of the metadata; far more than anybody wrote into a footer so far.
const PAIRS_MAX: usize = 10_000;
/// What wrote the file: the version of the format, so that equal tensors give equal bytes in every release.
const CREATED_BY: &str = "aios version 2.0.0";
/// The format's name for its own metadata.
pub const FOOTER_CRC_KEY: &str = "aios.footer_crc32c";

/// The footer's bytes with the checksum filled in.
pub fn footer(rows: &[[Chunk; WIDTH]], metadata: &[(String, String)]) -> Vec<u8> {
    let mut out = Writer::default();
    out.open();
    out.field_i32(1, 2);
    write_schema(&mut out);
    out.field_i64(3, rows.len() as i64);
    out.field_list(4, kind::STRUCT, rows.len());
    rows.iter().for_each(|row| write_row_group(&mut out, row));
    out.field_list(5, kind::STRUCT, metadata.len() + 1);
    let placeholder = (FOOTER_CRC_KEY.to_owned(), "00000000".to_owned());
    let mut digits = 0;
    for (key, value) in metadata.iter().chain([&placeholder]) {
        out.open();
        out.field_binary(1, key.as_bytes());
        out.field_binary(2, value.as_bytes());
        digits = out.bytes.len() - 8.min(value.len());
        out.close();
    }
    out.field_binary(6, CREATED_BY.as_bytes());
    out.close();
    let crc = aios_crc32c::crc32c(&out.bytes, 0);
    out.bytes[digits..digits + 8].copy_from_slice(format!("{crc:08x}").as_bytes());
    out.bytes
}

fn write_schema(out: &mut Writer) {
    const REQUIRED: i32 = 0;
    const REPEATED: i32 = 2;
    out.field_list(2, kind::STRUCT, 1 + WIDTH + 2);
    out.open();
    out.field_binary(4, b"schema");
    out.field_i32(5, WIDTH as i32);
    out.close();
    for (name, holds) in COLUMNS {
        out.open();
        if holds != Holds::Shape {
            out.field_i32(1, holds.physical() as i32);
        }
        out.field_i32(3, REQUIRED);
        out.field_binary(4, name.as_bytes());
        match holds {
            Holds::Text => {
                out.field_i32(6, 0); // UTF8
                write_logical(out, 1); // STRING
            }
            Holds::Shape => {
                out.field_i32(5, 1);
                out.field_i32(6, 3); // LIST
                write_logical(out, 3); // LIST
            }
            _ => {}
        }
        out.close();
        if holds == Holds::Shape {
            out.open();
            out.field_i32(3, REPEATED);
            out.field_binary(4, b"list");
            out.field_i32(5, 1);
            out.close();
            out.open();
            out.field_i32(1, Physical::Int64 as i32);
            out.field_i32(3, REQUIRED);
            out.field_binary(4, b"element");
            out.close();
        }
    }
}

fn write_logical(out: &mut Writer, variant: i16) {
    out.field_struct(10);
    out.field_struct(variant);
    out.close();
    out.close();
}

fn write_row_group(out: &mut Writer, row: &[Chunk; WIDTH]) {
    out.open();
    out.field_list(1, kind::STRUCT, WIDTH);
    for (chunk, (name, holds)) in row.iter().zip(COLUMNS) {
        out.open();
        out.field_i64(2, 0); // deprecated: the metadata is nowhere but here
        out.field_struct(3);
        out.field_i32(1, holds.physical() as i32);
        let encodings: &[i64] = if holds == Holds::Shape { &[0, 3] } else { &[0] }; // PLAIN, RLE
        out.field_list(2, kind::I32, encodings.len());
        encodings.iter().for_each(|&encoding| out.integer(encoding));
        let path: &[&str] = if holds == Holds::Shape { &[name, "list", "element"] } else { &[name] };
        out.field_list(3, kind::BINARY, path.len());
        path.iter().for_each(|step| out.binary(step.as_bytes()));
        out.field_i32(4, 0); // UNCOMPRESSED
        out.field_i64(5, chunk.values as i64);
        out.field_i64(6, chunk.bytes as i64);
        out.field_i64(7, chunk.bytes as i64);
        out.field_i64(9, chunk.start as i64);
        out.close();
        out.close();
    }
    out.field_i64(2, row.iter().map(|chunk| chunk.bytes as i64).sum());
    out.field_i64(3, 1);
    out.close();
}

/// What a footer says.
pub struct Footer {
    /// The chunks of every row.
    pub rows: Vec<[Chunk; WIDTH]>,
    /// Keys and values, the checksum included.
    pub metadata: Vec<(String, String)>,
}

/// Read a footer and check its checksum; chunks are not yet held against the file.
pub fn read_footer(bytes: &[u8]) -> Result<Footer> {
    let Parsed { footer, columns, digits } = parse_footer(bytes)
        .map_err(|Malformed(why)| StorageError::corrupt(format!("the footer cannot be read: {why}")))?;
    if columns != COLUMNS.map(|(name, _)| name) {
        return Err(StorageError::corrupt("its columns are not those of a weight file"));
    }
    let digits = digits.ok_or_else(|| StorageError::corrupt("the footer has no checksum of its own"))?;
    let before = aios_crc32c::crc32c(&bytes[..digits], 0);
    let crc = aios_crc32c::crc32c(&bytes[digits + 8..], aios_crc32c::crc32c(b"00000000", before));
    if format!("{crc:08x}").as_bytes() != &bytes[digits..digits + 8] {
        return Err(StorageError::corrupt("the footer's checksum differs"));
    }
    Ok(footer)
}

/// A footer as it was read: the columns' names, and where the digits of its checksum lie.
struct Parsed<'a> {
    footer: Footer,
    columns: Vec<&'a str>,
    digits: Option<usize>,
}

fn parse_footer(bytes: &[u8]) -> std::result::Result<Parsed<'_>, Malformed> {
    let mut reader = Reader::new(bytes);
    let (mut rows, mut metadata, mut columns, mut count) = (Vec::new(), Vec::new(), Vec::new(), -1);
    let mut digits = None;
    reader.structure(|r, id, _| {
        match id {
            2 => columns = read_schema(r)?,
            3 => count = r.integer()?,
            4 => {
                let length = r.list(kind::STRUCT)?;
                if length > TENSORS_MAX {
                    return Err(Malformed("it has too many tensors"));
                }
                for _ in 0..length {
                    rows.push(read_row_group(r)?);
                }
            }
            5 => {
                let length = r.list(kind::STRUCT)?;
                if length > PAIRS_MAX {
                    return Err(Malformed("it has too many metadata keys"));
                }
                for _ in 0..length {
                    let (key, value, end) = read_pair(r)?;
                    if key == FOOTER_CRC_KEY {
                        digits = end.checked_sub(8).filter(|_| value.len() == 8 && digits.is_none());
                    }
                    metadata.push((key.to_owned(), value.to_owned()));
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    if reader.position() != bytes.len() {
        return Err(Malformed("bytes follow its end"));
    }
    if count != rows.len() as i64 {
        return Err(Malformed("its rows and row groups differ in number"));
    }
    Ok(Parsed { footer: Footer { rows, metadata }, columns, digits })
}

/// The names of the top-level columns, where the whole schema has the shape of ours.
fn read_schema<'a>(reader: &mut Reader<'a>) -> std::result::Result<Vec<&'a str>, Malformed> {
    let length = reader.list(kind::STRUCT)?;
    if length != 1 + WIDTH + 2 {
        return Err(Malformed("its schema is another one"));
    }
    let mut names = Vec::with_capacity(length);
    for _ in 0..length {
        let mut name = "";
        reader.structure(|r, id, _| {
            if id != 4 {
                return Ok(false);
            }
            name = r.string()?;
            Ok(true)
        })?;
        names.push(name);
    }
    names.remove(0);
    if names.drain(2..4).ne(["list", "element"]) {
        return Err(Malformed("its schema is another one"));
    }
    Ok(names)
}

/// A key, its value, and where the value ends.
fn read_pair<'a>(reader: &mut Reader<'a>) -> std::result::Result<(&'a str, &'a str, usize), Malformed> {
    let (mut key, mut value, mut end) = ("", "", 0);
    reader.structure(|r, id, _| {
        match id {
            1 => key = r.string()?,
            2 => {
                value = r.string()?;
                end = r.position();
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok((key, value, end))
}

fn read_row_group(reader: &mut Reader<'_>) -> std::result::Result<[Chunk; WIDTH], Malformed> {
    let mut row = None;
    let mut count = -1;
    reader.structure(|r, id, _| {
        match id {
            1 => {
                if r.list(kind::STRUCT)? != WIDTH {
                    return Err(Malformed("a row has another number of columns"));
                }
                let mut chunks = [Chunk::default(); WIDTH];
                for (chunk, (name, holds)) in chunks.iter_mut().zip(COLUMNS) {
                    *chunk = read_chunk(r, name, holds)?;
                }
                row = Some(chunks);
            }
            3 => count = r.integer()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    row.filter(|_| count == 1).ok_or(Malformed("a row group does not hold one row"))
}

fn read_chunk(reader: &mut Reader<'_>, name: &str, holds: Holds) -> std::result::Result<Chunk, Malformed> {
    let mut chunk = None;
    reader.structure(|r, id, _| match id {
        1 => Err(Malformed("a column lies in another file")),
        3 => {
            chunk = Some(read_column_metadata(r, name, holds)?);
            Ok(true)
        }
        _ => Ok(false),
    })?;
    chunk.ok_or(Malformed("a column has no metadata"))
}

fn read_column_metadata(
    reader: &mut Reader<'_>,
    name: &str,
    holds: Holds,
) -> std::result::Result<Chunk, Malformed> {
    let (mut physical, mut codec, mut sizes, mut own_path) = (-1, -1, (0, 0), false);
    let mut chunk = Chunk::default();
    reader.structure(|r, id, _| {
        match id {
            1 => physical = r.integer()?,
            3 => {
                let steps = r.list(kind::BINARY)?;
                for step in 0..steps {
                    let part = r.binary()?;
                    own_path = if step == 0 { part == name.as_bytes() } else { own_path };
                }
                own_path &= steps == if holds == Holds::Shape { 3 } else { 1 };
            }
            4 => codec = r.integer()?,
            5 => chunk.values = r.count()?,
            6 => sizes.0 = r.count()?,
            7 => sizes.1 = r.count()?,
            9 => chunk.start = r.count()?,
            11 => return Err(Malformed("a column has a dictionary")),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    chunk.bytes = sizes.0;
    let fits = physical == holds.physical() as i64 && codec == 0 && own_path && sizes.0 == sizes.1;
    fits.then_some(chunk).ok_or(Malformed("a column is stored in another way"))
}
