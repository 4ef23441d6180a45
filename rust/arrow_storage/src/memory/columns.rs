//! The columns of a new segment but for its vectors and sealed texts, in memory: a hundred bytes a row or so.

use super::arrow::Span;
use super::record::Clear;
use super::sizes::Places;
use crate::error::Result;

/// What a segment is made of.
pub trait Rows {
    /// How many rows.
    fn count(&self) -> usize;
    /// The clear part of a row: id, time, columns, checksum.
    fn clear(&self, row: usize) -> Result<(u64, i64, Clear, u32)>;
    /// How many bytes its sealed text has.
    fn sealed_bytes(&self, row: usize) -> Result<u64>;
    /// Its sealed text and its vector, whose checksum was found right.
    fn content(&self, row: usize) -> Result<(Vec<u8>, Vec<u8>)>;
}

/// The columns that are checked at open.
#[derive(Default)]
pub struct ClearColumns {
    ids: Vec<u8>,
    times: Vec<u8>,
    /// Offsets and bytes of: namespaces, tags, sources, provenances.
    pub texts: [(Vec<u8>, Vec<u8>); 4],
    tag_lists: Vec<u8>,
    /// Of all rows.
    pub tag_count: u64,
    checksums: Vec<u8>,
    sealed_offsets: Vec<u8>,
    /// Bytes of all sealed texts.
    pub sealed_end: u64,
}

/// The columns of all rows.
pub fn columns(rows: &dyn Rows) -> Result<ClearColumns> {
    let mut all = ClearColumns::default();
    let narrow = |bytes: &[u8]| (bytes.len() as i32).to_le_bytes();
    all.texts.iter_mut().for_each(|(offsets, _)| offsets.extend([0; 4]));
    all.tag_lists.extend([0; 4]);
    all.sealed_offsets.extend([0; 8]);
    for row in 0..rows.count() {
        let (id, time, clear, checksum) = rows.clear(row)?;
        all.ids.extend(id.to_le_bytes());
        all.times.extend(time.to_le_bytes());
        for (column, text) in [(0, &clear.namespace), (2, &clear.source), (3, &clear.provenance)] {
            let (offsets, bytes) = &mut all.texts[column];
            bytes.extend_from_slice(text.as_bytes());
            offsets.extend(narrow(bytes));
        }
        for tag in &clear.tags {
            let (offsets, bytes) = &mut all.texts[1];
            bytes.extend_from_slice(tag.as_bytes());
            offsets.extend(narrow(bytes));
        }
        all.tag_count += clear.tags.len() as u64;
        all.tag_lists.extend((all.tag_count as i32).to_le_bytes());
        all.checksums.extend(checksum.to_le_bytes());
        all.sealed_end += rows.sealed_bytes(row)?;
        all.sealed_offsets.extend(all.sealed_end.to_le_bytes());
    }
    Ok(all)
}

impl ClearColumns {
    /// The body up to the sealed texts.
    pub fn body(&self, p: &Places) -> Vec<u8> {
        let mut body = vec![0; p.sealed.offset as usize];
        let mut put = |span: Span, bytes: &[u8]| {
            let at = span.offset as usize;
            body[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(p.id, &self.ids);
        put(p.time, &self.times);
        for ((offsets, bytes), (place, text)) in self.texts.iter().zip(p.texts) {
            put(place, offsets);
            put(text, bytes);
        }
        put(p.tag_lists, &self.tag_lists);
        put(p.checksum, &self.checksums);
        put(p.sealed_offsets, &self.sealed_offsets);
        body
    }
}
