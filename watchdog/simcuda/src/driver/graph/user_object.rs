//! User objects: what a program has kept for as long as graphs need it.

use std::sync::{Arc, Mutex};

use super::super::abi::{HostFunction, Opaque};
use super::super::state::{driver, lock, new_handle};
use super::super::{CudaError, Handle, Out, Result, driver};

/// Flag of a reference that the program hands over to a graph.
const MOVE: u32 = 1;

/// Something that is destroyed once nobody refers to it.
#[derive(Debug)]
pub(in super::super) struct UserObject {
    handle: Handle,
    /// An address of the program's.
    pointer: usize,
    destroy: HostFunction,
    /// References of the program and of graphs.
    references: Mutex<u32>,
}

impl UserObject {
    fn retain(&self, count: u32) -> Result {
        let mut references = lock(&self.references);
        // What is destroyed can't be had back.
        let sum = references.checked_add(count).filter(|_| *references > 0 && count > 0);
        *references = sum.ok_or(CudaError::INVALID_VALUE)?;
        Ok(())
    }

    fn release(&self, count: u32) -> Result {
        let mut references = lock(&self.references);
        let rest = references.checked_sub(count).filter(|_| count > 0);
        *references = rest.ok_or(CudaError::INVALID_VALUE)?;
        drop(references);
        if rest == Some(0) {
            driver()?.user_objects.remove(self.handle)?;
            (self.destroy)(std::ptr::with_exposed_provenance_mut(self.pointer));
        }
        Ok(())
    }
}

/// The references that a graph holds.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<Vec<(Arc<UserObject>, u32)>>);

impl Kept {
    fn add(&self, object: Arc<UserObject>, count: u32) {
        lock(&self.0).push((object, count));
    }

    /// Refers to all that `other` refers to.
    pub(super) fn take_over(&self, other: &Self) -> Result {
        let others = lock(&other.0).clone();
        others.into_iter().try_for_each(|(object, count)| {
            object.retain(count)?;
            self.add(object, count);
            Ok(())
        })
    }

    /// Lets `count` references to an object go.
    fn drop_some(&self, handle: Handle, mut count: u32) -> Result {
        let mut kept = lock(&self.0);
        let held: u32 =
            kept.iter().filter(|(object, _)| object.handle == handle).map(|(_, count)| count).sum();
        let object =
            kept.iter().find(|(object, _)| object.handle == handle).map(|(object, _)| Arc::clone(object));
        let object = object.filter(|_| count <= held).ok_or(CudaError::INVALID_VALUE)?;
        let released = count;
        for (_, own) in kept.iter_mut().filter(|(object, _)| object.handle == handle) {
            let part = count.min(*own);
            *own -= part;
            count -= part;
        }
        kept.retain(|(_, count)| *count > 0);
        drop(kept);
        object.release(released)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        for (object, count) in lock(&self.0).drain(..) {
            // It has these references.
            let _ = object.release(count);
        }
    }
}

driver! {
    fn [cuUserObjectCreate]
        (out: Out<Handle>, pointer: Opaque, destroy: Option<HostFunction>, count: u32, _flags: u32) {
        let (Some(destroy), false) = (destroy, out.is_null() || count == 0) else {
            return Err(CudaError::INVALID_VALUE);
        };
        let (handle, pointer) = (new_handle(), pointer.expose_provenance());
        let object = UserObject { handle, pointer, destroy, references: Mutex::new(count) };
        driver()?.user_objects.insert(handle, Arc::new(object));
        out.set(handle)
    }

    fn [cuUserObjectRetain] (object: Handle, count: u32) {
        driver()?.user_objects.get(object)?.retain(count)
    }

    fn [cuUserObjectRelease] (object: Handle, count: u32) {
        driver()?.user_objects.get(object)?.release(count)
    }

    fn [cuGraphRetainUserObject] (graph: Handle, object: Handle, count: u32, flags: u32) {
        let driver = driver()?;
        let (graph, object) = (driver.graphs.get(graph)?, driver.user_objects.get(object)?);
        if flags & MOVE == 0 {
            object.retain(count)?;
        }
        graph.kept.add(object, count);
        Ok(())
    }

    fn [cuGraphReleaseUserObject] (graph: Handle, object: Handle, count: u32) {
        driver()?.graphs.get(graph)?.kept.drop_some(object, count)
    }
}
