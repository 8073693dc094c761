//! A function's answer as it comes over a connection: in whatever pieces it comes, it is read the same, and what is read
//! of it is never more than has come.
#![no_main]

use bytes::BytesMut;
use http::{HeaderMap, Method, StatusCode};
use libfuzzer_sys::fuzz_target;
use watchdog::parsers::{BadAnswer, Decoded, read_head};

/// What was understood, and what is left for the next answer of the connection.
#[derive(Debug, Default, PartialEq)]
struct Read {
    status: StatusCode,
    headers: HeaderMap,
    is_last: bool,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
    rest: Vec<u8>,
}

fuzz_target!(|bytes: &[u8]| {
    // The first byte says what was asked, and how large the pieces are.
    let Some((first, bytes)) = bytes.split_first() else { return };
    let method = if first % 4 == 0 { Method::HEAD } else { Method::GET };
    let whole = read(bytes, bytes.len().max(1), &method);
    let pieces = read(bytes, 1 + usize::from(first / 4), &method);
    match (whole, pieces) {
        (Ok(whole), Ok(pieces)) => assert_eq!(whole, pieces),
        (whole, pieces) => assert_eq!(whole.map_err(drop), pieces.map_err(drop)),
    }
});

fn read(bytes: &[u8], size: usize, method: &Method) -> Result<Read, BadAnswer> {
    let (mut received, mut scanned) = (BytesMut::new(), 0);
    let (mut read, mut decoder) = (Read::default(), None);
    for piece in bytes.chunks(size) {
        received.extend_from_slice(piece);
        if decoder.is_none()
            && let Some(head) = read_head(&mut received, &mut scanned, method)?
        {
            let (parts, ()) = head.response.into_parts();
            let both = parts.headers.contains_key("content-length")
                && parts.headers.contains_key("transfer-encoding");
            assert!(!both || head.body.is_ended(), "two lengths: {:?}", parts.headers);
            (read.status, read.headers, read.is_last) = (parts.status, parts.headers, head.is_last);
            decoder = Some(head.body);
        }
        while let Some(decoder) = &mut decoder {
            match decoder.decode(&mut received)? {
                Decoded::Bytes(bytes) => read.body.extend_from_slice(&bytes),
                Decoded::Trailers(trailers) => read.trailers = Some(trailers),
                Decoded::End | Decoded::Wanting => break,
            }
        }
    }
    decoder.as_mut().ok_or(BadAnswer::Cut)?.end()?;
    assert!(read.body.len() + received.len() <= bytes.len());
    read.rest = received.to_vec();
    Ok(read)
}
