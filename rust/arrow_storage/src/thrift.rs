//! Thrift's compact protocol, as much of it as Parquet's metadata needs; every count is checked before it is used.
//!
//! Source: "Thrift Compact protocol encoding", Apache Thrift specification.

/// Nothing in Parquet's metadata nests deeper than a handful of levels.
const DEPTH_MAX: u32 = 16;
/// What is written here nests four levels deep.
const OPEN_MAX: usize = 8;

/// Compact type codes.
pub mod kind {
    pub const TRUE: u8 = 1;
    pub const FALSE: u8 = 2;
    pub const I8: u8 = 3;
    pub const I16: u8 = 4;
    pub const I32: u8 = 5;
    pub const I64: u8 = 6;
    pub const DOUBLE: u8 = 7;
    pub const BINARY: u8 = 8;
    pub const LIST: u8 = 9;
    pub const SET: u8 = 10;
    pub const MAP: u8 = 11;
    pub const STRUCT: u8 = 12;
}

/// What is wrong with the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl From<Malformed> for String {
    fn from(Malformed(why): Malformed) -> Self {
        why.to_owned()
    }
}

type Read<T> = std::result::Result<T, Malformed>;

/// Writes structs field by field; the caller keeps the order of field ids.
#[derive(Default)]
pub struct Writer {
    /// What was written so far.
    pub bytes: Vec<u8>,
    /// The last field id of each open struct, outermost first.
    last: [i16; OPEN_MAX],
    open: usize,
}

impl Writer {
    /// Begin a struct: the outermost one, or an element of a list.
    pub fn open(&mut self) {
        self.last[self.open] = 0;
        self.open += 1;
    }

    /// End the innermost struct.
    pub fn close(&mut self) {
        self.open -= 1;
        self.bytes.push(0);
    }

