//! Fat binaries: several forms of one module in a row, as compilers embed them. As with a real driver, PTX text counts
//! only if there is no machine code for the device. What is known of the layout comes from files that the compiler wrote.

use std::borrow::Cow;

use super::{In, Result};

/// The head of a fat binary.
pub(super) const MAGIC: u32 = 0xba55_ed50;
/// The wrapper that holds a pointer to one.
pub(super) const WRAPPER_MAGIC: u32 = 0x4662_43b1;

/// Kind of an entry: PTX text.
const PTX: u16 = 1;
/// Kind of an entry: machine code.
const CODE: u16 = 2;
/// Flag of an entry: compressed in LZ4's block format.
const LZ4: u64 = 0x2000;
/// Flag of an entry: compressed with zstd, which is not read.
const ZSTD: u64 = 0x8000;
/// The longest text that is taken.
const LONGEST: usize = 4 << 20;
/// The most entries that are looked at.
const MOST_ENTRIES: usize = 256;

/// The fat binary behind a wrapper.
pub(super) fn unwrap(wrapper: In<u8>) -> Result<In<u8>> {
    Ok(In::from_address(wrapper.cast::<usize>().at(1)?))
}

/// Reads a little-endian number of `N` bytes at `offset`.
fn bytes<const N: usize>(start: In<u8>, offset: usize) -> Result<[u8; N]> {
    let mut value = [0; N];
    for (at, byte) in value.iter_mut().enumerate() {
        *byte = start.at(offset + at)?;
    }
    Ok(value)
}

fn size(start: In<u8>, offset: usize) -> Result<usize> {
    Ok(usize::try_from(u64::from_le_bytes(bytes(start, offset)?)).unwrap_or(usize::MAX))
}

/// Whether `bytes` hold a fat binary to its end.
pub(super) fn is_whole(bytes: &[u8]) -> bool {
    let Some(head) = bytes.first_chunk::<16>() else { return false };
    let start = In::from_address(head.as_ptr().expose_provenance());
    let end = self::bytes(start, 6)
        .and_then(|head| Ok(usize::from(u16::from_le_bytes(head)).saturating_add(size(start, 8)?)));
    head.starts_with(&MAGIC.to_le_bytes()) && end.is_ok_and(|end| end <= bytes.len())
}

