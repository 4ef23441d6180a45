//! Files of the store: owner-only, replaced as a whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Result, StorageError};

/// What is not yet in its place ends with this.
pub const STAGED: &str = ".staged";

/// Open a plain file without following a link; None if there is none.
pub fn open(path: &Path, writable: bool) -> Result<Option<File>> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).write(writable).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StorageError::Io { doing: "opening a file of the store", error }),
    };
    if !file.metadata().map_err(StorageError::io("looking at a file of the store"))?.is_file() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Err(StorageError::corrupt(format!("{name} is not a plain file")));
    }
    Ok(Some(file))
}

/// All of a small file.
pub fn read(file: &File, bytes_max: u64, what: &str) -> Result<Vec<u8>> {
    let size = file.metadata().map_err(StorageError::io("looking at a file of the store"))?.len();
    if size > bytes_max {
        return Err(StorageError::corrupt(format!("{what} has {size} bytes; at most {bytes_max} are read")));
    }
    let mut bytes = vec![0; size as usize];
    file.read_exact_at(&mut bytes, 0).map_err(StorageError::io("reading a file of the store"))?;
    Ok(bytes)
}

/// Write a file beside its place, sync it, rename it; nothing is left where this fails.
pub fn replace(path: &Path, write: impl FnOnce(&mut io::BufWriter<&File>) -> Result<()>) -> Result<()> {
    let staged = stage(path, write)?;
    let done = put(&staged, path);
    if done.is_err() {
        let _ = fs::remove_file(&staged); // the error that is returned says more
    }
    done
}

/// Write a file beside its place and sync it; nothing is left where this fails.
pub fn stage(path: &Path, write: impl FnOnce(&mut io::BufWriter<&File>) -> Result<()>) -> Result<PathBuf> {
    let mut name = path.as_os_str().to_owned();
    name.push(STAGED);
    let staged = PathBuf::from(name);
    let done = fill(&staged, write);
    if done.is_err() {
        let _ = fs::remove_file(&staged);
    }
    done.map(|()| staged)
}

/// Rename what is staged; it is there for certain once the folder is synced.
pub fn put(staged: &Path, path: &Path) -> Result<()> {
    fs::rename(staged, path).map_err(StorageError::io("renaming a file of the store"))
}

fn fill(staged: &Path, write: impl FnOnce(&mut io::BufWriter<&File>) -> Result<()>) -> Result<()> {
    let flags = libc::O_NOFOLLOW;
    let options = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(flags)
        .open(staged);
    let file = options.map_err(StorageError::io("creating a file of the store"))?;
    let mut out = io::BufWriter::with_capacity(1 << 20, &file);
    write(&mut out)?;
    out.flush().map_err(StorageError::io("writing a file of the store"))?;
    drop(out);
    file.sync_all().map_err(StorageError::io("syncing a file of the store"))
}

/// What was renamed or made in a folder is there after a power failure too.
pub fn sync_folder(folder: &Path) -> Result<()> {
    let file = File::open(folder).map_err(StorageError::io("opening the store's folder"))?;
    file.sync_all().map_err(StorageError::io("syncing the store's folder"))
}
