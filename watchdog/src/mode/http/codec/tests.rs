use proptest::prelude::*;

use super::*;

fn head(bytes: &[u8]) -> Result<Option<Head>, BadAnswer> {
    read_head(&mut BytesMut::from(bytes), &mut 0, &Method::GET)
}

fn refused(bytes: &str) -> BadAnswer {
    head(bytes.as_bytes()).map(|head| format!("{head:?}")).expect_err(bytes)
}

/// The body in `parts`, which come one after another, and what was received behind it.
fn decode(
    decoder: &mut Decoder,
    parts: &[&[u8]],
) -> Result<(Vec<u8>, Option<HeaderMap>, BytesMut), BadAnswer> {
    let (mut received, mut body, mut found) = (BytesMut::new(), Vec::new(), None);
    for part in parts {
        received.extend_from_slice(part);
        loop {
            match decoder.decode(&mut received)? {
                Decoded::Bytes(bytes) => body.extend_from_slice(&bytes),
                Decoded::Trailers(trailers) => found = Some(trailers),
                Decoded::End | Decoded::Wanting => break,
            }
        }
    }
    Ok((body, found, received))
}

#[test]
fn a_head_says_how_its_body_ends() {
    for (text, rest, is_last) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", Some(5), false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: x, Close\r\n\r\n", Some(0), true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\nContent-Length: 5\r\n\r\n", Some(5), false),
        ("HTTP/1.1 200\r\nTransfer-Encoding: Chunked\r\n\r\n", None, false),
        // RFC 9112, 6.1: an answer that says both ends its connection.
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", None, true),
        ("HTTP/1.1 200 OK\nServer: x\n\n", None, true),
        ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", Some(5), true),
        ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n", Some(5), false),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", Some(0), false),
        ("HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", Some(0), false),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 404 No\r\nContent-Length: 1\r\n\r\n",
            Some(1),
            false,
        ),
    ] {
        let head = head(text.as_bytes()).unwrap().unwrap();
        assert_eq!((head.body.rest(), head.is_last), (rest, is_last), "{text}");
        assert!(
            !(head.response.headers().contains_key("content-length")
                && head.response.headers().contains_key("transfer-encoding"))
                || rest == Some(0)
        );
    }
    let to_head =
        read_head(&mut BytesMut::from("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"), &mut 0, &Method::HEAD);
    assert!(to_head.unwrap().unwrap().body.is_ended());
}

#[test]
fn what_can_be_read_in_two_ways_is_refused() {
    for text in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\n",
    ] {
        assert!(matches!(refused(text), BadAnswer::Length), "{text}");
    }
    for text in [
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n",
    ] {
        assert!(matches!(refused(text), BadAnswer::Coding), "{text}");
    }
    for text in [
        "\r\n\r\n",
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n folded\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX\0: a\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "SSH-2.0-OpenSSH\r\n\r\n",
    ] {
        assert!(matches!(refused(text), BadAnswer::Syntax(_)), "{text}");
    }
    assert!(matches!(refused("HTTP/1.1 101 Switching Protocols\r\n\r\n"), BadAnswer::Switch));
    assert!(matches!(head(&vec![b'x'; MAX_HEAD]), Err(BadAnswer::TooLarge)));
}

#[test]
fn a_chunk_needs_its_size_and_its_end() {
    for text in [
        "\r\n",
        "x\r\n",
        "-1\r\n",
        "+1\r\na\r\n",
        "0x1\r\na\r\n",
        "1\na\r\n",
        "1;\r\r\na\r\n",
        "1 1\r\na\r\n",
        " 1\r\na\r\n",
        "10000000000000000\r\n",
        "1\r\nab\r\n",
        "1\r\na\n0\r\n\r\n",
        "0\r\nX : y\r\n\r\n",
    ] {
        let outcome = decode(&mut Decoder(State::Size), &[text.as_bytes()]);
        assert!(outcome.is_err(), "{text:?} {outcome:?}");
    }
    let long = format!("1;{}\r\n", "x".repeat(MAX_SIZE_LINE));
    assert!(decode(&mut Decoder(State::Size), &[long.as_bytes()]).is_err());
}

