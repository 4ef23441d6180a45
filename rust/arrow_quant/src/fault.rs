//! Why something cannot be packed or quantised.

use std::fmt;

/// Why something cannot be packed or quantised; the message is for people.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// No such number of bits.
    Bits(usize),
    /// No such group size.
    GroupSize(usize),
    /// No such rank for this matrix.
    Rank(usize),
    /// The matrix cannot be addressed.
    TooLarge {
        /// Its rows.
        rows: usize,
        /// Its columns.
        columns: usize,
    },
    /// A buffer has the wrong length, in elements.
    Length {
        /// Which buffer.
        what: &'static str,
        /// The length that the sizes ask for.
        wants: usize,
        /// The length it has.
        has: usize,
    },
    /// A weight is NaN, infinite or beyond what f16 zeros can stand for.
    Weight {
        /// Its row.
        row: usize,
        /// Its column.
        column: usize,
        /// Its value.
        value: f32,
    },
    /// A plain code does not fit its bits.
    Code {
        /// Its row.
        row: usize,
        /// Its column.
        column: usize,
        /// Its value.
        value: u8,
    },
    /// The matrix has no such row.
    Row {
        /// The row asked for.
        id: i64,
        /// How many there are.
        rows: usize,
    },
    /// The Hessian is not symmetric positive semi-definite and finite, as X^T X is.
    Hessian(usize),
    /// The threads asked for could not be started.
    Threads(String),
    /// The sizes of a layer or a step do not fit together.
    Shape(&'static str),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Bits(bits) => write!(f, "codes have 8, 4 or 2 bits, not {bits}"),
            Fault::GroupSize(size) => write!(f, "groups have 32, 64 or 128 columns, not {size}"),
            Fault::Rank(rank) => write!(f, "a residual has a rank of 1 to 256 within the matrix, not {rank}"),
            Fault::TooLarge { rows, columns } => write!(f, "a matrix of {rows} x {columns} is too large"),
            Fault::Length { what, wants, has } => write!(f, "{what} has {has} elements instead of {wants}"),
            Fault::Weight { row, column, value } => {
                write!(f, "the weight in row {row}, column {column} is {value}; weights lie within +-65504")
            }
            Fault::Code { row, column, value } => {
                write!(f, "the code in row {row}, column {column} is {value}, which has too many bits")
            }
            Fault::Row { id, rows } => write!(f, "there is no row {id} in a matrix of {rows} rows"),
            Fault::Hessian(column) => {
                write!(f, "the Hessian is not positive semi-definite and finite at column {column}")
            }
            Fault::Shape(why) => write!(f, "{why}"),
            Fault::Threads(why) => write!(f, "threads could not be started: {why}"),
        }
    }
}

impl std::error::Error for Fault {}

/// Checks the length of a buffer.
pub(crate) fn length(what: &'static str, wants: usize, has: usize) -> Result<(), Fault> {
    if wants == has { Ok(()) } else { Err(Fault::Length { what, wants, has }) }
}
