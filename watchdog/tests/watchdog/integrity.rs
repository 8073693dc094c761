//! Every byte that goes in comes out: bodies of all sizes, with and without a length, both ways at once.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Body;

use crate::fixture::{in_front_of, is_full};
use crate::function::Function;

/// Longest time for one body.
const LONG: Duration = Duration::from_mins(10);

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> usize {
        usize::try_from(self.next() % end).unwrap()
    }

    /// Most bodies are small, and some are up to `largest` bytes.
    fn size(&mut self, largest: u64) -> usize {
        match self.below(20) {
            0 => 0,
            1..=14 => self.below(20_000),
            15..=18 => self.below(300_000),
            _ => self.below(largest),
        }
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }

    /// `bytes` in pieces of all sizes.
    fn pieces(&mut self, mut bytes: Bytes) -> Vec<Bytes> {
        let mut pieces = Vec::new();
        while !bytes.is_empty() {
            pieces.push(bytes.split_to(bytes.len().min(1 + self.below(100_000))));
        }
        pieces
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_is_lost() {
    let (bodies, largest) = if is_full() { (10_000, 50_000_000) } else { (400, 5_000_000) };
    let function = Function::start().await;
    // Large bodies on a busy machine take longer than any limit should be.
    let builder = ["read_timeout", "write_timeout", "exec_timeout"]
        .iter()
        .fold(in_front_of(&function.url), |builder, limit| builder.env(limit, "10m"));
    let watchdog = builder.start().await;
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..8 {
        let requests: Vec<_> =
            (0..bodies / 8).map(|_| watchdog.request("POST", "/back").timeout(LONG)).collect();
        clients.spawn(async move {
            let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15 + client);
            for (number, request) in requests.into_iter().enumerate() {
                let size = numbers.size(largest);
                let sent = Bytes::from(numbers.bytes(size));
                let body = if numbers.below(2) == 0 {
                    Body::from(sent.clone())
                } else {
                    let pieces = numbers.pieces(sent.clone()).into_iter().map(Ok::<_, Infallible>);
                    Body::wrap_stream(futures_util::stream::iter(pieces))
                };
                let answer = request.body(body).send().await.unwrap();
                assert_eq!(answer.status(), 200);
                let got = answer.bytes().await.unwrap();
                assert!(got == sent, "client {client}, body {number}: {} of {size} bytes", got.len());
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    watchdog.until_metric("http_requests_in_flight 0").await;
}
