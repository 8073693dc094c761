//! A process of a container as the node agent sees it, played by the test: it says on the socket whatever it wants.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gpu_share::binding::BindingId;
use gpu_share::page::handover;
use gpu_share::protocol::{FromContainer, ToContainer};
use gpu_share::units::{Bytes, Nanos};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where the slots begin in a page, and how far they are apart.
const SLOTS: u64 = 256;
const SLOT: u64 = 64;

/// A connection to the containers' socket.
#[derive(Debug)]
pub struct Peer {
    stream: UnixStream,
    heard: Vec<u8>,
    page: Option<File>,
    slot: u64,
}

impl Peer {
    /// Connects and says nothing yet.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).context("the containers' socket")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, heard: Vec::new(), page: None, slot: 0 })
    }

    /// Connects and joins a binding.
    pub fn attach(socket: &Path, binding: &BindingId, memory: Bytes) -> Result<Self> {
        let mut peer = Self::connect(socket)?;
        peer.say(&FromContainer::Attach { binding: binding.clone(), pid: 1, memory })?;
        match peer.hear()? {
            ToContainer::Attached { slot, .. } => peer.slot = slot as u64,
            other => bail!("{other:?}"),
        }
        ensure!(peer.page.is_some(), "no page came with the answer");
        Ok(peer)
    }

    /// Says a line of the protocol.
    pub fn say(&mut self, line: &FromContainer) -> Result<()> {
        Ok(self.say_bytes((serde_json::to_string(line)? + "\n").as_bytes())?)
    }

    /// Says anything.
    pub fn say_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next answer; an error once the connection has ended.
    pub fn hear(&mut self) -> Result<ToContainer> {
        loop {
            if let Some(end) = self.heard.iter().position(|&byte| byte == b'\n') {
                let line: Vec<_> = self.heard.drain(..=end).collect();
                return serde_json::from_slice(&line)
                    .with_context(|| String::from_utf8_lossy(&line).into_owned());
            }
            let mut bytes = [0; 4096];
            let (count, page) = handover::receive(&self.stream, &mut bytes)?;
            ensure!(count > 0, "the agent ended the connection");
            self.page = page.map(File::from).or_else(|| self.page.take());
            self.heard.extend_from_slice(&bytes[..count]);
        }
    }

    /// Says a line and hears the answer.
    pub fn ask(&mut self, line: &FromContainer) -> Result<ToContainer> {
        self.say(line)?;
        self.hear()
    }

    /// The page that came when it attached.
    pub fn page(&self) -> &File {
        self.page.as_ref().expect("it is attached")
    }

    /// The word that shows whether it holds the right to run.
    pub fn right(&self) -> u32 {
        let mut word = [0; 4];
        self.page().read_exact_at(&mut word, SLOTS + SLOT * self.slot).expect("a page can be read");
        u32::from_le_bytes(word)
    }

    /// Waits until the right is held or is not, at most `patience`; the word then.
    pub fn await_right(&self, held: bool, patience: Duration) -> Option<u32> {
        let start = Instant::now();
        loop {
            let right = self.right();
            if (right & 1 == 1) == held {
                return Some(right);
            }
            if start.elapsed() > patience {
                return None;
            }
            std::thread::park_timeout(Duration::from_micros(20));
        }
    }

    /// Gives a right back.
    pub fn give_back(&mut self, right: u32, used: Nanos) -> Result<()> {
        let line = format!(
            "{{\"op\":\"yield\",\"right\":{right},\"used\":{},\"launches\":1,\"throttled\":0}}\n",
            used.0
        );
        Ok(self.say_bytes(line.as_bytes())?)
    }
}
