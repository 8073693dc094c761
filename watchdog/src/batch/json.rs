//! Where the values of a JSON text begin and end, without making anything of them: a tensor's numbers are moved from one
//! text to another, and must not change. Checks are `serde_json`'s; nothing here panics on what it did not check.

use std::ops::Range;

use serde::de::IgnoredAny;

/// Whether `text` is JSON.
pub(crate) fn is_json(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// What is between the brackets of an array.
pub(crate) fn unbracketed(text: &str) -> Option<&str> {
    text.trim().strip_prefix('[')?.strip_suffix(']').map(str::trim)
}

/// The members of an object: names with their quotes, and values. `None` if it is not an object, or a name has escapes
/// and could be another's.
pub(crate) fn members(text: &str) -> Option<impl Iterator<Item = (&str, &str)>> {
    let text = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
    let member = |span: Range<usize>| {
        let member = text.get(span)?;
        let (name, value) = member.split_at_checked(end_of_value(member.as_bytes(), 0))?;
        let value = value.trim_start().strip_prefix(':')?.trim_start();
        (!name.contains('\\')).then_some((name, value))
    };
    let members: Option<Vec<_>> = elements(text).map(member).collect();
    members.map(Vec::into_iter)
}

/// Where the values of a list are, without the space around them.
pub(crate) fn elements(text: &str) -> impl Iterator<Item = Range<usize>> {
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = skip(bytes, at, u8::is_ascii_whitespace);
        if start >= bytes.len() {
            return None;
        }
        // A member of an object is two values and a colon.
        let mut end = end_of_value(bytes, start);
        let colon = skip(bytes, end, u8::is_ascii_whitespace);
        if bytes.get(colon) == Some(&b':') {
            let value = skip(bytes, colon + 1, u8::is_ascii_whitespace);
            end = end_of_value(bytes, value);
        }
        let next = skip(bytes, end, |byte| *byte != b',');
        at = next.saturating_add(1);
        Some(start..end)
    })
}

fn skip(bytes: &[u8], from: usize, wanted: impl Fn(&u8) -> bool) -> usize {
    let rest = bytes.get(from..).unwrap_or_default();
    from + rest.iter().position(|byte| !wanted(byte)).unwrap_or(rest.len())
}

/// The end of the value that begins at `start`.
fn end_of_value(bytes: &[u8], start: usize) -> usize {
    match bytes.get(start) {
        Some(b'"') => end_of_string(bytes, start),
        Some(b'[' | b'{') => end_of_brackets(bytes, start),
        _ => skip(bytes, start, |byte| {
            !matches!(byte, b',' | b':' | b']' | b'}') && !byte.is_ascii_whitespace()
        }),
    }
}

fn end_of_string(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(byte) = bytes.get(at) {
        at += match byte {
            b'"' => return at + 1,
            b'\\' => 2,
            _ => 1,
        };
    }
    bytes.len()
}

fn end_of_brackets(bytes: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0_usize);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => {
                at = end_of_string(bytes, at);
                continue;
            }
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return at;
        }
    }
    bytes.len()
}
