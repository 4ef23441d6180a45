//! Finds where MessagePack frames end, byte by byte, and refuses what lies or grows too large.
//!
//! A frame is one complete MessagePack object. Nothing is built or copied: the scanner holds a few counters
//! and one number per open container, so its memory is the same for an honest byte and for a declared
//! gigabyte. It can be fed in any pieces. Source: the MessagePack specification (type formats).

use std::fmt;

/// Deepest nesting any scanner can be asked to allow: the size of its stack.
pub const DEPTH_LIMIT: usize = 64;

/// What one frame may contain at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one frame, its headers included.
    pub bytes_max: u64,
    /// Containers inside one another; a flat array has depth 1.
    pub depth_max: usize,
    /// Objects of one frame: every scalar, container, key and value counts one.
    pub elements_max: u64,
}

/// Why a frame is refused; the scanner stays refused afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The frame declares, or has, more bytes than allowed.
    TooLong(u64),
    /// Containers nest deeper than allowed.
    TooDeep(usize),
    /// The frame declares, or has, more objects than allowed.
    TooMany(u64),
    /// Byte 0xc1, which MessagePack never uses.
    Reserved,
    /// An extension type; this protocol has none.
    Extension,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::TooLong(max) => write!(f, "a frame of more than {max} bytes"),
            Fault::TooDeep(max) => write!(f, "a frame nested more than {max} levels deep"),
            Fault::TooMany(max) => write!(f, "a frame of more than {max} elements"),
            Fault::Reserved => f.write_str("byte 0xc1, which is not MessagePack"),
            Fault::Extension => f.write_str("an extension type, which this protocol does not have"),
        }
    }
}

impl std::error::Error for Fault {}

/// What a header's length field counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counts {
    Bytes,
    Elements,
    Pairs,
}

/// What the next byte is.
#[derive(Clone, Copy, Debug)]
enum Expect {
    /// The first byte of an object.
    Marker,
    /// One of `left` more bytes of a big-endian length; `value` is what was read so far.
    Length { counts: Counts, left: u8, value: u64 },
    /// One of this many bytes that belong to a scalar.
    Payload(u64),
}

/// The state of the scan between two pieces.
#[derive(Clone, Debug)]
pub struct FrameScanner {
    limits: Limits,
    expect: Expect,
    /// Objects still missing in each open container.
    open: [u64; DEPTH_LIMIT],
    depth: usize,
    /// Bytes of this frame seen so far, and bytes it cannot do without (every missing object takes one).
    seen: u64,
    owed: u64,
    elements: u64,
    fault: Option<Fault>,
}

