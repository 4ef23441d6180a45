//! What a tensor is: its type, its shape, and how many bytes each of its parts takes.

use sha2::{Digest, Sha256};

use crate::error::{Result, StorageError};

/// A model of 30 B parameters has about 1,000 tensors; mixtures of experts reach tens of thousands.
pub const TENSORS_MAX: usize = 100_000;
/// Longer than any name in use, shorter than anything that hurts.
pub const NAME_BYTES_MAX: usize = 512;
/// Convolutions over volumes have 5 axes.
pub const AXES_MAX: usize = 8;
/// Parquet counts the bytes of a page in 31 bits; the rest leaves room for its header.
pub const PART_BYTES_MAX: u64 = (1 << 31) - (1 << 20);
/// Larger residuals cost more than the next number of bits.
pub const RANK_MAX: u32 = 256;
/// Every payload starts at a multiple of this in the file: a cache line, and the widest vector register.
pub const ALIGNMENT: u64 = 64;
/// Rows of a panel, and the multiple to which columns are padded: see the packed order.
const PANEL: u64 = 32;

/// The parts of a tensor, in the order in which they lie in the file.
pub const PARTS: [&str; 5] = ["data", "scales", "zeros", "left", "right"];

/// Element types; the last three are packed codes.
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    F32,
    F16,
    Bf16,
    F64,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
    Int8,
    Int4,
    Int2,
}

const DTYPES: [(Dtype, &str); 13] = [
    (Dtype::F32, "f32"),
    (Dtype::F16, "f16"),
    (Dtype::Bf16, "bf16"),
    (Dtype::F64, "f64"),
    (Dtype::I64, "i64"),
    (Dtype::I32, "i32"),
    (Dtype::I16, "i16"),
    (Dtype::I8, "i8"),
    (Dtype::U8, "u8"),
    (Dtype::Bool, "bool"),
    (Dtype::Int8, "int8"),
    (Dtype::Int4, "int4"),
    (Dtype::Int2, "int2"),
];

impl Dtype {
    /// Its name in the file.
    #[must_use]
    pub fn name(self) -> &'static str {
        DTYPES[self as usize].1
    }

    /// The type of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        DTYPES.iter().find(|(_, known)| *known == name).map(|(dtype, _)| *dtype)
    }

    /// Bits of a code, None where the type is not packed.
    #[must_use]
    pub fn code_bits(self) -> Option<u64> {
        match self {
            Dtype::Int8 => Some(8),
            Dtype::Int4 => Some(4),
            Dtype::Int2 => Some(2),
            _ => None,
        }
    }

    fn bits(self) -> u64 {
        match self {
            Dtype::F64 | Dtype::I64 => 64,
            Dtype::F32 | Dtype::I32 => 32,
            Dtype::F16 | Dtype::Bf16 | Dtype::I16 => 16,
            Dtype::I8 | Dtype::U8 | Dtype::Bool | Dtype::Int8 => 8,
            Dtype::Int4 => 4,
            Dtype::Int2 => 2,
        }
    }
}

/// Everything about a tensor that is known before its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name, unique in the file.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its logical shape.
    pub shape: Vec<u64>,
    /// Columns that share a scale; 0 where the tensor is not packed.
    pub group_size: u32,
    /// Whether the packed codes have no zeros.
    pub symmetric: bool,
    /// Columns of the residual's left factor; 0: none.
    pub rank: u32,
}

impl TensorSpec {
    /// The version of the packed order, 0 where the tensor is not packed.
    #[must_use]
    pub fn order(&self) -> u32 {
        u32::from(self.dtype.code_bits().is_some())
    }

