//! The sizes of a segment, which stand in its file, and everything that follows from them: where the columns are and
//! all of Arrow's metadata.

use super::SEGMENT_ROWS_MAX;
use super::arrow::{self, ALIGNMENT, Span};
use super::record::{self, Vectors};

const MAGIC: &[u8; 16] = b"aios-segment-1\n\0";
/// As they are kept.
pub const SIZES_BYTES: usize = 104;
/// The sizes that everything else follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// How vectors are kept.
    pub vectors: Vectors,
    /// Memories.
    pub rows: u64,
    /// Of all memories.
    pub tags: u64,
    /// Bytes of: namespaces, tags, sources, provenances.
    pub texts: [u64; 4],
    /// Bytes of all sealed texts.
    pub sealed: u64,
    /// Of the body up to the sealed texts.
    pub clear_crc: u32,
}

/// Where the columns are in the body.
#[derive(Debug, Clone, Copy)]
pub struct Places {
    pub id: Span,
    pub time: Span,
    /// Offsets and bytes of: namespaces, tags, sources, provenances.
    pub texts: [(Span, Span); 4],
    pub tag_lists: Span,
    pub checksum: Span,
    pub sealed_offsets: Span,
    pub sealed: Span,
    pub vector: Span,
    pub body: u64,
}

impl Sizes {
    /// Where everything is.
    pub fn places(&self) -> Places {
        let mut end = 0;
        let mut span = |bytes: u64| {
            let offset = end;
            end = (offset + bytes).next_multiple_of(ALIGNMENT);
            Span { offset, bytes }
        };
        let offsets = 4 * (self.rows + 1);
        let [names, tags, sources, origins] = self.texts;
        let (id, time) = (span(8 * self.rows), span(8 * self.rows));
        let names = (span(offsets), span(names));
        let (tag_lists, tags) = (span(offsets), (span(4 * (self.tags + 1)), span(tags)));
        let texts = [names, tags, (span(offsets), span(sources)), (span(offsets), span(origins))];
        let (checksum, sealed_offsets) = (span(4 * self.rows), span(8 * (self.rows + 1)));
        let (sealed, vector) = (span(self.sealed), span(self.rows * self.vectors.bytes() as u64));
        Places { id, time, texts, tag_lists, checksum, sealed_offsets, sealed, vector, body: end }
    }

    /// What stands before and behind the body.
    pub fn frame(&self, places: &Places) -> arrow::Frame {
        let (rows, p) = (self.rows, places);
        let nodes =
            [rows, rows, rows, rows, self.tags, rows, rows, rows, rows, rows, rows * self.vectors.dim as u64];
        let [names, tags, sources, origins] = p.texts.map(|(offsets, bytes)| (Some(offsets), Some(bytes)));
        #[rustfmt::skip]
        let spans = [
            None, Some(p.id), None, Some(p.time), None, names.0, names.1, None, Some(p.tag_lists), None, tags.0, tags.1,
            None, sources.0, sources.1, None, origins.0, origins.1, None, Some(p.checksum),
            None, Some(p.sealed_offsets), Some(p.sealed), None, None, Some(p.vector),
        ];
        arrow::frame(self.vectors, rows, &nodes, &spans, p.body)
    }

    /// As they are kept.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let dims = [self.vectors.dim as u64, u64::from(self.vectors.half), self.rows, self.tags];
        dims.iter()
            .chain(&self.texts)
            .chain(&[self.sealed, self.clear_crc.into()])
            .for_each(|n| out.extend(n.to_le_bytes()));
        out.extend([0; 4]);
        out.extend(aios_crc32c::crc32c(&out, 0).to_le_bytes());
        out
    }

    /// None where it is no such thing, or larger than anything written here.
    pub fn decode(bytes: &[u8; SIZES_BYTES]) -> Option<Self> {
        let (body, crc) = bytes.split_at(SIZES_BYTES - 4);
        let whole = body.starts_with(MAGIC) && crc == aios_crc32c::crc32c(body, 0).to_le_bytes();
        let mut rest = &body[MAGIC.len()..];
        let mut next = || record::take(&mut rest).map(u64::from_le_bytes);
        let (dim, half, rows, tags) = (next()?, next()?, next()?, next()?);
        let (texts, sealed, crc) = ([next()?, next()?, next()?, next()?], next()?, next()?);
        let small = dim <= super::DIM_MAX as u64
            && rows <= SEGMENT_ROWS_MAX as u64
            && tags <= (SEGMENT_ROWS_MAX * super::TAGS_MAX) as u64
            && texts.iter().all(|&bytes| bytes < i32::MAX as u64)
            && sealed < 1 << 40;
        let vectors = Vectors { dim: dim as usize, half: half == 1 };
        (whole && small).then_some(Sizes {
            vectors,
            rows,
            tags,
            texts,
            sealed,
            clear_crc: u32::try_from(crc).ok()?,
        })
    }
}
