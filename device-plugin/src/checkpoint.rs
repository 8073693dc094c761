//! The ledger's checkpoint: what a new agent needs in order to go on where an old one stopped.
//!
//! Owns the format of `ledger.json` and how it is replaced, so that whenever the agent is killed, the file is the old
//! one or the new one. Never decides what is restored.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use gpu_share::binding::Binding;
use serde::{Deserialize, Serialize};

/// Version of the format. Another one is refused.
pub const VERSION: u32 = 1;

/// Why a checkpoint is not used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It can't be read.
    #[error("checkpoint can't be read: {0}")]
    Io(#[from] io::Error),
    /// It is no JSON of the expected form.
    #[error("checkpoint is not of the expected form: {0}")]
    Form(#[from] serde_json::Error),
    /// It is of another version.
    #[error("checkpoint version is {0}, allowed is {VERSION}")]
    Version(u32),
    /// It was damaged.
    #[error("checkpoint checksum is {found}, allowed is {expected}")]
    Checksum {
        /// In the file.
        found: String,
        /// Of the file.
        expected: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Checkpoint {
    version: u32,
    checksum: String,
    bindings: Vec<Binding>,
}

/// The checkpoint of `bindings` as text.
pub fn encode(bindings: Vec<Binding>) -> Result<String, CheckpointError> {
    let checksum = checksum(&bindings)?;
    Ok(serde_json::to_string_pretty(&Checkpoint { version: VERSION, checksum, bindings })?)
}

/// The bindings in a checkpoint.
pub fn decode(text: &str) -> Result<Vec<Binding>, CheckpointError> {
    let Checkpoint { version, checksum: found, bindings } = serde_json::from_str(text)?;
    if version != VERSION {
        return Err(CheckpointError::Version(version));
    }
    let expected = checksum(&bindings)?;
    if found == expected { Ok(bindings) } else { Err(CheckpointError::Checksum { found, expected }) }
}

/// The bindings in the checkpoint at `path`; none if there is no file.
///
/// A file that can't be used is set aside as `ledger.json.bad`, for whoever wants to know what was in it.
pub fn read_or_set_aside(path: &Path) -> io::Result<Vec<Binding>> {
    let result = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.map_err(CheckpointError::from).and_then(|text| decode(&text)),
    };
    match result {
        Ok(bindings) => Ok(bindings),
        Err(error) => {
            let aside = path.with_extension("json.bad");
            tracing::warn!(%error, aside = %aside.display(), "checkpoint set aside, starting with an empty ledger");
            fs::rename(path, aside)?;
            Ok(Vec::new())
        }
    }
}

/// Replaces the file at `path` by `text`, durably.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    let unfinished = path.with_extension("json.new");
    let mut file = File::create(&unfinished)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    // The rename lasts once the folder is on the disk too.
    File::open(path.parent().unwrap_or_else(|| Path::new(".")))?.sync_all()
}

/// What is done once a checkpoint is on the disk, or could not be.
pub type Then = Box<dyn FnOnce(Result<(), String>) + Send>;

/// Writes checkpoints on a thread of its own: the arbiter does not wait for a disk.
#[derive(Debug)]
pub struct Writer {
    jobs: Option<mpsc::Sender<(Vec<Binding>, Option<Then>)>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread that writes to `path`.
    pub fn start(path: PathBuf) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel();
        let thread =
            thread::Builder::new().name("checkpoint".into()).spawn(move || write_all(&path, &queue))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Writes `bindings`, then does `then`. Of several that wait only the last is written.
    pub fn write(&self, bindings: Vec<Binding>, then: Option<Then>) {
        if let Some(jobs) = &self.jobs {
            // The thread ends only after this sender is dropped.
            let _ = jobs.send((bindings, then));
        }
    }
}

impl Drop for Writer {
    /// Waits until everything is written.
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn write_all(path: &Path, queue: &mpsc::Receiver<(Vec<Binding>, Option<Then>)>) {
    while let Ok((mut bindings, then)) = queue.recv() {
        let mut waiting: Vec<_> = then.into_iter().collect();
        for (newer, then) in queue.try_iter() {
            bindings = newer;
            waiting.extend(then);
        }
        let result = encode(bindings)
            .and_then(|text| Ok(replace(path, &text)?))
            .map_err(|error| format!("{} can't be written: {error}", path.display()));
        if let Err(error) = &result {
            tracing::error!(error, "checkpoint lost");
        }
        for then in waiting {
            then(result.clone());
        }
    }
}

/// FNV-1a over the bindings as JSON: finds damage, not forgery.
fn checksum(bindings: &[Binding]) -> Result<String, serde_json::Error> {
    let bytes = serde_json::to_vec(bindings)?;
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    Ok(format!("{hash:016x}"))
}

#[cfg(test)]
mod tests {
    use gpu_share::binding::{GpuId, Owner};
    use gpu_share::share::Share;
    use gpu_share::units::{Bytes, Quota};
    use proptest::prelude::*;

    use super::*;

    fn bindings() -> Vec<Binding> {
        let binding = |index: u32| Binding {
            id: format!("b-{index}").try_into().unwrap(),
            owner: Owner { namespace: "fn".into(), function: format!("f{index}"), instance: "0".into() },
            gpu: GpuId("GPU-1".into()),
            share: Share::whole_gpu(Bytes::gib(1)),
            grant: Quota::WHOLE,
            row: index,
        };
        (0..3).map(binding).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(decode(&encode(bindings()).unwrap()).unwrap(), bindings());
    }

    #[test]
    fn another_version_is_refused() {
        let text = encode(bindings()).unwrap().replace("\"version\": 1", "\"version\": 2");
        assert_eq!(decode(&text).unwrap_err().to_string(), "checkpoint version is 2, allowed is 1");
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_an_absent_one_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.json");
        assert!(read_or_set_aside(&path).unwrap().is_empty());
        fs::write(&path, encode(bindings()).unwrap().replace("f1", "f7")).unwrap();
        assert!(read_or_set_aside(&path).unwrap().is_empty());
        assert!(folder.path().join("ledger.json.bad").exists());
        assert!(!path.exists());
    }

    #[test]
    fn a_killed_writer_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.json");
        replace(&path, &encode(bindings()).unwrap()).unwrap();
        fs::write(folder.path().join("ledger.json.new"), "{\"vers").unwrap();
        assert_eq!(read_or_set_aside(&path).unwrap(), bindings());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,200}", cut in 0usize..400) {
            prop_assert!(decode(&text).is_err());
            let whole = encode(bindings()).unwrap();
            prop_assert!(decode(&whole[..cut.min(whole.len() - 1)]).is_err());
        }
    }
}