    /// Check every field and return the bytes of each part.
    pub fn part_bytes(&self) -> Result<[u64; 5]> {
        let name = &self.name;
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
            let why = format!("a tensor's name has 1 to {NAME_BYTES_MAX} bytes and no control characters");
            return Err(StorageError::input(why));
        }
        if self.shape.len() > AXES_MAX {
            return Err(self.limit(format!("a tensor has at most {AXES_MAX} axes")));
        }
        let sizes = match self.dtype.code_bits() {
            None => self.plain_bytes()?,
            Some(bits) => self.packed_bytes(bits)?,
        };
        let sizes = sizes.ok_or_else(|| self.limit("its size does not fit in 64 bits".to_owned()))?;
        if let Some((part, size)) = PARTS.iter().zip(sizes).find(|(_, size)| *size > PART_BYTES_MAX) {
            let why = format!("its {part} takes {size} bytes; a Parquet page holds {PART_BYTES_MAX}");
            return Err(self.limit(why));
        }
        Ok(sizes)
    }

    fn limit(&self, why: String) -> StorageError {
        StorageError::Limit { tensor: Some(self.name.clone()), why }
    }

    fn plain_bytes(&self) -> Result<Option<[u64; 5]>> {
        if self.group_size != 0 || self.symmetric || self.rank != 0 {
            return Err(StorageError::input_tensor(
                &self.name,
                "only packed tensors have groups and a residual",
            ));
        }
        // Zeros count as ones: readers multiply in any order, and none of their products may overflow.
        let item = (self.dtype.bits() / 8) as i64;
        let product = |most: i64, &axis: &u64| most.checked_mul(i64::try_from(axis.max(1)).ok()?);
        let most = self.shape.iter().try_fold(item, product);
        let data = if self.shape.contains(&0) { 0 } else { most.unwrap_or(0) as u64 };
        Ok(most.map(|_| [data, 0, 0, 0, 0]))
    }

    fn packed_bytes(&self, bits: u64) -> Result<Option<[u64; 5]>> {
        let &[rows, columns] = self.shape.as_slice() else {
            return Err(StorageError::input_tensor(&self.name, "a packed tensor has two axes"));
        };
        if ![32, 64, 128].contains(&self.group_size) {
            return Err(StorageError::input_tensor(&self.name, "group_size is 32, 64 or 128"));
        }
        if self.rank > RANK_MAX {
            return Err(self.limit(format!("the residual's rank is at most {RANK_MAX}")));
        }
        let sizes = || {
            let (padded_rows, padded_columns) =
                (rows.checked_next_multiple_of(PANEL)?, columns.checked_next_multiple_of(PANEL)?);
            let codes = padded_rows.checked_mul(padded_columns)?.checked_mul(bits)? / 8;
            let groups = columns.div_ceil(self.group_size.into());
            let scales = padded_rows.checked_mul(groups)?.checked_mul(2)?;
            let rank = u64::from(self.rank);
            let (left, right) = (rows.checked_mul(rank * 2)?, columns.checked_mul(rank * 2)?);
            i64::try_from(padded_rows.max(1).checked_mul(padded_columns.max(1))?.checked_mul(4)?).ok()?;
            Some([codes, scales, if self.symmetric { 0 } else { scales }, left, right])
        };
        Ok(sizes())
    }
}

/// Where a part lies in the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    /// Where its page header begins.
    pub page: u64,
    /// Where its payload begins.
    pub offset: u64,
    /// Bytes of the payload.
    pub bytes: u64,
}

impl Extent {
    /// Where it ends.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + self.bytes
    }
}

/// A tensor in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// What it is.
    pub spec: TensorSpec,
    /// Where its parts are.
    pub parts: [Extent; 5],
    /// CRC32C over its parts one after another.
    pub checksum: u32,
    /// SHA-256 over the same.
    pub sha256: [u8; 32],
}

impl TensorEntry {
    /// Bytes of all parts.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }
}

/// The identity of all tensors, whatever the container: SHA-256 over one line a tensor, sorted by name.
#[must_use]
pub fn tensors_sha256(entries: &[TensorEntry]) -> [u8; 32] {
    let mut sorted: Vec<&TensorEntry> = entries.iter().collect();
    sorted.sort_unstable_by(|a, b| a.spec.name.cmp(&b.spec.name));
    let mut hasher = Sha256::new();
    for TensorEntry { spec, sha256, .. } in sorted {
        let shape: Vec<String> = spec.shape.iter().map(u64::to_string).collect();
        let line = [
            spec.name.as_str(),
            spec.dtype.name(),
            &shape.join(","),
            &spec.group_size.to_string(),
            if spec.symmetric { "1" } else { "0" },
            &spec.order().to_string(),
            &spec.rank.to_string(),
            &hex(sha256),
        ];
        hasher.update(line.join("\0"));
        hasher.update("\n");
    }
    hasher.finalize().into()
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}
