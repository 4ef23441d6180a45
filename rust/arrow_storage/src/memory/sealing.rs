//! Encryption of a store as a whole: every file has a key of its own, derived from the store's key and random salt.
//!
//! A file that is written twice under the same number, because a crash came between, has another salt and so another
//! key: what is sealed at a place in a file is sealed once under that key, and the place can be the nonce. Only the
//! log, whose tail is cut and written again, takes random nonces.
//!
//! Sources: AES-256-GCM, NIST SP 800-38D; HKDF with SHA-256, RFC 5869; chunks with a mark on the last one, "Online
//! Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance" (STREAM).

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::rand::SecureRandom;
use ring::{hkdf, rand};

use super::files;
use crate::error::{Result, StorageError};
use crate::mapping::Mapping;

/// Behind everything that is sealed.
pub const TAG_BYTES: usize = 16;
pub const NONCE_BYTES: usize = 12;
pub const SALT_BYTES: usize = 16;
const MAGIC: &[u8; 16] = b"aios-sealed-1\n\0\0";
/// Of a sealed file: magic, salt, checksum.
pub const HEAD_BYTES: usize = MAGIC.len() + SALT_BYTES + 4;
/// Sealed in one piece: small beside the caches, large beside a tag.
const CHUNK_BYTES: usize = 1 << 18;
/// Threads that open one file: more than this and memory is the limit.
const THREADS_MAX: usize = 8;

/// What a key is for; no two kinds of file share one.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// A log.
    Log,
    /// A segment.
    Segment,
    /// The copy of a search index.
    Index,
}

/// The key of a store that is encrypted as a whole.
#[derive(Clone)]
pub struct StoreKey([u8; 32]);

impl StoreKey {
    /// Of 32 random bytes, bound to the store by whoever made them.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        StoreKey(bytes)
    }

    /// The key of one file.
    pub fn file(&self, kind: Kind, number: u64, salt: &[u8; SALT_BYTES]) -> FileKey {
        let name: &[u8] = match kind {
            Kind::Log => b"aios memory log",
            Kind::Segment => b"aios memory segment",
            Kind::Index => b"aios memory index",
        };
        let number = number.to_le_bytes();
        let info = [name, number.as_slice()];
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(&self.0);
        let expanded = secret.expand(&info, &AES_256_GCM).expect("one key is a short output");
        FileKey(LessSafeKey::new(UnboundKey::from(expanded)))
    }
}

/// The key of one file.
pub struct FileKey(LessSafeKey);

impl FileKey {
    /// Encrypt in place; the tag goes behind.
    pub fn seal(&self, nonce: [u8; NONCE_BYTES], about: &[u8], bytes: &mut [u8]) -> [u8; TAG_BYTES] {
        let tag =
            self.0.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(about), bytes);
        let tag = tag.expect("pieces are far below 64 GiB");
        let mut out = [0; TAG_BYTES];
        out.copy_from_slice(tag.as_ref());
        out
    }

    /// Decrypt in place; false, and bytes of no meaning, where the tag does not fit.
    #[must_use]
    pub fn open(
        &self,
        nonce: [u8; NONCE_BYTES],
        about: &[u8],
        bytes: &mut [u8],
        tag: [u8; TAG_BYTES],
    ) -> bool {
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.0.open_in_place_separate_tag(nonce, Aad::from(about), tag.into(), bytes, 0..).is_ok()
    }
}

/// Random bytes of the system.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut out = [0; N];
    let filled = rand::SystemRandom::new().fill(&mut out);
    filled.map_err(|_| StorageError::Io {
        doing: "asking the system for random bytes",
        error: io::Error::other("refused"),
    })?;
    Ok(out)
}

/// The nonce of the piece `place` of a file.
pub fn nonce(place: u64) -> [u8; NONCE_BYTES] {
    let mut nonce = [0; NONCE_BYTES];
    nonce[..8].copy_from_slice(&place.to_le_bytes());
    nonce
}

/// The beginning of a sealed file: magic, salt, checksum.
pub fn head(magic: &[u8; 16], salt: &[u8; SALT_BYTES]) -> Vec<u8> {
    let mut head = [magic.as_slice(), salt].concat();
    head.extend(aios_crc32c::crc32c(&head, 0).to_le_bytes());
    head
}

