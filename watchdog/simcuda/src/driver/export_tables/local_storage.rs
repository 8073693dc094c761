//! Values that a program keeps with a context, by key, each with a function that is called when the context goes.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Mutex;

use super::super::state::{driver, lock};
use super::super::{CudaError, Handle, Out, Result, entry};

/// Called with the context, the key and the value when the context is destroyed.
type Destructor = extern "C" fn(Handle, usize, usize);

/// The values of one context.
#[derive(Debug, Default)]
pub(in super::super) struct LocalStorage(Mutex<HashMap<usize, (usize, Option<Destructor>)>>);

impl LocalStorage {
    fn put(&self, key: usize, value: usize, destructor: Option<Destructor>) {
        lock(&self.0).insert(key, (value, destructor));
    }

    fn remove(&self, key: usize) -> Result {
        lock(&self.0).remove(&key).map(|_| ()).ok_or(CudaError::INVALID_HANDLE)
    }

    fn get(&self, key: usize) -> Result<usize> {
        lock(&self.0).get(&key).map(|&(value, _)| value).ok_or(CudaError::INVALID_HANDLE)
    }

    /// Takes all values away and tells their owners. The owners may call the driver.
    pub(in super::super) fn end(&self, context: Handle) {
        let values = std::mem::take(&mut *lock(&self.0));
        for (key, (value, destructor)) in values {
            if let Some(destructor) = destructor {
                destructor(context, key, value);
            }
        }
    }
}

/// The table; it alone does not begin with its size.
#[repr(C)]
struct Table {
    put: extern "C" fn(Handle, usize, usize, Option<Destructor>) -> u32,
    remove: extern "C" fn(Handle, usize) -> u32,
    get: extern "C" fn(Out<usize>, Handle, usize) -> u32,
}

static TABLE: Table = Table { put, remove, get };

pub(super) fn table() -> *const c_void {
    (&raw const TABLE).cast()
}

// In all three a context of zero is the current one: the runtime counts on it at each launch.

extern "C" fn put(context: Handle, key: usize, value: usize, destructor: Option<Destructor>) -> u32 {
    entry(|| {
        driver()?.context(context)?.storage.put(key, value, destructor);
        Ok(())
    })
}

extern "C" fn remove(context: Handle, key: usize) -> u32 {
    entry(|| driver()?.context(context)?.storage.remove(key))
}

extern "C" fn get(value: Out<usize>, context: Handle, key: usize) -> u32 {
    entry(|| value.set(driver()?.context(context)?.storage.get(key)?))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    static ENDED: AtomicUsize = AtomicUsize::new(0);

    extern "C" fn count(context: Handle, key: usize, value: usize) {
        ENDED.fetch_add(context + key + value, Ordering::Relaxed);
    }

    #[test]
    fn values_are_kept_by_key_until_the_context_ends() {
        let storage = LocalStorage::default();
        assert_eq!(storage.get(1), Err(CudaError::INVALID_HANDLE));
        storage.put(1, 10, Some(count));
        storage.put(2, 20, Some(count));
        storage.put(1, 11, Some(count));
        storage.put(3, 30, None);
        assert_eq!((storage.get(1), storage.get(2)), (Ok(11), Ok(20)));
        assert_eq!((storage.remove(2), storage.remove(2)), (Ok(()), Err(CudaError::INVALID_HANDLE)));
        storage.end(100);
        assert_eq!(ENDED.load(Ordering::Relaxed), 100 + 1 + 11, "value 1 alone was left, and told once");
        storage.end(100);
        assert_eq!(ENDED.load(Ordering::Relaxed), 112);
    }
}
