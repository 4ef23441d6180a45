//! The keys of all memories in one file, 64 bytes each, in the order of ids: wrapped key and checksum; zeros under
//! their checksum are an erased one.
//!
//! Erasing overwrites the slot in place and syncs. What a journalling or copying file system, a snapshot or the spare
//! blocks of a solid-state disk keep of the old bytes is beyond a file's reach; the keys are wrapped, so that such
//! remains are worth nothing without the master key.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::IDS_MAX;
use super::files;
use super::record::take;
use crate::error::{Result, StorageError};

/// A wrapped key: nonce, ciphertext and tag of AES-256-GCM over 32 bytes.
pub const KEY_BYTES: usize = 60;
/// A wrapped key.
pub type Key = [u8; KEY_BYTES];

const SLOT_BYTES: usize = 64;
/// In the place of a key that is gone.
const ERASED: Key = [0; KEY_BYTES];
const MAGIC: &[u8; 16] = b"aios-memkeys-1\n\0";
pub const NAME: &str = "keys";

/// The open file.
pub struct KeyFile {
    file: File,
}

impl KeyFile {
    /// An empty file for a new store.
    pub fn create(folder: &Path, identity: &[u8; 16]) -> Result<()> {
        let mut head = [MAGIC.as_slice(), identity].concat();
        head.resize(SLOT_BYTES - 4, 0);
        head.extend(aios_crc32c::crc32c(&head, 0).to_le_bytes());
        files::replace(&folder.join(NAME), |out| {
            io::Write::write_all(out, &head).map_err(StorageError::io("writing the keys"))
        })
    }

    /// Open the keys of this store.
    pub fn open(folder: &Path, identity: &[u8; 16], writable: bool) -> Result<Self> {
        let file = files::open(&folder.join(NAME), writable)?;
        let file = file.ok_or_else(|| StorageError::corrupt("the file of keys is missing"))?;
        let mut head = [0; SLOT_BYTES];
        let read = file.read_exact_at(&mut head, 0);
        let (body, crc) = head.split_at(SLOT_BYTES - 4);
        let sound = read.is_ok()
            && crc == aios_crc32c::crc32c(body, 0).to_le_bytes()
            && body.starts_with(&[MAGIC.as_slice(), identity].concat());
        if !sound {
            return Err(StorageError::corrupt("the file of keys is damaged or belongs to another store"));
        }
        Ok(KeyFile { file })
    }

    /// The wrapped key of a memory; None if it was erased, an error if it was never written or is damaged.
    pub fn read(&self, id: u64) -> Result<Option<Key>> {
        let mut slot = [0; SLOT_BYTES];
        match self.file.read_exact_at(&mut slot, place(id)?) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                return Err(StorageError::Io { doing: "reading a key", error });
            }
            _ => {} // a slot that is cut short has no checksum
        }
        let mut rest = slot.as_slice();
        match (take::<KEY_BYTES>(&mut rest), take(&mut rest).map(u32::from_le_bytes)) {
            (Some(key), Some(crc)) if crc == checksum(id, &key) => Ok((key != ERASED).then_some(key)),
            _ => Err(StorageError::corrupt(format!("the key of memory {id} is damaged or missing"))),
        }
    }

    /// Write keys; durable after `sync`.
    pub fn write(&self, keys: &[(u64, Key)]) -> Result<()> {
        // Ids mostly follow one another: then their slots are one write.
        for run in keys.chunk_by(|a, b| a.0 + 1 == b.0) {
            let slots: Vec<u8> = run
                .iter()
                .flat_map(|(id, key)| [&key[..], &checksum(*id, key).to_le_bytes()].concat())
                .collect();
            self.file.write_all_at(&slots, place(run[0].0)?).map_err(StorageError::io("writing keys"))?;
        }
        Ok(())
    }

    /// Overwrite the keys of these ids; durable after `sync`.
    pub fn erase(&self, ids: &[u64]) -> Result<()> {
        self.write(&ids.iter().map(|&id| (id, ERASED)).collect::<Vec<_>>())
    }

    /// Everything written is on the disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(StorageError::io("syncing the keys"))
    }
}

fn place(id: u64) -> Result<u64> {
    if id == 0 || id > IDS_MAX {
        return Err(StorageError::input(format!("no memory has the id {id}")));
    }
    Ok(id * SLOT_BYTES as u64)
}

/// Of a slot; the id is in it, so that a key in another's place is found.
fn checksum(id: u64, key: &Key) -> u32 {
    aios_crc32c::crc32c(key, aios_crc32c::crc32c(&id.to_le_bytes(), 0))
}