/// The salt of a beginning; None where it is another one.
pub fn salt(magic: &[u8; 16], found: &[u8; HEAD_BYTES]) -> Option<[u8; SALT_BYTES]> {
    let mut salt = [0; SALT_BYTES];
    salt.copy_from_slice(&found[magic.len()..][..SALT_BYTES]);
    (head(magic, &salt) == found).then_some(salt)
}

/// Write a file that is sealed in chunks, as a whole or not at all; its name is on the disk too when this returns.
pub fn write(
    path: &Path,
    key: &StoreKey,
    kind: Kind,
    number: u64,
    content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    let salt = random()?;
    files::replace(path, |out| {
        let put = || {
            out.write_all(&head(MAGIC, &salt))?;
            let key = key.file(kind, number, &salt);
            let mut chunks = Chunks { out, key, chunk: Vec::with_capacity(CHUNK_BYTES), place: 0 };
            content(&mut chunks)?;
            chunks.put(true)
        };
        put().map_err(StorageError::io("writing a sealed file"))
    })?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    files::sync_folder(folder.unwrap_or(Path::new(".")))
}

/// What is written goes out sealed.
struct Chunks<'a, 'b> {
    out: &'a mut io::BufWriter<&'b File>,
    key: FileKey,
    chunk: Vec<u8>,
    place: u64,
}

impl Chunks<'_, '_> {
    fn put(&mut self, last: bool) -> io::Result<()> {
        let tag = self.key.seal(nonce(self.place), &[u8::from(last)], &mut self.chunk);
        self.out.write_all(&self.chunk)?;
        self.out.write_all(&tag)?;
        self.chunk.clear();
        self.place += 1;
        Ok(())
    }
}

impl Write for Chunks<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.chunk.len() == CHUNK_BYTES {
            self.put(false)?; // a full chunk waits, because it may be the last one
        }
        let some = bytes.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..some]);
        Ok(some)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The content of a sealed file, in memory; None if there is no such file.
pub fn open(path: &Path, key: &StoreKey, kind: Kind, number: u64) -> Result<Option<Mapping>> {
    let Some(file) = files::open(path, false)? else { return Ok(None) };
    let damaged = || StorageError::corrupt("a sealed file is damaged");
    let mut found = [0; HEAD_BYTES];
    let length = file.metadata().map_err(StorageError::io("looking at a sealed file"))?.len();
    let chunks = length.saturating_sub(HEAD_BYTES as u64).div_ceil((CHUNK_BYTES + TAG_BYTES) as u64);
    let bytes = length.checked_sub(HEAD_BYTES as u64 + chunks * TAG_BYTES as u64);
    let bytes = bytes.filter(|&bytes| bytes > 0).ok_or_else(damaged)?;
    let bytes = usize::try_from(bytes).map_err(|_| damaged())?;
    file.read_exact_at(&mut found, 0).map_err(StorageError::io("reading a sealed file"))?;
    let key = key.file(kind, number, &salt(MAGIC, &found).ok_or_else(damaged)?);
    let map = Mapping::anonymous(file, bytes)?;
    // SAFETY: the whole of a new map that nobody else knows.
    let content = unsafe { std::slice::from_raw_parts_mut(map.address(), bytes) };
    fill(map.file(), &key, content)?;
    Ok(Some(map))
}

/// Read and open all chunks, on several threads.
fn fill(file: &File, key: &FileKey, content: &mut [u8]) -> Result<()> {
    let last = content.len().div_ceil(CHUNK_BYTES) - 1;
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX).min(last + 1);
    let share = (last + 1).div_ceil(threads);
    let part = &|first: usize, content: &mut [u8]| -> Result<()> {
        for (index, chunk) in content.chunks_mut(CHUNK_BYTES).enumerate() {
            let place = first + index;
            let mut tag = [0; TAG_BYTES];
            let at = (HEAD_BYTES + place * (CHUNK_BYTES + TAG_BYTES)) as u64;
            file.read_exact_at(chunk, at).map_err(StorageError::io("reading a sealed file"))?;
            file.read_exact_at(&mut tag, at + chunk.len() as u64)
                .map_err(StorageError::io("reading a sealed file"))?;
            if !key.open(nonce(place as u64), &[u8::from(place == last)], chunk, tag) {
                return Err(StorageError::corrupt("a sealed file is damaged, or sealed under another key"));
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let parts = content.chunks_mut(share * CHUNK_BYTES).enumerate();
        let running: Vec<_> =
            parts.map(|(index, content)| scope.spawn(move || part(index * share, content))).collect();
        running.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(StorageError::corrupt("opening a sealed file failed")))
        })
    })
}
