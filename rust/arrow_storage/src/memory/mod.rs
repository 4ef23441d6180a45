//! The store of memories: a write-ahead log in front of Arrow segments, one writer, readers by snapshot.
//!
//! Read in this order: `record` (what a memory is), `frame` and `log` (how it is acknowledged), `keys` (how it is
//! forgotten), `arrow`, `sizes`, `columns` and `segment` (where it ends up), `manifest` (which files live), `sealing`
//! (how they are encrypted, where the owner wants that), `state` (what is known of them), `store` (reading), `commit`
//! (writing) and `compact`.
//!
//! A folder holds `manifest.json`, `keys`, one log, any number of segments and a list of forgotten ids. Whatever the
//! manifest does not name is a leftover. Texts come sealed; nothing here can read them.

mod arrow;
mod columns;
mod commit;
mod compact;
mod files;
mod frame;
mod keys;
mod log;
mod manifest;
mod record;
mod sealing;
mod segment;
mod select;
mod sizes;
mod state;
mod store;
#[cfg(test)]
mod tests;

pub use keys::{KEY_BYTES, Key};
pub use record::{Clear, Incoming, Record};
pub use sealing::{Kind, StoreKey, open as open_sealed, write as write_sealed};
pub use select::Filter;
pub use store::{Options, Stats, Store};

/// Ids are given one after another and never again; the list of keys takes 64 bytes for each.
pub const IDS_MAX: u64 = 100_000_000;
/// The widest encoders in use have 4,096 dimensions.
pub const DIM_MAX: usize = 8192;
/// Memories of one append, ids of one forget frame.
pub const GROUP_MAX: usize = 65_536;
/// Bytes of one append: what is in hand at once.
pub const GROUP_BYTES_MAX: usize = 256 << 20;
/// A namespace is a name.
pub const NAMESPACE_BYTES_MAX: usize = 255;
/// Tags of one memory.
pub const TAGS_MAX: usize = 64;
/// A tag is a name.
pub const TAG_BYTES_MAX: usize = 255;
/// An address or a path.
pub const SOURCE_BYTES_MAX: usize = 2048;
/// How it came here.
pub const PROVENANCE_BYTES_MAX: usize = 2048;
/// Text and metadata, sealed.
pub const SEALED_BYTES_MAX: usize = 4 << 20;

/// Rows of a segment: the strings of so many fit 32-bit offsets whatever they are.
const SEGMENT_ROWS_MAX: usize = 65_536;
/// Sealed bytes of a segment, so that rewriting one stays short.
const SEGMENT_SEALED_MAX: u64 = 1 << 30;
const _: () = assert!(SEGMENT_ROWS_MAX * TAGS_MAX * TAG_BYTES_MAX < i32::MAX as usize);
/// Segments of a store: the ids there can be, in segments a tenth full.
const SEGMENTS_MAX: usize = 16_384;
/// The log becomes a segment when it has so many rows or bytes: what an open has to read again.
const LOG_ROWS_MAX: usize = 16_384;
const LOG_BYTES_MAX: u64 = 64 << 20;
/// Where turning it into a segment keeps failing, the log grows up to this and no further.
const LOG_BYTES_LIMIT: u64 = 1 << 30;