impl FrameScanner {
    /// A scanner at the start of a stream; `depth_max` is capped at `DEPTH_LIMIT`.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let limits = Limits { depth_max: limits.depth_max.min(DEPTH_LIMIT), ..limits };
        FrameScanner {
            limits,
            expect: Expect::Marker,
            open: [0; DEPTH_LIMIT],
            depth: 0,
            seen: 0,
            owed: 1,
            elements: 1,
            fault: None,
        }
    }

    /// True when the last byte fed was not the last of a frame.
    #[must_use]
    pub fn partial(&self) -> bool {
        self.seen > 0
    }

    /// Read on; appends to `ends` the offset in `piece` behind every frame that became complete.
    ///
    /// # Errors
    /// The first fault, and the same one ever after; frames that ended before it are in `ends`.
    pub fn feed(&mut self, piece: &[u8], ends: &mut Vec<usize>) -> Result<(), Fault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let result = self.scan(piece, ends);
        self.fault = result.err();
        result
    }

    fn scan(&mut self, piece: &[u8], ends: &mut Vec<usize>) -> Result<(), Fault> {
        let mut at = 0;
        while at < piece.len() {
            let taken = match self.expect {
                Expect::Marker => self.marker(piece[at]).map(|()| 1)?,
                Expect::Length { counts, left, value } => {
                    self.length(counts, left, value << 8 | u64::from(piece[at])).map(|()| 1)?
                }
                Expect::Payload(left) => self.payload(left, piece.len() - at),
            };
            at += taken;
            self.seen += taken as u64;
            if self.owed == 0 {
                ends.push(at);
                (self.seen, self.owed, self.elements) = (0, 1, 1);
            }
        }
        Ok(())
    }

    /// The first byte of an object: complete, a payload to skip, a container, or a length to read.
    fn marker(&mut self, byte: u8) -> Result<(), Fault> {
        self.owed -= 1;
        match byte {
            0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => self.complete(),
            0x80..=0x8f => self.container(u64::from(byte & 0x0f) * 2)?,
            0x90..=0x9f => self.container(u64::from(byte & 0x0f))?,
            0xa0..=0xbf => self.scalar(u64::from(byte & 0x1f))?,
            0xc1 => return Err(Fault::Reserved),
            0xc4..=0xc6 => self.header(Counts::Bytes, 1 << (byte - 0xc4))?,
            0xc7..=0xc9 | 0xd4..=0xd8 => return Err(Fault::Extension),
            0xca => self.scalar(4)?,
            0xcb => self.scalar(8)?,
            0xcc..=0xcf => self.scalar(1 << (byte - 0xcc))?,
            0xd0..=0xd3 => self.scalar(1 << (byte - 0xd0))?,
            0xd9..=0xdb => self.header(Counts::Bytes, 1 << (byte - 0xd9))?,
            0xdc | 0xdd => self.header(Counts::Elements, 2 << (byte - 0xdc))?,
            0xde | 0xdf => self.header(Counts::Pairs, 2 << (byte - 0xde))?,
        }
        Ok(())
    }

    fn header(&mut self, counts: Counts, left: u8) -> Result<(), Fault> {
        self.owe(u64::from(left))?;
        self.expect = Expect::Length { counts, left, value: 0 };
        Ok(())
    }

    fn length(&mut self, counts: Counts, left: u8, value: u64) -> Result<(), Fault> {
        self.owed -= 1;
        if left > 1 {
            self.expect = Expect::Length { counts, left: left - 1, value };
            return Ok(());
        }
        match counts {
            Counts::Bytes => self.scalar(value),
            Counts::Elements => self.container(value),
            Counts::Pairs => self.container(value * 2),
        }
    }

    fn payload(&mut self, left: u64, available: usize) -> usize {
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(available);
        let still = left - taken as u64;
        self.owed -= taken as u64;
        if still == 0 {
            self.complete();
        } else {
            self.expect = Expect::Payload(still);
        }
        taken
    }

    /// A scalar whose remaining `bytes` were just declared.
    fn scalar(&mut self, bytes: u64) -> Result<(), Fault> {
        self.owe(bytes)?;
        if bytes == 0 {
            self.complete();
        } else {
            self.expect = Expect::Payload(bytes);
        }
        Ok(())
    }

    /// A container whose `children` were just declared.
    fn container(&mut self, children: u64) -> Result<(), Fault> {
        if self.depth == self.limits.depth_max {
            return Err(Fault::TooDeep(self.limits.depth_max));
        }
        self.elements += children;
        if self.elements > self.limits.elements_max {
            return Err(Fault::TooMany(self.limits.elements_max));
        }
        self.owe(children)?;
        if children == 0 {
            self.complete();
        } else {
            self.open[self.depth] = children;
            self.depth += 1;
            self.expect = Expect::Marker;
        }
        Ok(())
    }

    /// Promise `bytes` more; refused as soon as the frame cannot end within the limit.
    fn owe(&mut self, bytes: u64) -> Result<(), Fault> {
        self.owed += bytes;
        // The byte in hand is in `seen` only after this call.
        if self.seen + 1 + self.owed > self.limits.bytes_max {
            return Err(Fault::TooLong(self.limits.bytes_max));
        }
        Ok(())
    }

    /// One object is complete: close every container of which it was the last missing one.
    fn complete(&mut self) {
        self.expect = Expect::Marker;
        while self.depth > 0 {
            let missing = &mut self.open[self.depth - 1];
            *missing -= 1;
            if *missing > 0 {
                return;
            }
            self.depth -= 1;
        }
    }
}
