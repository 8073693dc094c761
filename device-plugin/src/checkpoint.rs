//! The ledger's checkpoint: what a new agent needs in order to go on where an old one stopped.
//!
//! Owns the format of `ledger.json` and how it is replaced, so that whenever the agent is killed, the file is the old
//! one or the new one. Never decides what is restored.
//!
//! | version | written by | has |
//! |---|---|---|
//! | 1 | 0.1.0 before the kubelet's front end | bindings |
//! | 2 | from then on | bindings, the GPUs, and in which run of the machine it was written |
//!
//! A binding of a resource claim says so in its owner; others are written as they were before there were such.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use gpu_share::binding::Binding;
use gpu_share::ledger::Gpu;
use serde::{Deserialize, Serialize};

/// Version of the format that is written.
pub const VERSION: u32 = 2;
/// The version before, which is read too.
const FIRST_VERSION: u32 = 1;

/// Where Linux says which run of the machine this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

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
    #[error("checkpoint version is {0}, allowed are {FIRST_VERSION} and {VERSION}")]
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

/// What a checkpoint holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// The run of the machine in which it was written, as Linux names it; none if that is not known.
    pub boot: Option<String>,
    /// The GPUs that there were.
    pub gpus: Vec<Gpu>,
    /// What was bound.
    pub bindings: Vec<Binding>,
}

impl Saved {
    /// Whether the machine was started again since: then no process of a container lives, and no GPU is missing only for now.
    pub fn is_of_another_boot(&self, boot: Option<&str>) -> bool {
        self.boot.as_deref().zip(boot).is_some_and(|(saved, now)| saved != now)
    }
}

/// This run of the machine, if Linux says it.
pub fn boot() -> Option<String> {
    fs::read_to_string(BOOT_ID).map(|id| id.trim().to_string()).ok().filter(|id| !id.is_empty())
}

/// What every version has.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Deserialize)]
struct Checkpoint {
    #[serde(rename = "version")]
    _version: u32,
    checksum: String,
    #[serde(flatten)]
    saved: Saved,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct First {
    #[serde(rename = "version")]
    _version: u32,
    checksum: String,
    bindings: Vec<Binding>,
}

/// A checkpoint as text, on one line: a bind waits until all of it is written.
pub fn encode(saved: &Saved) -> Result<String, CheckpointError> {
    let content = serde_json::to_string(saved)?;
    let checksum = hash(content.as_bytes());
    // The object is written once, and version and checksum put before its first field.
    Ok(format!("{{\"version\":{VERSION},\"checksum\":\"{checksum}\",{}", &content[1..]))
}

/// What the text of a checkpoint holds.
pub fn decode(text: &str) -> Result<Saved, CheckpointError> {
    let (found, expected, saved) = match serde_json::from_str::<Version>(text)?.version {
        FIRST_VERSION => {
            let First { checksum: found, bindings, .. } = serde_json::from_str(text)?;
            (found, checksum(&bindings)?, Saved { bindings, ..Saved::default() })
        }
        VERSION => {
            let Checkpoint { checksum: found, saved, .. } = serde_json::from_str(text)?;
            (found, checksum(&saved)?, saved)
        }
        other => return Err(CheckpointError::Version(other)),
    };
    if found == expected { Ok(saved) } else { Err(CheckpointError::Checksum { found, expected }) }
}

/// What was found in the state folder.
#[derive(Debug)]
pub enum Found {
    /// No checkpoint.
    Nothing,
    /// One that can be used.
    Sound(Saved),
    /// One that can't, and where it is now: nothing ever overwrites it.
    Damaged(PathBuf),
}

/// The checkpoint at `path`. One that can't be used is set aside for whoever wants to know what was in it.
pub fn read_or_set_aside(path: &Path) -> io::Result<Found> {
    let result = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        result => result.map_err(CheckpointError::from).and_then(|text| decode(&text)),
    };
    match result {
        Ok(saved) => Ok(Found::Sound(saved)),
        Err(error) => {
            let aside = unused(path);
            fs::rename(path, &aside)?;
            tracing::error!(%error, aside = %aside.display(), "Checkpoint can't be used and was set aside.");
            Ok(Found::Damaged(aside))
        }
    }
}

