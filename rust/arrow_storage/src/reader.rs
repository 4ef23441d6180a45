//! An open weight file: its contents, its map, and the check that runs in the background.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::check::{check_payload, verify};
use crate::error::{Result, StorageError};
use crate::file::{Contents, read_contents};
use crate::guard;
use crate::layout::TensorEntry;
use crate::mapping::Mapping;

/// A weight file, open.
pub struct WeightFile {
    shared: Arc<Shared>,
}

/// What the background thread needs too; the map lives as long as either.
struct Shared {
    contents: Contents,
    mapping: Mapping,
    check: Mutex<Check>,
    changed: Condvar,
    stop: AtomicBool,
}

/// How far the background check is.
struct Check {
    running: bool,
    /// What it found: the tensor, and why.
    found: Option<(Option<String>, String)>,
}

impl WeightFile {
    /// Open and check everything but the tensors' bytes; these are checked in the background if `check` says so.
    pub fn open(path: &Path, check: bool) -> Result<Self> {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = file.map_err(StorageError::io("opening"))?;
        let status = file.metadata().map_err(StorageError::io("opening"))?;
        if !status.is_file() {
            return Err(StorageError::corrupt("it is not a plain file"));
        }
        let bytes = usize::try_from(status.len()).ok().filter(|&bytes| bytes <= isize::MAX as usize);
        let bytes = bytes.ok_or_else(|| StorageError::corrupt("it is larger than the address space"))?;
        let contents = read_contents(&file, status.len())?;
        let mapping = Mapping::new(file, bytes)?;
        let check_state = Mutex::new(Check { running: check, found: None });
        let (changed, stop) = (Condvar::new(), AtomicBool::new(false));
        let shared = Arc::new(Shared { contents, mapping, check: check_state, changed, stop });
        if check {
            let worker = Arc::clone(&shared);
            let spawned =
                std::thread::Builder::new().name("aios-weights".to_owned()).spawn(move || worker.run());
            spawned.map_err(StorageError::io("starting the background check"))?;
        }
        Ok(WeightFile { shared })
    }

    /// The tensors, in file order.
    #[must_use]
    pub fn entries(&self) -> &[TensorEntry] {
        &self.shared.contents.entries
    }

    /// What the tail says.
    #[must_use]
    pub fn contents(&self) -> &Contents {
        &self.shared.contents
    }

    /// The map; it lives as long as this value.
    #[must_use]
    pub fn mapping(&self) -> &Mapping {
        &self.shared.mapping
    }

    /// Check everything about tensor number `index`, in this thread.
    pub fn verify(&self, index: usize) -> Result<()> {
        if index >= self.entries().len() {
            return Err(StorageError::input("there is no tensor of that number"));
        }
        verify(self.shared.mapping.file(), self.entries(), index)
    }

    /// Raise what is known to be wrong. True when nothing is left to check.
    pub fn intact(&self, wait: Duration) -> Result<bool> {
        guard::install(); // somebody may have put another handler on top
        if self.shared.mapping.fault() {
            return Err(StorageError::corrupt(self.shared.fault()));
        }
        let check = self.shared.lock();
        let waiting = self
            .shared
            .changed
            .wait_timeout_while(check, wait, |check| check.running && check.found.is_none());
        let check = waiting.unwrap_or_else(PoisonError::into_inner).0;
        match &check.found {
            Some((tensor, why)) => Err(StorageError::Corrupt { tensor: tensor.clone(), why: why.clone() }),
            None => Ok(!check.running),
        }
    }

    /// End the background check; the map stays until this value goes.
    pub fn close(&self) {
        self.shared.stop.store(true, Ordering::Release);
    }
}

impl Drop for WeightFile {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Check> {
        self.check.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let found = self.contents.entries.iter().find_map(|entry| self.look_at(entry));
        let mut check = self.lock();
        check.running = false;
        check.found = found;
        self.changed.notify_all();
    }

    fn look_at(&self, entry: &TensorEntry) -> Option<(Option<String>, String)> {
        let name = || Some(entry.spec.name.clone());
        match check_payload(self.mapping.file(), entry, || !self.stop.load(Ordering::Acquire)) {
            Ok(Some(true)) => None,
            Ok(Some(false)) => Some((name(), "its CRC32C differs".to_owned())),
            Ok(None) => Some((None, "it was closed before it was checked".to_owned())),
            Err(StorageError::Corrupt { tensor, why }) => Some((tensor, why)),
            Err(error) => Some((name(), error.to_string())),
        }
    }

    fn fault(&self) -> String {
        let now = |file: &File| file.metadata().map_or(0, |status| status.len());
        match (now(self.mapping.file()), self.mapping.bytes() as u64) {
            (size, mapped) if size < mapped => {
                format!("it was truncated to {size} of {mapped} bytes while in use")
            }
            _ => {
                "its bytes could not be read while in use: the disk failed, or it was truncated and restored"
                    .to_owned()
            }
        }
    }
}
