//! The laws of the scanner, against a plain recursive reading of whole frames.

use aios_frame_scanner::{DEPTH_LIMIT, Fault, FrameScanner, Limits};

const WIDE: Limits = Limits { bytes_max: 1 << 20, depth_max: 32, elements_max: 1 << 16 };
const ROUNDS: usize = 20_000;

/// A seeded generator (splitmix64), so that every failure can be repeated.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }

    /// A well-formed object with at most `depth` levels of containers.
    fn object(&mut self, depth: usize) -> Vec<u8> {
        let kinds = if depth == 0 { 8 } else { 14 };
        let length = self.below(5);
        let mut object = match self.below(kinds) {
            0 => vec![*[0x00, 0x7f, 0xc0, 0xc2, 0xc3, 0xe0, 0xff].get(self.below(7)).unwrap()],
            1 => vec![0xa0 | length as u8],
            2 => vec![0xc4, length as u8],
            3 => vec![0xd9, length as u8],
            4 => vec![0xc5, 0, length as u8],
            5 => vec![0xdb, 0, 0, 0, length as u8],
            6 => {
                let (marker, width) =
                    [(0xca, 4), (0xcb, 8), (0xcc, 1), (0xcf, 8), (0xd0, 1), (0xd2, 4)][self.below(6)];
                return [vec![marker], self.bytes(width)].concat();
            }
            7 => vec![0xc6, 0, 0, 0, length as u8],
            8 | 9 => return self.children(vec![0x90 | length as u8], length, depth),
            10 => return self.children(vec![0xdc, 0, length as u8], length, depth),
            11 => return self.children(vec![0xdd, 0, 0, 0, length as u8], length, depth),
            12 => return self.children(vec![0x80 | length as u8], 2 * length, depth),
            _ => return self.children(vec![0xdf, 0, 0, 0, length as u8], 2 * length, depth),
        };
        if object[0] >= 0xa0 && !matches!(object[0], 0xc0 | 0xc2 | 0xc3 | 0xe0 | 0xff) {
            object.extend(self.bytes(length));
        }
        object
    }

    fn children(&mut self, mut header: Vec<u8>, count: usize, depth: usize) -> Vec<u8> {
        for _ in 0..count {
            let child = self.object(depth - 1);
            header.extend(child);
        }
        header
    }
}

/// One whole object read recursively: its end, its depth and its elements. None when it is cut off or no MessagePack.
fn read(data: &[u8], at: usize) -> Option<(usize, usize, u64)> {
    let number = |from: usize, width: usize| {
        data.get(from..from + width).map(|b| b.iter().fold(0, |n, &b| n << 8 | usize::from(b)))
    };
    let scalar = |end: usize| (end <= data.len()).then_some((end, 0, 1));
    let marker = *data.get(at)?;
    let (body, children) = match marker {
        0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => return scalar(at + 1),
        0xa0..=0xbf => return scalar(at + 1 + usize::from(marker & 31)),
        0xc4 | 0xd9 => return scalar(at + 2 + number(at + 1, 1)?),
        0xc5 | 0xda => return scalar(at + 3 + number(at + 1, 2)?),
        0xc6 | 0xdb => return scalar(at + 5 + number(at + 1, 4)?),
        0xcc | 0xd0 => return scalar(at + 2),
        0xcd | 0xd1 => return scalar(at + 3),
        0xca | 0xce | 0xd2 => return scalar(at + 5),
        0xcb | 0xcf | 0xd3 => return scalar(at + 9),
        0x90..=0x9f => (at + 1, usize::from(marker & 15)),
        0xdc => (at + 3, number(at + 1, 2)?),
        0xdd => (at + 5, number(at + 1, 4)?),
        0x80..=0x8f => (at + 1, 2 * usize::from(marker & 15)),
        0xde => (at + 3, 2 * number(at + 1, 2)?),
        0xdf => (at + 5, 2 * number(at + 1, 4)?),
        _ => return None,
    };
    let (mut end, mut depth, mut elements) = (body, 0, 1);
    for _ in 0..children {
        let child = read(data, end)?;
        (end, depth, elements) = (child.0, depth.max(child.1), elements + child.2);
    }
    Some((end, depth + 1, elements))
}

/// Absolute ends of the frames, fed in pieces of random size, and the fault.
fn scan_in_pieces(data: &[u8], limits: Limits, noise: &mut Noise) -> (Vec<usize>, Option<Fault>) {
    let mut scanner = FrameScanner::new(limits);
    let (mut at, mut ends) = (0, Vec::new());
    while at < data.len() {
        let size = 1 + noise.below(9).min(data.len() - at - 1);
        let mut found = Vec::new();
        let result = scanner.feed(&data[at..at + size], &mut found);
        ends.extend(found.iter().map(|end| at + end));
        if let Err(fault) = result {
            return (ends, Some(fault));
        }
        at += size;
    }
    (ends, None)
}

fn scan(data: &[u8], limits: Limits) -> (Vec<usize>, Option<Fault>) {
    let mut ends = Vec::new();
    let fault = FrameScanner::new(limits).feed(data, &mut ends).err();
    (ends, fault)
}

