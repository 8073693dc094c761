//! Lines of a connection: bytes cut at their ends and parsed, with bounds.
//!
//! It reads when asked to, and answers nothing.

use std::io::{self, Read};

use gpu_share::protocol::{FromContainer, MAX_LINE};

/// What was read of a connection and not used yet.
#[derive(Debug, Default)]
pub(crate) struct Lines(Vec<u8>);

impl Lines {
    /// Reads what is there, once and at most a line's length; how much. None is the end.
    pub(crate) fn fill(&mut self, mut stream: impl Read) -> io::Result<usize> {
        let mut bytes = [0; MAX_LINE];
        loop {
            match stream.read(&mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(count) => {
                    self.0.extend_from_slice(&bytes[..count]);
                    return Ok(count);
                }
            }
        }
    }

    /// The next whole line, or why it is none. After an error nothing more is to be expected.
    pub(crate) fn next(&mut self) -> Option<Result<FromContainer, String>> {
        let end = self.0.iter().position(|&byte| byte == b'\n');
        if end.unwrap_or(self.0.len()) > MAX_LINE {
            return Some(Err(format!("line is longer than {MAX_LINE} bytes")));
        }
        let line: Vec<_> = self.0.drain(..=end?).collect();
        let parsed = serde_json::from_slice(&line);
        Some(parsed.map_err(|error| format!("line is not of a known form: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_may_be_as_long_as_allowed_and_no_longer() {
        let mut line = br#"{"op":"want"}"#.to_vec();
        line.resize(MAX_LINE, b' ');
        for (spaces, is_read) in [(0, true), (1, false)] {
            let mut bytes = line.clone();
            bytes.resize(MAX_LINE + spaces, b' ');
            bytes.push(b'\n');
            let (mut lines, mut rest) = (Lines::default(), &bytes[..]);
            while lines.fill(&mut rest).unwrap() > 0 {}
            assert_eq!(lines.next().unwrap().is_ok(), is_read);
        }
        // One that does not end is refused before it has filled the memory.
        let mut lines = Lines::default();
        lines.fill(&[b' '; MAX_LINE][..]).unwrap();
        assert!(lines.next().is_none());
        lines.fill(&b" "[..]).unwrap();
        assert!(lines.next().unwrap().unwrap_err().contains("4096"));
    }

    proptest! {
        #[test]
        fn lines_are_the_same_however_they_come(pieces in prop::collection::vec(1..40_usize, 1..20)) {
            let text = b"{\"op\":\"want\"}\n{\"op\":\"free\",\"bytes\":7}\n{\"op\":\"want\"}\nwant\n";
            let (mut lines, mut rest, mut heard) = (Lines::default(), &text[..], Vec::new());
            for piece in pieces.into_iter().chain([text.len()]) {
                let (now, later) = rest.split_at(piece.min(rest.len()));
                lines.fill(now).unwrap();
                rest = later;
                heard.extend(std::iter::from_fn(|| lines.next()));
            }
            prop_assert_eq!(heard.len(), 4);
            prop_assert!(heard[3].is_err() && heard[..3].iter().all(Result::is_ok));
        }
    }
}
