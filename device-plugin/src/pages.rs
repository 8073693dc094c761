//! The bindings' pages in the state folder.
//!
//! Owns the pages' memory and their copies `bindings/<id>/page`. Never decides what is written to them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use gpu_share::binding::{Binding, BindingId};
use gpu_share::names::state;
use gpu_share::page::{Counters, Identity, Limits, PageWriter, SLOTS, Snapshot};
use gpu_share::units::Nanos;

/// The pages of a node.
#[derive(Debug)]
pub struct Pages {
    folder: PathBuf,
    window: Nanos,
    open: BTreeMap<BindingId, PageWriter>,
}

impl Pages {
    /// The pages in the state folder `state`; quotas are kept over `window`.
    pub fn new(state: &Path, window: Nanos) -> io::Result<Self> {
        let folder = state.join(state::BINDINGS);
        fs::create_dir_all(&folder)?;
        Ok(Self { folder, window, open: BTreeMap::new() })
    }

    /// Path of a binding's page.
    pub fn path(&self, id: &BindingId) -> PathBuf {
        self.folder.join(id.as_str()).join(state::PAGE)
    }

    /// Makes the page of a new binding.
    pub fn create(&mut self, binding: &Binding) -> io::Result<()> {
        let path = self.path(&binding.id);
        fs::create_dir_all(self.folder.join(binding.id.as_str()))?;
        let page = PageWriter::create(&path, &identity(binding), &self.limits(binding))?;
        self.open.insert(binding.id.clone(), page);
        Ok(())
    }

    /// Makes the page of a binding of an earlier agent, with what that had counted. Rights that were held are gone:
    /// nobody remembers them.
    pub fn reopen(&mut self, binding: &Binding) -> io::Result<Counters> {
        let copy = fs::read(self.path(&binding.id)).and_then(|bytes| {
            let snapshot = Snapshot::parse(&bytes).map_err(io::Error::other)?;
            let is_own = snapshot.identity == identity(binding);
            if is_own { Ok(snapshot.counters) } else { Err(io::ErrorKind::InvalidData.into()) }
        });
        let counters = copy.unwrap_or_else(|error| {
            tracing::warn!(binding = %binding.id, %error, "page is not usable, counting from zero");
            Counters::default()
        });
        self.create(binding)?;
        Ok(counters)
    }

    /// What the pages of earlier agents say, those that can be read.
    pub fn survivors(&self) -> Vec<Snapshot> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().filter_map(Result::ok);
        let pages = entries.filter_map(|entry| {
            let bytes = fs::read(entry.path().join(state::PAGE)).ok()?;
            let snapshot = Snapshot::parse(&bytes).ok()?;
            // A page is that of the folder it is in, or it was put there.
            (entry.file_name().to_str() == Some(snapshot.identity.binding.as_str())).then_some(snapshot)
        });
        pages.collect()
    }

    /// What a process of a binding needs to map its page.
    pub fn descriptor(&self, id: &BindingId) -> io::Result<OwnedFd> {
        let page = self.open.get(id).ok_or(io::ErrorKind::NotFound)?;
        page.descriptor().try_clone_to_owned()
    }

    /// Removes a binding's page. Who has it mapped sees its last state.
    pub fn remove(&mut self, id: &BindingId) {
        self.open.remove(id);
        let folder = self.folder.join(id.as_str());
        if let Err(error) = fs::remove_dir_all(&folder) {
            tracing::warn!(folder = %folder.display(), %error, "folder of a released binding stays");
        }
    }

    /// Removes folders of bindings that are not known: an agent was killed between making one and noting it.
    pub fn remove_unknown(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let id = entry.file_name().into_string().ok().and_then(|name| BindingId::try_from(name).ok());
            if !id.is_some_and(|id| self.open.contains_key(&id)) {
                tracing::warn!(path = %entry.path().display(), "removing the page of an unknown binding");
                fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()))?;
            }
        }
        Ok(())
    }

    /// Writes a slot's word and wakes whoever waits for it.
    pub fn set_right(&self, id: &BindingId, slot: usize, right: u32) {
        if let Some(page) = self.open.get(id) {
            page.slots[slot.min(SLOTS - 1)].right.store(right, Ordering::Release);
            page.wake(slot);
        }
    }

    /// Writes a binding's limits and wakes all who wait.
    pub fn set_limits(&self, binding: &Binding) {
        if let Some(page) = self.open.get(&binding.id) {
            page.set_limits(&self.limits(binding));
            publish(&binding.id, page);
            (0..SLOTS).for_each(|slot| page.wake(slot));
        }
    }

    /// Shows that the agent lives, and what was counted.
    pub fn beat(&self, id: &BindingId, counters: &Counters, now: Nanos) {
        if let Some(page) = self.open.get(id) {
            page.set_counters(counters);
            page.heartbeat.store(now.0, Ordering::Release);
            publish(id, page);
        }
    }

    fn limits(&self, binding: &Binding) -> Limits {
        let share = &binding.share;
        let (floor, ceiling, memory) = (share.floor, share.ceiling, share.memory);
        Limits { sm: share.sm, floor, ceiling, grant: binding.grant, memory, window: self.window }
    }
}

fn publish(id: &BindingId, page: &PageWriter) {
    if let Err(error) = page.publish() {
        // Only those who look miss it.
        tracing::debug!(binding = %id, %error, "copy of a page is not written");
    }
}

fn identity(binding: &Binding) -> Identity {
    Identity { binding: binding.id.clone(), gpu: binding.gpu.0.clone() }
}
