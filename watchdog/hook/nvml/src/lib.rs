//! The hook under the name of the management library: a library that is named `libnvidia-ml.so.1` inside, has nothing in it,
//! and needs the proxy beside it, which has all of the functions.
//!
//! The proxy is named `libcuda.so.1` inside. `ldconfig` enters a file under the name that it has inside, and the loader
//! takes a library that is open already by that name; so each of the two names needs a file.
#![no_std]

// Only so that the language's panic handler has a name; nothing of it is linked.
extern crate std;
