//! Bodies that look random. Every byte follows from a seed, so that no body is held in memory, and what must come back
//! is known by its hash.

use std::io::{self, Read};
use std::ops::Range;

use ring::digest::{Context, Digest, SHA256};

/// What stands in text, which JSON keeps as it is.
const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Numbers that look random and are the same in every run (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Numbers(u64);

impl Numbers {
    /// Those of `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0)
    }

    /// The next one, below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// A body.
#[derive(Clone, Debug)]
pub(crate) struct Body {
    seed: u64,
    /// Bytes between `before` and `after`.
    length: u64,
    is_text: bool,
    before: &'static [u8],
    after: &'static [u8],
}

impl Body {
    /// Any bytes.
    pub(crate) fn bytes(seed: u64, length: u64) -> Self {
        Self { seed, length, is_text: false, before: b"", after: b"" }
    }

    /// Letters and digits between what makes them JSON.
    pub(crate) fn text(seed: u64, length: u64, before: &'static str, after: &'static str) -> Self {
        Self { seed, length, is_text: true, before: before.as_bytes(), after: after.as_bytes() }
    }

    /// Its length in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.before.len() as u64 + self.length + self.after.len() as u64
    }

    /// All of it.
    pub(crate) fn read(&self) -> Reader<'_> {
        self.read_part(0..self.length())
    }

    /// A part of it.
    pub(crate) fn read_part(&self, range: Range<u64>) -> Reader<'_> {
        Reader { body: self, range }
    }

    /// Bytes from `at` on of what is between `before` and `after`.
    fn fill(&self, at: u64, block: &mut [u8]) {
        // Less than 8.
        #[allow(clippy::cast_possible_truncation)]
        let skip = (at % 8) as usize;
        let mut number = at / 8;
        let (begun, whole) = block.split_at_mut(if skip == 0 { 0 } else { block.len().min(8 - skip) });
        if !begun.is_empty() {
            begun.copy_from_slice(&self.word(number)[skip..skip + begun.len()]);
            number += 1;
        }
        for word in whole.chunks_mut(8) {
            word.copy_from_slice(&self.word(number)[..word.len()]);
            number += 1;
        }
    }

    fn word(&self, number: u64) -> [u8; 8] {
        let word = mixed(self.seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15))).to_le_bytes();
        if self.is_text { word.map(|byte| LETTERS[usize::from(byte % 64)]) } else { word }
    }
}

/// Reads a body.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    body: &'a Body,
    range: Range<u64>,
}

impl Reader<'_> {
    /// Bytes that are left.
    pub(crate) fn left(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// The hash of what is left.
    pub(crate) fn digest(mut self) -> Digest {
        let (mut context, mut block) = (Context::new(&SHA256), vec![0; 64 << 10]);
        while let Ok(count) = self.read(&mut block)
            && count > 0
        {
            context.update(&block[..count]);
        }
        context.finish()
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
        let body = self.body;
        let (start, at) = (body.before.len() as u64, self.range.start);
        let end = start + body.length;
        let most = usize::try_from(self.left()).unwrap_or(usize::MAX).min(block.len());
        let count = if (start..end).contains(&at) {
            let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(most);
            body.fill(at - start, &mut block[..most]);
            most
        } else {
            let (bytes, at) = if at < start { (body.before, at) } else { (body.after, at - end) };
            let bytes = bytes.get(usize::try_from(at).unwrap_or(usize::MAX)..).unwrap_or_default();
            let most = most.min(bytes.len());
            block[..most].copy_from_slice(&bytes[..most]);
            most
        };
        self.range.start += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(reader: &mut Reader<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_part_is_a_part_of_the_whole() {
        let body = Body::text(7, 1000, "{\"data\":\"", "\"}");
        let all = whole(&mut body.read());
        assert_eq!(all.len() as u64, body.length());
        assert!(all.starts_with(b"{\"data\":\"") && all.ends_with(b"\"}"));
        for (from, to) in [(0, 0), (0, 5), (3, 20), (9, 1009), (10, 11), (13, 40), (990, 1011)] {
            let part = whole(&mut body.read_part(from as u64..to as u64));
            assert_eq!(part, all[from..to], "{from}..{to}");
        }
    }

    #[test]
    fn bodies_of_different_seeds_and_lengths_differ_in_their_hash() {
        let hash = |seed, length| Body::bytes(seed, length).read().digest().as_ref().to_vec();
        assert_eq!(hash(1, 100_000), hash(1, 100_000));
        assert_ne!(hash(1, 100_000), hash(2, 100_000));
        assert_ne!(hash(1, 100_000), hash(1, 99_999));
    }
}
