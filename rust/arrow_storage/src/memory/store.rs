//! The store: opening, recovery, and everything that reads.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use super::commit::{Pending, Writer};
use super::keys::{Key, KeyFile};
use super::log::{LogFile, START};
use super::manifest::{Manifest, log_path};
use super::record::{Record, Vectors};
use super::sealing::StoreKey;
use super::segment::Segment;
use super::select::Filter;
use super::state::{Gone, Place, State, read_log_row};
use super::{DIM_MAX, IDS_MAX, files};
use crate::error::{Result, StorageError};

const LOCK_NAME: &str = "lock";
/// The manifest may be replaced between reading it and opening what it names; not as often as this.
const SNAPSHOT_TRIES: usize = 100;

/// What a new store is made with.
#[derive(Clone)]
pub struct Options {
    /// Dimensions of a vector.
    pub dim: usize,
    /// Keep vectors in half precision.
    pub half: bool,
    /// Random bytes that name the store.
    pub identity: [u8; 16],
    /// Encrypt log and segments too; keys and the list of forgotten ids say nothing but ids.
    pub key: Option<StoreKey>,
}

/// Sizes and counts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stats {
    /// Memories that are not forgotten.
    pub live: usize,
    /// Ids that were forgotten.
    pub forgotten: usize,
    /// Rows of forgotten memories whose sealed bytes are still there.
    pub to_compact: usize,
    /// Segments.
    pub segments: usize,
    /// Rows in the log.
    pub log_rows: usize,
    /// Bytes of segments and log.
    pub bytes: u64,
}

/// An open store: the writer, or a reader's snapshot.
pub struct Store {
    pub(super) folder: PathBuf,
    /// Of a store that is encrypted as a whole.
    pub(super) key: Option<StoreKey>,
    pub(super) state: RwLock<State>,
    pub(super) keys: KeyFile,
    /// None for readers. Held while files are written; readers of this process go on meanwhile.
    pub(super) writer: Option<Mutex<Writer>>,
    /// What waits for the next group.
    pub(super) queue: Mutex<Vec<Pending>>,
    pub(super) reserved: Mutex<Reserved>,
    /// Why nothing more can be written.
    pub(super) stopped: OnceLock<String>,
    /// Locked as long as it is open.
    _lock: Option<File>,
}

/// Ids that were given and not yet used.
pub struct Reserved {
    /// The next one.
    pub next: u64,
    /// Given.
    pub open: HashSet<u64>,
}

