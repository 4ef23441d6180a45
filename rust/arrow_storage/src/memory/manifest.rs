//! The manifest: which files are the store, replaced as a whole.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::record::Vectors;
use super::sealing::StoreKey;
use super::{DIM_MAX, IDS_MAX, SEGMENT_ROWS_MAX, SEGMENTS_MAX, files};
use crate::error::{Result, StorageError};
use crate::layout::hex;

pub const NAME: &str = "manifest.json";
const FORMAT: &str = "aios-memory-1";
/// Of a store that is encrypted as a whole.
const FORMAT_SEALED: &str = "aios-memory-sealed-1";
/// `SEGMENTS_MAX` segments at 40 bytes.
const BYTES_MAX: u64 = 1 << 20;

/// What a store consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Of the store; files of another are refused, and sealed texts are bound to it.
    pub identity: [u8; 16],
    /// How vectors are kept.
    pub vectors: Vectors,
    /// Log, segments and index are encrypted too.
    pub sealed: bool,
    /// No id from here on was given to a memory outside the log.
    pub next_id: u64,
    /// The number of the next file.
    pub next_file: u64,
    /// The log's number.
    pub log: u64,
    /// The number of the list of forgotten ids; 0: none was forgotten.
    pub forgotten: u64,
    /// The segments' numbers.
    pub segments: Vec<u64>,
}

/// How the files of a store are kept, and what they belong to.
#[derive(Clone, Copy)]
pub struct Kept<'a> {
    /// Of the store.
    pub identity: &'a [u8; 16],
    /// How vectors are kept.
    pub vectors: Vectors,
    /// Of a store that is encrypted as a whole.
    pub key: Option<&'a StoreKey>,
}

impl Manifest {
    /// How the files that it names are kept.
    pub fn kept<'a>(&'a self, key: Option<&'a StoreKey>) -> Kept<'a> {
        Kept { identity: &self.identity, vectors: self.vectors, key }
    }

    /// Put it in its place, durably.
    pub fn write(&self, folder: &Path) -> Result<()> {
        Self::put(&self.stage(folder)?, folder)
    }

    /// Put what was staged in its place, durably.
    pub fn put(staged: &Path, folder: &Path) -> Result<()> {
        files::put(staged, &folder.join(NAME))?;
        files::sync_folder(folder)
    }

    /// Write it beside its place.
    pub fn stage(&self, folder: &Path) -> Result<PathBuf> {
        let body = json!({
            "format": if self.sealed { FORMAT_SEALED } else { FORMAT }, "identity": hex(&self.identity), "dim": self.vectors.dim,
            "vector": if self.vectors.half { "f16" } else { "f32" }, "next_id": self.next_id,
            "next_file": self.next_file, "log": self.log, "forgotten": self.forgotten, "segments": self.segments,
        })
        .to_string();
        let crc = aios_crc32c::crc32c(body.as_bytes(), 0);
        files::stage(&folder.join(NAME), |out| {
            writeln!(out, "{body}\n{crc:08x}").map_err(StorageError::io("writing the manifest"))
        })
    }

    /// Read it; None if there is no store here.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let Some(file) = files::open(&folder.join(NAME), false)? else { return Ok(None) };
        let bytes = files::read(&file, BYTES_MAX, "the manifest")?;
        Self::parse(&bytes).map(Some).ok_or_else(|| StorageError::corrupt("the manifest is damaged"))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
        let (body, crc) = text.rsplit_once('\n')?;
        if format!("{:08x}", aios_crc32c::crc32c(body.as_bytes(), 0)) != crc {
            return None;
        }
        let value: Value = serde_json::from_str(body).ok()?;
        let number = |key: &str| value[key].as_u64();
        let half = match value["vector"].as_str()? {
            "f16" => true,
            "f32" => false,
            _ => return None,
        };
        let identity = value["identity"].as_str().filter(|text| text.len() == 32 && text.is_ascii())?;
        let identity = u128::from_str_radix(identity, 16).ok()?.to_be_bytes();
        let segments = value["segments"].as_array()?;
        let sealed = match value["format"].as_str()? {
            FORMAT_SEALED => true,
            FORMAT => false,
            _ => return None,
        };
        let manifest = Manifest {
            sealed,
            identity,
            vectors: Vectors { dim: usize::try_from(number("dim")?).ok()?, half },
            next_id: number("next_id")?,
            next_file: number("next_file")?,
            log: number("log")?,
            forgotten: number("forgotten")?,
            segments: segments.iter().map(Value::as_u64).collect::<Option<_>>()?,
        };
        manifest.sound().then_some(manifest)
    }

    fn sound(&self) -> bool {
        let mut numbers: Vec<u64> = self.segments.iter().copied().chain([self.log, self.forgotten]).collect();
        numbers.sort_unstable();
        (1..=DIM_MAX).contains(&self.vectors.dim)
            && (1..=IDS_MAX + 1).contains(&self.next_id)
            && self.segments.len() <= SEGMENTS_MAX
            && numbers.windows(2).all(|pair| pair[0] < pair[1])
            && numbers.last().is_some_and(|&last| last < self.next_file)
            && self.next_file < 1 << 53
    }

    /// Where a segment is, or will be.
    #[must_use]
    pub fn segment_path(&self, folder: &Path, number: u64) -> PathBuf {
        folder.join(format!("segment-{number:08}.{}", if self.sealed { "sealed" } else { "arrow" }))
    }

    /// The files it names.
    #[must_use]
    pub fn files(&self, folder: &Path) -> Vec<PathBuf> {
        let lists = (self.forgotten > 0).then(|| forgotten_path(folder, self.forgotten));
        let segments = self.segments.iter().map(|&number| self.segment_path(folder, number));
        segments.chain(lists).chain([log_path(folder, self.log)]).collect()
    }

    /// Remove what a crash left behind: files of ours that the manifest does not name.
    pub fn sweep(&self, folder: &Path) -> Result<()> {
        let live = self.files(folder);
        for entry in fs::read_dir(folder).map_err(StorageError::io("listing the store's folder"))? {
            let path = entry.map_err(StorageError::io("listing the store's folder"))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let ours = ["segment-", "log-", "forgotten-"].iter().any(|prefix| name.starts_with(prefix));
            let staged = name.ends_with(files::STAGED);
            if (staged || ours) && !live.contains(&path) {
                fs::remove_file(&path).map_err(StorageError::io("removing a leftover"))?;
            }
        }
        Ok(())
    }
}

pub fn log_path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("log-{number:08}"))
}

pub fn forgotten_path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("forgotten-{number:08}"))
}

const _: () = assert!(SEGMENTS_MAX * SEGMENT_ROWS_MAX > IDS_MAX as usize);