    fn field(&mut self, id: i16, kind: u8) {
        let last = &mut self.last[self.open - 1]; // a field is inside a struct
        let step = id - *last;
        *last = id;
        debug_assert!((1..=15).contains(&step));
        self.bytes.push((step as u8) << 4 | kind);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    /// A zigzag integer without a field header: an element of a list.
    pub fn integer(&mut self, value: i64) {
        self.varint(((value << 1) ^ (value >> 63)) as u64);
    }

    /// Bytes without a field header: an element of a list.
    pub fn binary(&mut self, value: &[u8]) {
        self.varint(value.len() as u64);
        self.bytes.extend_from_slice(value);
    }

    /// Field `id`: a 32-bit integer or an enumeration.
    pub fn field_i32(&mut self, id: i16, value: i32) {
        self.field(id, kind::I32);
        self.integer(value.into());
    }

    /// Field `id`: a 64-bit integer.
    pub fn field_i64(&mut self, id: i16, value: i64) {
        self.field(id, kind::I64);
        self.integer(value);
    }

    /// Field `id`: bytes or a string.
    pub fn field_binary(&mut self, id: i16, value: &[u8]) {
        self.field(id, kind::BINARY);
        self.binary(value);
    }

    /// Field `id`: a struct, closed by `close`.
    pub fn field_struct(&mut self, id: i16) {
        self.field(id, kind::STRUCT);
        self.open();
    }

    /// Field `id`: the header of a list of `count` elements of one kind, which follow.
    pub fn field_list(&mut self, id: i16, element: u8, count: usize) {
        self.field(id, kind::LIST);
        if count < 15 {
            self.bytes.push((count as u8) << 4 | element);
        } else {
            self.bytes.push(0xF0 | element);
            self.varint(count as u64);
        }
    }
}

/// Reads what anybody wrote; never beyond the end, never deeper than `DEPTH_MAX`.
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// A reader at the start of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0 }
    }

    /// How many bytes were read.
    #[must_use]
    pub fn position(&self) -> usize {
        self.at
    }

    fn byte(&mut self) -> Read<u8> {
        let byte = *self.bytes.get(self.at).ok_or(Malformed("it ends in the middle of a value"))?;
        self.at += 1;
        Ok(byte)
    }

    fn varint(&mut self) -> Read<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let low = u64::from(byte & 0x7F);
            if shift == 63 && low > 1 {
                break;
            }
            value |= low << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed("a number has too many digits"))
    }

    /// A zigzag integer.
    pub fn integer(&mut self) -> Read<i64> {
        let raw = self.varint()?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    /// A zigzag integer that is not negative.
    pub fn count(&mut self) -> Read<u64> {
        u64::try_from(self.integer()?).map_err(|_| Malformed("a number is negative"))
    }

    /// Bytes in place.
    pub fn binary(&mut self) -> Read<&'a [u8]> {
        let length = self.varint()?;
        let left = self.bytes.len() - self.at;
        let length = usize::try_from(length).ok().filter(|&l| l <= left);
        let length = length.ok_or(Malformed("a string is longer than what is left"))?;
        let value = &self.bytes[self.at..self.at + length];
        self.at += length;
        Ok(value)
    }

    /// A string in place.
    pub fn string(&mut self) -> Read<&'a str> {
        std::str::from_utf8(self.binary()?).map_err(|_| Malformed("a string is not UTF-8"))
    }

    /// The header of a list of `element`s: how many follow. An element takes a byte at least, so the count is bounded.
    pub fn list(&mut self, element: u8) -> Read<usize> {
        let (kind, count) = self.any_list()?;
        if kind != element && count != 0 {
            return Err(Malformed("a list holds another type"));
        }
        Ok(count)
    }

    fn any_list(&mut self) -> Read<(u8, usize)> {
        let head = self.byte()?;
        let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        let left = self.bytes.len() - self.at;
        let count = usize::try_from(count).ok().filter(|&c| c <= left);
        Ok((head & 15, count.ok_or(Malformed("a list is longer than what is left"))?))
    }

    /// The next field of a struct as (id, kind), or None at its end; `last` is the id of the field before, 0 at first.
    pub fn field(&mut self, last: &mut i16) -> Read<Option<(i16, u8)>> {
        let head = self.byte()?;
        if head == 0 {
            return Ok(None);
        }
        let step = i16::from(head >> 4);
        let id = if step == 0 {
            i16::try_from(self.integer()?).map_err(|_| Malformed("a field id is too large"))?
        } else {
            last.checked_add(step).ok_or(Malformed("a field id is too large"))?
        };
        if id <= *last {
            return Err(Malformed("fields are out of order"));
        }
        *last = id;
        Ok(Some((id, head & 15)))
    }

    /// Read every field of a struct; `read` returns false for a field it does not know, which is then skipped.
    pub fn structure(&mut self, mut read: impl FnMut(&mut Self, i16, u8) -> Read<bool>) -> Read<()> {
        let mut last = 0;
        while let Some((id, kind)) = self.field(&mut last)? {
            if !read(self, id, kind)? {
                self.skip(kind, DEPTH_MAX)?;
            }
        }
        Ok(())
    }

    /// Pass over a field's value.
    fn skip(&mut self, kind: u8, depth: u32) -> Read<()> {
        let depth = depth.checked_sub(1).ok_or(Malformed("it nests too deeply"))?;
        match kind {
            kind::TRUE | kind::FALSE => {}
            kind::I8 => drop(self.byte()?),
            kind::I16 | kind::I32 | kind::I64 => drop(self.varint()?),
            kind::DOUBLE => {
                for _ in 0..8 {
                    self.byte()?;
                }
            }
            kind::BINARY => drop(self.binary()?),
            kind::LIST | kind::SET => {
                let (element, count) = self.any_list()?;
                for _ in 0..count {
                    self.skip_element(element, depth)?;
                }
            }
            kind::MAP => {
                let count = self.varint()?;
                if count > (self.bytes.len() - self.at) as u64 {
                    return Err(Malformed("a map is longer than what is left"));
                }
                let kinds = if count == 0 { 0 } else { self.byte()? };
                for _ in 0..count {
                    self.skip_element(kinds >> 4, depth)?;
                    self.skip_element(kinds & 15, depth)?;
                }
            }
            kind::STRUCT => {
                let mut last = 0;
                while let Some((_, kind)) = self.field(&mut last)? {
                    self.skip(kind, depth)?;
                }
            }
            _ => return Err(Malformed("a field has an unknown type")),
        }
        Ok(())
    }

    /// In a list or map a boolean takes a byte of its own.
    fn skip_element(&mut self, kind: u8, depth: u32) -> Read<()> {
        match kind {
            kind::TRUE | kind::FALSE => self.byte().map(drop),
            _ => self.skip(kind, depth),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(number: i64, small: i32, bytes: Vec<u8>, list: Vec<i64>) {
            let mut out = Writer::default();
            out.open();
            out.field_i32(1, small);
            out.field_i64(3, number);
            out.field_binary(4, &bytes);
            out.field_list(5, kind::I64, list.len());
            list.iter().for_each(|&element| out.integer(element));
            out.field_struct(10);
            out.field_i64(1, number);
            out.close();
            out.close();
            let mut reader = Reader::new(&out.bytes);
            let mut seen = Vec::new();
            reader.structure(|r, id, _| {
                match id {
                    1 => assert_eq!(r.integer()?, i64::from(small)),
                    3 => assert_eq!(r.integer()?, number),
                    5 => {
                        let count = r.list(kind::I64)?;
                        let read: Read<Vec<i64>> = (0..count).map(|_| r.integer()).collect();
                        assert_eq!(read?, list);
                    }
                    _ => return Ok(false), // 4 and 10 are passed over
                }
                seen.push(id);
                Ok(true)
            }).unwrap();
            prop_assert_eq!(seen, [1, 3, 5]);
            prop_assert_eq!(reader.position(), out.bytes.len());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = Reader::new(&bytes).structure(|_, _, _| Ok(false));
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = vec![0x1C; 1000]; // field 1, a struct, and so on
        assert_eq!(Reader::new(&deep).structure(|_, _, _| Ok(false)), Err(Malformed("it nests too deeply")));
    }

    #[test]
    fn a_count_that_cannot_be_true_is_refused_before_anything_is_allocated() {
        let lie = [0x19, 0xFC, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F];
        assert!(Reader::new(&lie).structure(|r, _, _| r.list(kind::STRUCT).map(|_| true)).is_err());
    }
}
