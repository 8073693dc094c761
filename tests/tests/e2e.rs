//! gpufn on a real Kubernetes. The tests run on the node of one cluster that they share, each in a namespace of its own:
//! `make e2e`, or `target/debug/cluster exec cargo test -p tests --test e2e -- --ignored` where one is up.
// A test ends where something is wrong with it.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "e2e/node.rs"]
mod node;