#[test]
fn frames_end_where_a_recursive_reading_says() {
    let mut noise = Noise(1);
    for _ in 0..ROUNDS {
        let frames: Vec<Vec<u8>> = (0..1 + noise.below(3)).map(|_| noise.object(4)).collect();
        let data = frames.concat();
        let mut expected = Vec::new();
        while *expected.last().unwrap_or(&0) < data.len() {
            expected.push(read(&data, *expected.last().unwrap_or(&0)).expect("well-formed").0);
        }
        assert_eq!(scan(&data, WIDE), (expected.clone(), None), "{data:02x?}");
        assert_eq!(scan_in_pieces(&data, WIDE, &mut noise), (expected, None), "{data:02x?}");
    }
}

#[test]
fn random_bytes_split_anywhere_end_the_same_way() {
    let mut noise = Noise(2);
    let tight = Limits { bytes_max: 40, depth_max: 3, elements_max: 12 };
    for round in 0..ROUNDS {
        let length = 1 + noise.below(64);
        let data = noise.bytes(length);
        let limits = if round % 2 == 0 { WIDE } else { tight };
        assert_eq!(scan_in_pieces(&data, limits, &mut noise), scan(&data, limits), "{data:02x?}");
    }
}

#[test]
fn a_frame_passes_exactly_when_it_is_within_every_limit() {
    let mut noise = Noise(3);
    for _ in 0..ROUNDS {
        let data = noise.object(4);
        let (end, depth, elements) = read(&data, 0).expect("well-formed");
        let exact = Limits { bytes_max: end as u64, depth_max: depth, elements_max: elements };
        assert_eq!(scan(&data, exact), (vec![end], None));
        if end > 1 {
            let short = Limits { bytes_max: end as u64 - 1, ..exact };
            assert_eq!(scan(&data, short).1, Some(Fault::TooLong(end as u64 - 1)), "{data:02x?}");
        }
        if depth > 0 {
            let shallow = Limits { depth_max: depth - 1, ..exact };
            assert_eq!(scan(&data, shallow).1, Some(Fault::TooDeep(depth - 1)));
        }
        if elements > 1 {
            let few = Limits { elements_max: elements - 1, ..exact };
            assert_eq!(scan(&data, few).1, Some(Fault::TooMany(elements - 1)));
        }
    }
}

#[test]
fn a_lie_is_refused_at_its_header() {
    let cases: [(&[u8], Fault); 10] = [
        (&[0xdb, 0xff, 0xff, 0xff, 0xff], Fault::TooLong(WIDE.bytes_max)),
        (&[0xc6, 0x00, 0x10, 0x00, 0x00], Fault::TooLong(WIDE.bytes_max)),
        (&[0xdd, 0xff, 0xff, 0xff, 0xff], Fault::TooMany(WIDE.elements_max)),
        (&[0xdf, 0x00, 0x00, 0x80, 0x00], Fault::TooMany(WIDE.elements_max)),
        (&[0xdc, 0xff, 0xff, 0xdc, 0xff, 0xff], Fault::TooMany(WIDE.elements_max)),
        (&[0x91; 33], Fault::TooDeep(32)),
        (&[0xc1], Fault::Reserved),
        (&[0xd4], Fault::Extension),
        (&[0xc9], Fault::Extension),
        (&[0x92, 0x00, 0xc1], Fault::Reserved),
    ];
    for (data, fault) in cases {
        assert_eq!(scan(data, WIDE), (vec![], Some(fault)), "{data:02x?}");
        assert_eq!(
            scan(&data[..data.len() - 1], WIDE),
            scan_in_pieces(&data[..data.len() - 1], WIDE, &mut Noise(4))
        );
    }
}

#[test]
fn promises_inside_a_container_add_up() {
    // Two strings of 600 kB fit one by one, not together.
    let limits = Limits { bytes_max: 1_000_000, ..WIDE };
    let mut data = vec![0x92, 0xdb, 0x00, 0x09, 0x27, 0xc0];
    data.extend(vec![b'a'; 600_000]);
    assert_eq!(scan(&data, limits), (vec![], None));
    data.extend([0xdb, 0x00, 0x09, 0x27, 0xc0]);
    assert_eq!(scan(&data, limits), (vec![], Some(Fault::TooLong(1_000_000))));
}

#[test]
fn a_refused_scanner_stays_refused() {
    let mut scanner = FrameScanner::new(WIDE);
    let mut ends = Vec::new();
    assert_eq!(scanner.feed(&[0x01, 0xc1], &mut ends), Err(Fault::Reserved));
    assert_eq!(ends, vec![1]);
    assert_eq!(scanner.feed(&[0x01], &mut ends), Err(Fault::Reserved));
    assert_eq!(ends, vec![1]);
}

#[test]
fn partial_is_true_only_inside_a_frame() {
    let mut scanner = FrameScanner::new(WIDE);
    let mut ends = Vec::new();
    assert!(!scanner.partial());
    scanner.feed(&[0x92, 0x01], &mut ends).unwrap();
    assert!(scanner.partial());
    scanner.feed(&[0xa0], &mut ends).unwrap();
    assert!(!scanner.partial());
    assert_eq!(ends, vec![1]);
    scanner.feed(&[], &mut ends).unwrap();
    assert!(!scanner.partial());
}

#[test]
fn the_deepest_allowed_nesting_is_read() {
    let limits = Limits { depth_max: usize::MAX, ..WIDE };
    let data = [vec![0x91; DEPTH_LIMIT - 1], vec![0x90]].concat();
    assert_eq!(scan(&data, limits), (vec![DEPTH_LIMIT], None));
    assert_eq!(scan(&[0x91; DEPTH_LIMIT + 1], limits).1, Some(Fault::TooDeep(DEPTH_LIMIT)));
}
