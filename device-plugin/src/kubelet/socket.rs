//! Sockets in the kubelet's folders: what is there now, and when that changes.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

/// Time between looks at the sockets: events of a folder that comes from the node by a mount can get lost.
const LOOK: Duration = Duration::from_secs(1);

/// A socket that is removed at the end, unless another one is in its place then.
pub(crate) struct Removed {
    pub(crate) path: PathBuf,
    identity: Option<Identity>,
}

impl Removed {
    /// The socket that is at `path` now.
    pub(crate) fn at(path: PathBuf) -> Self {
        let identity = identity(&path).ok();
        Self { path, identity }
    }

    /// Whether it is there still.
    pub(crate) fn is_there(&self) -> bool {
        self.identity.is_some() && identity(&self.path).ok() == self.identity
    }
}

impl Drop for Removed {
    fn drop(&mut self) {
        if self.is_there() {
            // The kubelet may be faster.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Device and number of a file, and when it was changed.
type Identity = (u64, u64, i64, i64);

/// Tells a file from another one in its place. The number of a file is used again, so its time counts too.
pub(crate) fn identity(path: &Path) -> io::Result<Identity> {
    let metadata = std::fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))
}

/// Waits for changes in the kubelet's folder.
pub(crate) struct Watch {
    pub(crate) folder: PathBuf,
    /// Without it, only looks tell.
    events: Option<AsyncFd<std::os::fd::OwnedFd>>,
}

impl Watch {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.into(), events: None }
    }

    /// Returns when a name in the folder came or went, and now and then.
    pub(crate) async fn something_happens(&mut self) {
        let events = self.ready();
        tokio::select! {
            () = events => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }

    async fn ready(&mut self) {
        if self.events.is_none() {
            // The folder may have come meanwhile. What is deprecated is unsound for types that change or close their
            // descriptor; an owned one does neither, and the replacement is an unsafe function.
            #[allow(deprecated)]
            let events = watch_names(&self.folder).and_then(AsyncFd::new);
            self.events = events.ok();
        }
        let Some(events) = &self.events else { return std::future::pending().await };
        let Ok(mut ready) = events.readable().await else { return std::future::pending().await };
        if drain(events.get_ref()) {
            ready.clear_ready();
        } else {
            // The folder itself is gone.
            drop(ready);
            self.events = None;
        }
    }
}

fn watch_names(folder: &Path) -> io::Result<std::os::fd::OwnedFd> {
    let events = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
    let names = inotify::WatchFlags::CREATE | inotify::WatchFlags::DELETE | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&events, folder.as_os_str() as &OsStr, names | inotify::WatchFlags::DELETE_SELF)?;
    Ok(events)
}

/// Reads all events; whether there may be more later.
fn drain(events: &std::os::fd::OwnedFd) -> bool {
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(events, &mut buffer);
    loop {
        match reader.next() {
            Ok(event) if event.events().contains(inotify::ReadFlags::IGNORED) => return false,
            Ok(_) => {}
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return true,
            Err(_) => return false,
        }
    }
}