/// The PTX text in the fat binary at `start` for a device that can do `capability`; none if there is machine code for
/// it, or no text that can be read.
pub(super) fn ptx(start: In<u8>, capability: (u32, u32)) -> Result<Option<String>> {
    // Head: magic (4), version (2), bytes of the head (2), bytes of all entries (8).
    let head = usize::from(u16::from_le_bytes(bytes(start, 6)?));
    let end = head.saturating_add(size(start, 8)?);
    let (mut at, mut texts) = (head, Vec::new());
    for _ in 0..MOST_ENTRIES {
        // An entry: kind (2), version (2), bytes of its head (4), bytes of its data (8), bytes used if compressed (4),
        // from 28 on: what the device must be able to do (4), from 40 on: flags (8), from 56 on: bytes uncompressed (8).
        const SHORTEST: usize = 64;
        if end.saturating_sub(at) < SHORTEST {
            break;
        }
        let head = u32::from_le_bytes(bytes(start, at + 4)?) as usize;
        let length = size(start, at + 8)?;
        let next = at.saturating_add(head).saturating_add(length);
        if head < SHORTEST || next > end {
            break;
        }
        let needs = u32::from_le_bytes(bytes(start, at + 28)?);
        let (major, minor) = (needs / 10, needs % 10);
        match u16::from_le_bytes(bytes(start, at)?) {
            CODE if major == capability.0 && minor <= capability.1 => return Ok(None),
            PTX if (major, minor) <= capability => texts.push((at, head, length)),
            _ => {}
        }
        at = next;
    }
    // Read only now: it may be long, and is not needed beside machine code.
    for (at, head, length) in texts {
        if let Some(text) = text(start, at, head, length)? {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

/// The text of the entry at `at`.
fn text(start: In<u8>, at: usize, head: usize, length: usize) -> Result<Option<String>> {
    let used = u32::from_le_bytes(bytes(start, at + 16)?) as usize;
    let (flags, unpacked) = (u64::from_le_bytes(bytes(start, at + 40)?), size(start, at + 56)?);
    if flags & ZSTD != 0 || length.max(unpacked) > LONGEST {
        return Ok(None);
    }
    let packed = flags & LZ4 != 0;
    let length = if packed && used != 0 { used.min(length) } else { length };
    let data = (0..length).map(|offset| start.at(at + head + offset)).collect::<Result<Vec<u8>>>()?;
    let data =
        if packed { decompress(&data, unpacked).map(Cow::Owned) } else { Some(Cow::Borrowed(&data[..])) };
    Ok(data.and_then(|data| {
        let end = data.iter().position(|&byte| byte == 0).unwrap_or(data.len());
        String::from_utf8(data[..end].to_vec()).ok()
    }))
}

/// Decompresses LZ4's block format: tokens of literals and of repetitions of what was written before.
fn decompress(data: &[u8], size: usize) -> Option<Vec<u8>> {
    /// The shortest repetition; lengths begin there.
    const SHORTEST: usize = 4;
    let mut input = data.iter().copied();
    let mut out = Vec::with_capacity(size.min(LONGEST));
    while let Some(token) = input.next() {
        let literals = length(token >> 4, &mut input)?;
        if out.len() + literals > size {
            return None;
        }
        let before = out.len();
        out.extend(input.by_ref().take(literals));
        if out.len() - before != literals {
            return None;
        }
        let Some(low) = input.next() else { break };
        let distance = usize::from(u16::from_le_bytes([low, input.next()?]));
        let count = length(token & 15, &mut input)? + SHORTEST;
        let from = out.len().checked_sub(distance).filter(|_| distance > 0)?;
        if out.len() + count > size {
            return None;
        }
        // A repetition may overlap what it writes.
        for at in from..from + count {
            out.push(out[at]);
        }
    }
    (out.len() == size).then_some(out)
}

/// A length: in the token, and if that is full in the bytes behind it.
fn length(start: u8, input: &mut impl Iterator<Item = u8>) -> Option<usize> {
    let mut length = usize::from(start);
    if start == 15 {
        loop {
            let more = input.next()?;
            length += usize::from(more);
            if more != 255 {
                break;
            }
        }
    }
    Some(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(kind: u16, needs: u32, data: &[u8], flags: u64, unpacked: usize) -> Vec<u8> {
        let mut entry = vec![0; 64];
        entry[..2].copy_from_slice(&kind.to_le_bytes());
        entry[4..8].copy_from_slice(&64_u32.to_le_bytes());
        entry[8..16].copy_from_slice(&(data.len() as u64).to_le_bytes());
        entry[16..20].copy_from_slice(&u32::try_from(data.len()).unwrap().to_le_bytes());
        entry[28..32].copy_from_slice(&needs.to_le_bytes());
        entry[40..48].copy_from_slice(&flags.to_le_bytes());
        entry[56..64].copy_from_slice(&(unpacked as u64).to_le_bytes());
        entry.extend_from_slice(data);
        entry
    }

    fn read(entries: &[Vec<u8>]) -> Option<String> {
        let mut all = MAGIC.to_le_bytes().to_vec();
        all.extend([1, 0, 16, 0]);
        all.extend((entries.iter().map(Vec::len).sum::<usize>() as u64).to_le_bytes());
        all.extend(entries.iter().flatten());
        ptx(In::from_address(all.as_ptr().expose_provenance()), (7, 0)).unwrap()
    }

    #[test]
    fn text_is_found_behind_machine_code_of_other_devices() {
        let code = entry(CODE, 60, b"\x7fELF", 0, 0);
        assert_eq!(read(std::slice::from_ref(&code)), None);
        assert_eq!(read(&[code.clone(), entry(PTX, 70, b"text\0\0", 0, 0)]).as_deref(), Some("text"));
        assert_eq!(read(&[code.clone(), entry(PTX, 75, b"text", 0, 0)]), None, "for a newer device");
        assert_eq!(read(&[code, entry(PTX, 70, b"text", ZSTD, 4)]), None, "in a form that is not read");
    }

    #[test]
    fn machine_code_for_the_device_is_preferred_as_by_a_real_driver() {
        let (text, code) = (entry(PTX, 52, b"text", 0, 0), entry(CODE, 70, b"\x7fELF", 0, 0));
        assert_eq!(read(&[text.clone(), code]), None);
        assert_eq!(read(&[text]).as_deref(), Some("text"));
    }

    #[test]
    fn compressed_text_is_read() {
        // Four literals, then four bytes from a distance of four, then one literal.
        let packed = b"\x40abcd\x04\x00\x10!";
        assert_eq!(read(&[entry(PTX, 70, packed, LZ4, 9)]).as_deref(), Some("abcdabcd!"));
        assert_eq!(read(&[entry(PTX, 70, packed, LZ4, 8)]), None);
    }

    #[test]
    fn a_repetition_may_overlap_itself() {
        assert_eq!(decompress(b"\x1fa\x01\x00\x01\x00", 21), Some(vec![b'a'; 21]));
        assert_eq!(decompress(b"\x1fa\x02\x00\x01\x00", 21), None, "from before the start");
        assert_eq!(decompress(b"\x1fa\x00\x00\x01\x00", 21), None, "from where it writes");
    }

    proptest! {
        #[test]
        fn no_bytes_make_more_than_was_announced(data in proptest::collection::vec(any::<u8>(), 0..200), size in 0_usize..500) {
            if let Some(out) = decompress(&data, size) {
                prop_assert_eq!(out.len(), size);
            }
        }
    }
}
