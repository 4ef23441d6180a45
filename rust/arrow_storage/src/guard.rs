//! A file that is truncated while it is mapped raises SIGBUS at the next touch; here that becomes a recorded fault.
//!
//! The handler maps zero pages over what is gone and returns, so that the reading thread goes on with zeros; whoever
//! uses the numbers asks `Region::fault` before an answer leaves. A SIGBUS of anybody else goes to the handler that
//! was there before. Everything the handler does is an atomic operation or a bare system call.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicUsize, Ordering};

/// One registered map. Slots are never freed, only used again, so that the handler can walk over them at any time.
struct Slot {
    /// Odd while the fields change: the handler passes over the slot.
    version: AtomicUsize,
    /// First and one past the last address; both 0 while the slot is free.
    start: AtomicUsize,
    end: AtomicUsize,
    file: AtomicI32,
    faulted: AtomicBool,
    next: AtomicPtr<Slot>,
}

static SLOTS: AtomicPtr<Slot> = AtomicPtr::new(ptr::null_mut());
/// Held while slots are taken, given back or the handler is installed; never by the handler.
static CHANGE: Mutex<()> = Mutex::new(());
/// A signal was handed on since the last installation: the next one that comes back ends the process.
static HANDED_ON: AtomicBool = AtomicBool::new(false);

/// The handler that was there before ours.
struct Previous(UnsafeCell<MaybeUninit<libc::sigaction>>);
// SAFETY: it is written under CHANGE before our handler is installed, and only read by that handler.
unsafe impl Sync for Previous {}
static PREVIOUS: Previous = Previous(UnsafeCell::new(MaybeUninit::uninit()));

/// A registered map; dropping it ends the registration, which must come before the map goes.
pub struct Region(&'static Slot);

impl Region {
    /// Guard the map of `file` at `start..end`.
    pub fn register(start: usize, end: usize, file: RawFd) -> Self {
        install();
        let _change = CHANGE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let slot = free_slot();
        slot.set(start, end, file);
        Region(slot)
    }

    /// Whether a touch found that the file's bytes were gone.
    #[must_use]
    pub fn fault(&self) -> bool {
        self.0.faulted.load(Ordering::Acquire)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let _change = CHANGE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.0.set(0, 0, -1);
    }
}

impl Slot {
    fn set(&self, start: usize, end: usize, file: RawFd) {
        self.version.fetch_add(1, Ordering::AcqRel);
        self.start.store(start, Ordering::Release);
        self.end.store(end, Ordering::Release);
        self.file.store(file, Ordering::Release);
        self.faulted.store(false, Ordering::Release);
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// (start, end, file) as they belong together, None while they change or the slot is free.
    fn get(&self) -> Option<(usize, usize, RawFd)> {
        let version = self.version.load(Ordering::Acquire);
        let fields = (
            self.start.load(Ordering::Acquire),
            self.end.load(Ordering::Acquire),
            self.file.load(Ordering::Acquire),
        );
        let unchanged = version.is_multiple_of(2) && self.version.load(Ordering::Acquire) == version;
        (unchanged && fields.1 > 0).then_some(fields)
    }
}

fn slots() -> impl Iterator<Item = &'static Slot> {
    let mut next = SLOTS.load(Ordering::Acquire);
    std::iter::from_fn(move || {
        // SAFETY: every slot is leaked from a Box before it is linked, so that it lives for ever.
        let slot: &'static Slot = unsafe { next.as_ref() }?;
        next = slot.next.load(Ordering::Acquire);
        Some(slot)
    })
}

fn free_slot() -> &'static Slot {
    if let Some(slot) = slots().find(|slot| slot.end.load(Ordering::Acquire) == 0) {
        return slot;
    }
    let slot: &'static mut Slot = Box::leak(Box::new(Slot {
        version: AtomicUsize::new(0),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        file: AtomicI32::new(-1),
        faulted: AtomicBool::new(false),
        next: AtomicPtr::new(SLOTS.load(Ordering::Acquire)),
    }));
    SLOTS.store(slot, Ordering::Release);
    slot
}