#[test]
fn what_the_connection_cuts_is_no_whole_body() {
    for (state, is_whole) in [
        (State::UntilEnd, true),
        (State::Ended, true),
        (State::Length(1), false),
        (State::Size, false),
        (State::Chunk(1), false),
        (State::ChunkEnd, false),
        (State::Trailers, false),
    ] {
        let mut decoder = Decoder(state);
        assert_eq!(decoder.end().is_ok(), is_whole, "{decoder:?}");
    }
}

#[test]
fn trailers_come_behind_the_last_chunk() {
    let text: &[u8] = b"3;a=b\r\nabc\r\n0\r\nX-Sum: 1\r\nX-Sum: 2\r\n\r\nHTTP";
    let (body, trailers, rest) = decode(&mut Decoder(State::Size), &[text]).unwrap();
    assert_eq!((body.as_slice(), &rest[..]), (&b"abc"[..], &b"HTTP"[..]));
    assert_eq!(trailers.unwrap().get_all("x-sum").iter().collect::<Vec<_>>(), ["1", "2"]);
}

#[test]
fn a_request_says_its_end_once_whatever_its_headers_say() {
    let headers = HeaderMap::from_iter([
        (header::CONTENT_LENGTH, HeaderValue::from_static("7")),
        (header::TRANSFER_ENCODING, HeaderValue::from_static("gzip")),
        (HeaderName::from_static("x-a-id"), HeaderValue::from_static("1")),
    ]);
    for (framing, end) in [
        (Framing::Bodiless, "\r\n"),
        (Framing::Chunked, "Transfer-Encoding: chunked\r\n\r\n"),
        (Framing::Length(12), "Content-Length: 12\r\n\r\n"),
    ] {
        let mut out = Vec::new();
        write_head(&mut out, &Method::POST, &"http://x/a?b".parse().unwrap(), &headers, framing);
        assert_eq!(String::from_utf8(out).unwrap(), format!("POST /a?b HTTP/1.1\r\nX-A-Id: 1\r\n{end}"));
    }
}

/// `bytes` in parts that end at `cuts`.
fn cut<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([bytes.len()]).collect();
    ends.sort_unstable();
    let starts = std::iter::once(0).chain(ends.clone());
    starts.zip(ends.clone()).map(|(start, end)| &bytes[start..end]).collect()
}

proptest! {
    #[test]
    fn a_chunked_body_is_the_same_however_it_is_cut(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8),
        cuts in prop::collection::vec(any::<usize>(), 0..20),
    ) {
        let mut text = Vec::new();
        for chunk in &chunks {
            text.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
            text.extend_from_slice(chunk);
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"0\r\n\r\n");
        let mut decoder = Decoder(State::Size);
        let (body, trailers, rest) = decode(&mut decoder, &cut(&text, &cuts)).unwrap();
        prop_assert!(decoder.is_ended() && rest.is_empty() && trailers.is_none());
        prop_assert_eq!(body, chunks.concat());
    }

    #[test]
    fn a_head_is_the_same_however_it_is_cut(cuts in prop::collection::vec(any::<usize>(), 0..20)) {
        let text = b"HTTP/1.1 103 Early\nA: b\n\nHTTP/1.1 200 Fine\r\nX-A: 1\r\nContent-Length: 3\r\n\r\nabc";
        let (mut received, mut scanned, mut found) = (BytesMut::new(), 0, None);
        for part in cut(text, &cuts) {
            received.extend_from_slice(part);
            if found.is_none() {
                found = read_head(&mut received, &mut scanned, &Method::GET).unwrap();
            }
        }
        let head = found.unwrap();
        prop_assert_eq!(&received[..], b"abc");
        prop_assert_eq!(&head.response.headers()["x-a"], "1");
        prop_assert_eq!(head.response.extensions().get::<ReasonPhrase>().unwrap().as_bytes(), b"Fine");
    }

    #[test]
    fn no_bytes_make_it_panic_and_no_body_is_longer_than_what_came(
        bytes in prop::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'0'), Just(b'5'), Just(b';'), any::<u8>()], 0..200),
        is_chunked in any::<bool>(),
    ) {
        let _ = head(&bytes);
        let with_start = [b"HTTP/1.1 200 OK\r\n", bytes.as_slice()].concat();
        let _ = head(&with_start);
        let mut decoder = Decoder(if is_chunked { State::Size } else { State::Length(50) });
        if let Ok((body, _, rest)) = decode(&mut decoder, &[&bytes]) {
            prop_assert!(body.len() + rest.len() <= bytes.len());
        }
    }
}