/// `ledger.json.bad`, or the first of `ledger.json.bad.1`, `….2` and so on that is not there yet.
fn unused(path: &Path) -> PathBuf {
    let first = path.with_extension("json.bad");
    let others = (1_u32..).map(|number| path.with_extension(format!("json.bad.{number}")));
    std::iter::once(first.clone()).chain(others).find(|path| !path.exists()).unwrap_or(first)
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
    /// Starts the thread that writes to `path`, each time beside the same `gpus`.
    pub fn start(path: PathBuf, boot: Option<String>, gpus: Vec<Gpu>) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel();
        let saved = Saved { boot, gpus, bindings: Vec::new() };
        let write = move || write_all(&path, &queue, saved);
        let thread = thread::Builder::new().name("checkpoint".into()).spawn(write)?;
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

fn write_all(path: &Path, queue: &mpsc::Receiver<(Vec<Binding>, Option<Then>)>, mut saved: Saved) {
    while let Ok((bindings, then)) = queue.recv() {
        saved.bindings = bindings;
        let mut waiting: Vec<_> = then.into_iter().collect();
        for (newer, then) in queue.try_iter() {
            saved.bindings = newer;
            waiting.extend(then);
        }
        let result = encode(&saved)
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

/// Of the content as JSON.
fn checksum(content: &impl Serialize) -> Result<String, serde_json::Error> {
    Ok(hash(&serde_json::to_vec(content)?))
}

/// FNV-1a: finds damage, not forgery.
fn hash(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use gpu_share::binding::{ClaimPart, GpuId, Owner};
    use gpu_share::ledger::Sharing;
    use gpu_share::share::Share;
    use gpu_share::units::{Bytes, Quota};
    use proptest::prelude::*;

    use super::*;

    fn saved(bindings: u32) -> Saved {
        let gpu = GpuId("GPU-1".into());
        let binding = |index: u32| Binding {
            id: format!("b-{index}").try_into().unwrap(),
            owner: Owner {
                namespace: "fn".into(),
                function: format!("f{index}"),
                instance: "0".into(),
                ..Owner::default()
            },
            gpu: gpu.clone(),
            share: Share::whole_gpu(Bytes::gib(1)),
            grant: Quota::WHOLE,
            row: index,
        };
        let card = Gpu {
            id: gpu.clone(),
            index: 0,
            name: "test".into(),
            memory: Bytes::gib(16),
            sharing: Sharing::Mps,
        };
        Saved { boot: Some("boot".into()), gpus: vec![card], bindings: (0..bindings).map(binding).collect() }
    }

    fn sound(path: &Path) -> Saved {
        match read_or_set_aside(path).unwrap() {
            Found::Sound(saved) => saved,
            found => panic!("{found:?}"),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(decode(&encode(&saved(3)).unwrap()).unwrap(), saved(3));
    }

    #[test]
    fn the_version_before_is_read_and_one_that_nobody_knows_is_refused() {
        // As version 1 wrote it.
        let first = r#"{
  "version": 1,
  "checksum": "8f0d0a2e1be7e1ea",
  "bindings": []
}"#;
        let Err(CheckpointError::Checksum { expected, .. }) = decode(first) else { panic!("no checksum") };
        let first = first.replace("8f0d0a2e1be7e1ea", &expected);
        assert_eq!(decode(&first).unwrap(), Saved::default());
        let text = encode(&saved(3)).unwrap().replace("\"version\":2", "\"version\":3");
        assert_eq!(decode(&text).unwrap_err().to_string(), "checkpoint version is 3, allowed are 1 and 2");
    }

    #[test]
    fn bindings_of_no_claim_are_written_as_by_an_agent_that_knows_of_none() {
        assert!(!encode(&saved(3)).unwrap().contains("claim"));
        let mut claimed = saved(1);
        claimed.bindings[0].owner.claim = Some(Box::new(ClaimPart {
            uid: "u-1".into(),
            name: "claim".into(),
            request: "gpu".into(),
            share: Some("s-1".into()),
        }));
        assert_eq!(decode(&encode(&claimed).unwrap()).unwrap(), claimed);
    }

    #[test]
    fn a_checkpoint_is_of_another_boot_only_if_both_are_known_and_differ() {
        let known = saved(0);
        assert!(known.is_of_another_boot(Some("other")));
        assert!(!known.is_of_another_boot(Some("boot")) && !known.is_of_another_boot(None));
        assert!(!Saved { boot: None, ..known }.is_of_another_boot(Some("other")));
        assert!(boot().is_some());
    }

    /// A disk that lost the end of the file, or some byte of it: no checkpoint is believed that is not the one that was
    /// written, none is lost, and none that was set aside is overwritten.
    #[test]
    fn whatever_byte_is_cut_off_or_damaged_the_file_is_kept_and_never_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.json");
        let whole = encode(&saved(2)).unwrap().into_bytes();
        let mut aside = 0;
        let mut try_out = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            match read_or_set_aside(&path).unwrap() {
                Found::Sound(read) => assert_eq!(read, saved(2)),
                Found::Damaged(kept) => {
                    aside += 1;
                    assert_eq!(fs::read(&kept).unwrap(), bytes);
                    assert!(!path.exists());
                    fs::remove_file(kept).unwrap();
                }
                Found::Nothing => panic!("a file is there"),
            }
        };
        for cut in 0..whole.len() {
            try_out(&whole[..cut]);
        }
        for at in 0..whole.len() {
            for flip in [0x01, 0x80] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                try_out(&bytes);
            }
        }
        assert!(aside > 2 * whole.len(), "{aside} of {} were found out", 3 * whole.len());
    }

    #[test]
    fn what_was_set_aside_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.json");
        let kept = ["one", "two", "three"].map(|text| {
            fs::write(&path, text).unwrap();
            let Found::Damaged(kept) = read_or_set_aside(&path).unwrap() else {
                panic!("{text} is believed")
            };
            (kept, text)
        });
        for (kept, text) in kept {
            assert_eq!(fs::read_to_string(kept).unwrap(), text);
        }
    }

    #[test]
    fn an_absent_checkpoint_is_nothing_and_a_killed_writer_leaves_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.json");
        assert!(matches!(read_or_set_aside(&path).unwrap(), Found::Nothing));
        replace(&path, &encode(&saved(2)).unwrap()).unwrap();
        let next = encode(&saved(3)).unwrap();
        for cut in 0..next.len() {
            fs::write(folder.path().join("ledger.json.new"), &next[..cut]).unwrap();
            assert_eq!(sound(&path), saved(2));
        }
        replace(&path, &next).unwrap();
        assert_eq!(sound(&path), saved(3));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,200}") {
            prop_assert!(decode(&text).is_err());
        }
    }
}
