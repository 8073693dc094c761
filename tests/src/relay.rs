//! A relay between one container and the node agent, which can be made to fail as sockets and agents do.

use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use gpu_share::page::handover;

/// What the relay does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Passes everything on.
    Pass,
    /// Accepts connections, reads nothing and answers nothing.
    Silent,
    /// Answers half a line and ends the connection.
    HalfLine,
    /// Answers what is no message, and goes on.
    Garbage,
}

/// The relay; it ends with the test's process.
#[derive(Debug)]
pub struct Relay {
    path: PathBuf,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    mode: Mutex<Mode>,
    /// Connections of the container.
    connections: Mutex<Vec<UnixStream>>,
    agent: PathBuf,
}

impl Relay {
    /// Listens at `path` for the container of the agent that listens at `agent`.
    pub fn start(path: &Path, agent: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let shared = Arc::new(Shared {
            mode: Mutex::new(Mode::Pass),
            connections: Mutex::default(),
            agent: agent.into(),
        });
        let own = Arc::clone(&shared);
        thread::spawn(move || {
            listener.incoming().map_while(Result::ok).for_each(|stream| own.accept(stream));
        });
        Self { path: path.into(), shared }
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// From now on it does as `mode` says, on the connections that there are and on new ones.
    pub fn set(&self, mode: Mode) {
        *self.shared.mode.lock().expect("no holder panics") = mode;
        let connections = self.shared.connections.lock().expect("no holder panics");
        connections.iter().for_each(|stream| answer(stream, mode));
    }
}

/// What is wrong with an answer, if anything is.
fn answer(mut stream: &UnixStream, mode: Mode) {
    // One that has ended meanwhile needs no answer.
    match mode {
        Mode::Pass | Mode::Silent => {}
        Mode::HalfLine => {
            let _ = stream.write_all(b"{\"answer\":\"reserved\",\"gran");
            let _ = stream.shutdown(Shutdown::Both);
        }
        Mode::Garbage => {
            let _ = stream.write_all(b"\xff\x00{\"answer\":\"attached\",\"slot\":-7}\n{}\nnull\n[[[[\n");
        }
    }
}

impl Shared {
    fn mode(&self) -> Mode {
        *self.mode.lock().expect("no holder panics")
    }

    fn accept(self: &Arc<Self>, container: UnixStream) {
        let clone = || container.try_clone().expect("a connection can be cloned");
        let mut connections = self.connections.lock().expect("no holder panics");
        connections.push(clone());
        drop(connections);
        let mode = self.mode();
        answer(&container, mode);
        if mode != Mode::Pass {
            return;
        }
        let Ok(agent) = UnixStream::connect(&self.agent) else {
            let _ = container.shutdown(Shutdown::Both);
            return;
        };
        let back = agent.try_clone().expect("a connection can be cloned");
        for (from, to) in [(clone(), agent), (back, container)] {
            let shared = Arc::clone(self);
            thread::spawn(move || shared.pump(&from, &to));
        }
    }

    /// Carries bytes and descriptors one way, until one of the two ends.
    fn pump(&self, from: &UnixStream, to: &UnixStream) {
        let mut bytes = [0; 4096];
        while let Ok((count @ 1.., descriptor)) = handover::receive(from, &mut bytes) {
            while self.mode() == Mode::Silent {
                thread::park_timeout(Duration::from_millis(5));
            }
            let mut out = to;
            let sent = match descriptor {
                Some(descriptor) => handover::send_with(to, &bytes[..count], descriptor.as_fd()),
                None => out.write_all(&bytes[..count]),
            };
            if sent.is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}