impl Store {
    /// Make an empty store; an error if there is one already.
    pub fn create(folder: &Path, options: Options) -> Result<()> {
        let vectors = Vectors { dim: options.dim, half: options.half };
        if !(1..=DIM_MAX).contains(&vectors.dim) {
            return Err(StorageError::input(format!("vectors have 1 to {DIM_MAX} dimensions")));
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(StorageError::io("making the store's folder"))?;
        let _lock = lock(folder)?;
        if Manifest::read(folder)?.is_some() {
            return Err(StorageError::input("there is a store already"));
        }
        let (identity, sealed) = (options.identity, options.key.is_some());
        let (next_id, next_file, log, forgotten, segments) = (1, 2, 1, 0, Vec::new());
        let manifest = Manifest { identity, vectors, sealed, next_id, next_file, log, forgotten, segments };
        KeyFile::create(folder, &identity)?;
        LogFile::create(&log_path(folder, log), log, manifest.kept(options.key.as_ref()))?;
        files::sync_folder(folder)?; // what the manifest names is there before it is
        manifest.write(folder)
    }

    /// The name of the store in a folder, and whether it opens with a key only; None if there is no store.
    pub fn look(folder: &Path) -> Result<Option<([u8; 16], bool)>> {
        Ok(Manifest::read(folder)?.map(|manifest| (manifest.identity, manifest.sealed)))
    }

    /// Open as the one writer: finish what a crash interrupted, cut a torn tail, remove leftovers.
    pub fn open(folder: &Path, key: Option<StoreKey>) -> Result<Self> {
        let lock = lock(folder)?;
        let manifest = read_manifest(folder)?;
        let keys = KeyFile::open(folder, &manifest.identity, true)?;
        let (mut state, scanned) = load(folder, manifest, key.as_ref(), true, &[])?
            .ok_or_else(|| StorageError::corrupt("a file that the manifest names is missing"))?;
        state.log.cut(state.log_end)?;
        state.log.sync()?; // what is read from now on is kept
        state.log.set_mark(state.log_end)?;
        erase(&state, &keys, &scanned)?;
        state.manifest.sweep(folder)?;
        let last = state.rows.iter().map(|row| row.id).chain(scanned).max().unwrap_or(0);
        let next = state.manifest.next_id.max(last + 1);
        state.manifest.next_id = next;
        Ok(Store {
            folder: folder.to_owned(),
            key,
            state: RwLock::new(state),
            keys,
            writer: Some(Mutex::new(Writer::default())),
            queue: Mutex::default(),
            reserved: Mutex::new(Reserved { next, open: HashSet::new() }),
            stopped: OnceLock::new(),
            _lock: Some(lock),
        })
    }

    /// Open a snapshot of what is acknowledged; never waits for the writer, changes nothing.
    pub fn open_reader(folder: &Path, key: Option<StoreKey>) -> Result<Self> {
        let state = snapshot(folder, key.as_ref(), &[])?;
        let keys = KeyFile::open(folder, &state.manifest.identity, false)?;
        Ok(Store {
            folder: folder.to_owned(),
            key,
            state: RwLock::new(state),
            keys,
            writer: None,
            queue: Mutex::default(),
            reserved: Mutex::new(Reserved { next: 0, open: HashSet::new() }),
            stopped: OnceLock::new(),
            _lock: None,
        })
    }

    /// A reader's newer snapshot; the writer always has the newest.
    pub fn refresh(&self) -> Result<()> {
        if self.writer.is_some() {
            return Ok(());
        }
        let segments = self.state().segments.clone();
        let fresh = snapshot(&self.folder, self.key.as_ref(), &segments)?;
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    pub(super) fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store's name.
    #[must_use]
    pub fn identity(&self) -> [u8; 16] {
        self.state().manifest.identity
    }

    /// Dimensions of a vector, and whether it is kept in half precision.
    #[must_use]
    pub fn vectors(&self) -> (usize, bool) {
        let vectors = self.state().vectors();
        (vectors.dim, vectors.half)
    }

    /// A memory and its wrapped key; None if it was forgotten or never there.
    pub fn read(&self, id: u64) -> Result<Option<(Record, Key)>> {
        let state = self.state();
        let Some(place) = state.find(id).filter(|_| !state.gone.contains(id)) else { return Ok(None) };
        // A reader's snapshot may be older than the forgetting: then the key is gone, and so is the memory.
        let Some(key) = self.keys.read(id)? else {
            return self.keyless(id);
        };
        match state.read(place) {
            Ok((record, _)) => Ok(Some((record, key))),
            Err(_) if self.forgotten_meanwhile(id)? => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the writer, in another process, has just erased what this snapshot still knows: the key goes first.
    fn forgotten_meanwhile(&self, id: u64) -> Result<bool> {
        Ok(self.writer.is_none() && self.keys.read(id)?.is_none())
    }

    fn keyless<T>(&self, id: u64) -> Result<Option<T>> {
        match self.writer {
            None => Ok(None),
            Some(_) => Err(StorageError::corrupt(format!("the key of memory {id} is missing"))),
        }
    }

    /// Whether an id was forgotten.
    #[must_use]
    pub fn forgotten(&self, id: u64) -> bool {
        self.state().gone.contains(id)
    }

    /// Every forgotten id.
    #[must_use]
    pub fn forgotten_ids(&self) -> Vec<u64> {
        self.state().gone.ids().collect()
    }

    /// The ids of live memories that a filter lets through.
    pub fn select(&self, filter: &Filter) -> Result<Vec<u64>> {
        filter.ids(&self.state())
    }

    /// Ids and vectors of up to `ids.len()` live memories from row `from` on, those with ids up to `above` left out,
    /// those of clear segments unchecked; `vectors` has `dim` places for each. Returns how many there were and the row to go on from, 0 at the
    /// end.
    pub fn scan(
        &self,
        from: usize,
        above: u64,
        ids: &mut [u64],
        vectors: &mut [f32],
    ) -> Result<(usize, usize)> {
        let state = self.state();
        let shape = state.vectors();
        assert!(vectors.len() == ids.len() * shape.dim);
        let wanted = |id: u64| id > above && !state.gone.contains(id);
        let (mut found, mut packed, mut row, mut first) = (0, vec![0; shape.bytes()], from, 0);
        let empty = ids.is_empty();
        let mut take = |id: u64, packed: &[u8]| {
            shape.unpack(packed, &mut vectors[found * shape.dim..][..shape.dim]);
            ids[found] = id;
            found += 1;
            found == ids.len()
        };
        let mut full = empty;
        for segment in &state.segments {
            while !full && row < first + segment.count() {
                let id = segment.id(row - first);
                if wanted(id) {
                    match segment.vector(row - first, &mut packed) {
                        Ok(()) => full = take(id, &packed),
                        Err(_) if self.forgotten_meanwhile(id)? => {}
                        Err(error) => return Err(error),
                    }
                }
                row += 1;
            }
            segment.unhurt()?;
            first += segment.count();
        }
        while !full && row < first + state.rows.len() {
            let one = &state.rows[row - first];
            if wanted(one.id) {
                match read_log_row(&state.log, one) {
                    Ok((_, vector)) => full = take(one.id, &vector),
                    Err(_) if self.forgotten_meanwhile(one.id)? => {}
                    Err(error) => return Err(error),
                }
            }
            row += 1;
        }
        Ok((found, if row < first + state.rows.len() { row } else { 0 }))
    }

    /// The vectors of these ids, checked; an error for an id that is not live, zeros where it was erased meanwhile.
    pub fn vectors_of(&self, ids: &[u64], vectors: &mut [f32]) -> Result<()> {
        let state = self.state();
        let shape = state.vectors();
        assert!(vectors.len() == ids.len() * shape.dim);
        for (&id, out) in ids.iter().zip(vectors.chunks_exact_mut(shape.dim)) {
            let place = state.find(id).filter(|_| !state.gone.contains(id));
            let place = place.ok_or_else(|| StorageError::input(format!("there is no memory {id}")))?;
            match state.read(place) {
                Ok((_, vector)) => shape.unpack(&vector, out),
                Err(_) if self.forgotten_meanwhile(id)? => out.fill(0.0),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Read every live memory and its key; returns how many.
    pub fn verify(&self) -> Result<usize> {
        let state = self.state();
        let mut count = 0;
        for (id, place) in state.places().filter(|(id, _)| !state.gone.contains(*id)) {
            match (self.keys.read(id)?, state.read(place)) {
                (Some(_), Ok(_)) => count += 1,
                (Some(_), Err(_)) if self.forgotten_meanwhile(id)? => {}
                (Some(_), Err(error)) => return Err(error),
                (None, _) => drop(self.keyless::<()>(id)?),
            }
        }
        Ok(count)
    }

    /// Sizes and counts.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let state = self.state();
        let live = state.live();
        Stats {
            live,
            forgotten: state.gone.count(),
            to_compact: state.places().count() - live,
            segments: state.segments.len(),
            log_rows: state.rows.len(),
            bytes: state.segments.iter().map(|one| one.bytes()).sum::<u64>() + state.log_end,
        }
    }
}

/// Open what a manifest names; None if one of the files is gone. Segments that are open already are used again.
fn load(
    folder: &Path,
    manifest: Manifest,
    key: Option<&StoreKey>,
    all: bool,
    open: &[Arc<Segment>],
) -> Result<Option<(State, Vec<u64>)>> {
    if manifest.sealed != key.is_some() {
        return Err(StorageError::input(if manifest.sealed {
            "the store is encrypted as a whole and opens with its key only"
        } else {
            "the store is not encrypted as a whole, and a key was given for it"
        }));
    }
    let kept = manifest.kept(key);
    let Some(log) = LogFile::open(&log_path(folder, manifest.log), manifest.log, kept, all)? else {
        return Ok(None);
    };
    let mut segments = Vec::with_capacity(manifest.segments.len());
    for &number in &manifest.segments {
        let known = open.iter().find(|segment| segment.sequence == number).cloned();
        let segment = match known {
            Some(segment) => Some(segment),
            None => Segment::open(&manifest.segment_path(folder, number), number, kept, all)?.map(Arc::new),
        };
        let Some(segment) = segment else { return Ok(None) };
        segments.push(segment);
    }
    let gone =
        if manifest.forgotten == 0 { Some(Gone::default()) } else { Gone::read(folder, manifest.forgotten)? };
    let Some(gone) = gone else { return Ok(None) };
    let scanned = log.scan(all)?;
    let mut state = State {
        manifest,
        segments,
        log: Arc::new(log),
        log_end: START,
        rows: Vec::new(),
        by_id: std::collections::HashMap::new(),
        gone,
    };
    state.extend(scanned.rows, &scanned.forgotten, scanned.end);
    Ok(Some((state, scanned.forgotten)))
}

/// Read as a reader does: the writer may replace the manifest at any moment.
fn snapshot(folder: &Path, key: Option<&StoreKey>, open: &[Arc<Segment>]) -> Result<State> {
    for _ in 0..SNAPSHOT_TRIES {
        let manifest = read_manifest(folder)?;
        if let Some((state, _)) = load(folder, manifest, key, false, open)? {
            return Ok(state);
        }
    }
    Err(StorageError::corrupt("a file that the manifest names is missing"))
}

fn read_manifest(folder: &Path) -> Result<Manifest> {
    Manifest::read(folder)?.ok_or_else(|| StorageError::Io {
        doing: "opening the manifest",
        error: io::Error::from_raw_os_error(libc::ENOENT),
    })
}

/// Erase the keys and vectors of forgotten memories; nothing is done twice.
pub fn erase(state: &State, keys: &KeyFile, ids: &[u64]) -> Result<()> {
    let held: Vec<u64> = ids.iter().copied().filter(|&id| !matches!(keys.read(id), Ok(None))).collect();
    if !held.is_empty() {
        keys.erase(&held)?;
        keys.sync()?;
    }
    let mut rows = vec![Vec::new(); state.segments.len()];
    let mut in_log = false;
    for &id in ids {
        match state.find(id) {
            Some(Place::Segment(segment, row)) => rows[segment].push(row),
            Some(Place::Log(row)) => {
                state.log.erase_vector(&state.rows[row])?;
                in_log = true;
            }
            None => {}
        }
    }
    for (segment, rows) in state.segments.iter().zip(&rows) {
        segment.erase_vectors(rows)?;
    }
    if in_log {
        state.log.sync()?;
    }
    Ok(())
}

/// The writer's lock, which goes with the file.
fn lock(folder: &Path) -> Result<File> {
    let options = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(folder.join(LOCK_NAME));
    let file = options.map_err(StorageError::io("opening the store's lock"))?;
    if !file.metadata().map_err(StorageError::io("looking at the store's lock"))?.is_file() {
        return Err(StorageError::corrupt("the store's lock is not a plain file"));
    }
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(StorageError::Busy),
        Err(fs::TryLockError::Error(error)) => Err(StorageError::Io { doing: "locking the store", error }),
    }
}

const _: () = assert!(IDS_MAX < u64::MAX / 128);