/// Put our handler on top, unless it is there. Called again and again, because others install theirs at any time.
pub fn install() {
    let _change = CHANGE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let ours = handler as *const () as usize;
    // SAFETY: sigaction only reads and writes the structs given; our handler has the signature that SA_SIGINFO
    // asks for; PREVIOUS is written only while our handler is not installed, hence not running on a new signal.
    unsafe {
        let mut present = MaybeUninit::<libc::sigaction>::zeroed();
        if libc::sigaction(libc::SIGBUS, ptr::null(), present.as_mut_ptr()) != 0 {
            return;
        }
        let present = present.assume_init();
        if present.sa_sigaction == ours {
            return;
        }
        (*PREVIOUS.0.get()).write(present);
        HANDED_ON.store(false, Ordering::Release);
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = ours;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER | libc::SA_RESTART;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &action, ptr::null_mut());
    }
}

extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid siginfo to an SA_SIGINFO handler; si_addr is meaningful for codes above 0,
    // which only the kernel sends.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // SAFETY: errno is a valid thread-local address; it is kept for the code that was interrupted.
    let errno = unsafe { *errno_address() };
    let ours = if code > 0 { replace_around(address) } else { replace_what_is_gone() };
    if !ours {
        hand_on(signal, code);
    }
    // SAFETY: as above.
    unsafe { *errno_address() = errno };
}

#[cfg(target_os = "linux")]
use libc::__errno_location as errno_address;
#[cfg(not(target_os = "linux"))]
use libc::__error as errno_address;

/// The map that holds `address`, from its page on, becomes zeros; false where no map of ours holds it.
fn replace_around(address: usize) -> bool {
    for slot in slots() {
        if let Some((start, end, _)) = slot.get()
            && (start..end).contains(&address)
        {
            return slot.replace(address, end);
        }
    }
    false
}

/// The signal was sent, not raised by a touch. Another handler on top of ours (faulthandler) reports a fault and sends
/// it again, without its address: then some file of ours is shorter than its map, and the touch will be tried again.
fn replace_what_is_gone() -> bool {
    let mut any = false;
    for slot in slots() {
        let Some((start, end, file)) = slot.get() else { continue };
        if slot.faulted.load(Ordering::Acquire) {
            continue; // what was gone is already zeros
        }
        let mut status = MaybeUninit::<libc::stat>::zeroed();
        // SAFETY: fstat writes to the struct given, and reports an error for a descriptor that is no longer open.
        let size = unsafe {
            if libc::fstat(file, status.as_mut_ptr()) != 0 {
                continue;
            }
            status.assume_init().st_size as usize
        };
        let kept = start + size.next_multiple_of(page_bytes());
        if kept < end {
            any |= slot.replace(kept, end);
        }
    }
    any
}

impl Slot {
    /// Anonymous zero pages from the page of `address` to `end`.
    fn replace(&self, address: usize, end: usize) -> bool {
        let page = address - address % page_bytes();
        let (access, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED);
        // SAFETY: page..end lies within the map that this slot registers, which nobody unmaps while it is being
        // read; its pages from here on have no file behind them any more.
        let mapped = unsafe {
            libc::mmap(page as *mut libc::c_void, end - page, access, flags | libc::MAP_NORESERVE, -1, 0)
        };
        self.faulted.store(true, Ordering::Release);
        mapped != libc::MAP_FAILED
    }
}

/// Somebody else's signal: restore the handler before ours, then let the touch, or the sending, happen again.
fn hand_on(signal: libc::c_int, code: libc::c_int) {
    // SAFETY: PREVIOUS was written before this handler was installed; the default action needs no fields but zeros;
    // sigaction and raise are async-signal-safe.
    unsafe {
        if HANDED_ON.swap(true, Ordering::AcqRel) {
            let default: libc::sigaction = MaybeUninit::zeroed().assume_init();
            libc::sigaction(signal, &default, ptr::null_mut());
        } else {
            libc::sigaction(signal, (*PREVIOUS.0.get()).as_ptr(), ptr::null_mut());
        }
        if code <= 0 {
            libc::raise(signal);
        }
    }
}

/// The size of a page; asked once, and never in the handler first: `Region::register` asks before.
pub fn page_bytes() -> usize {
    static BYTES: AtomicUsize = AtomicUsize::new(0);
    match BYTES.load(Ordering::Relaxed) {
        0 => {
            // SAFETY: sysconf only reads.
            let bytes = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096).max(1);
            BYTES.store(bytes, Ordering::Relaxed);
            bytes
        }
        bytes => bytes,
    }
}
