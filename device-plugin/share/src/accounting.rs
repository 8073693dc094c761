//! What one process does about GPU time: when it may launch, and how much time its work has occupied.
//!
//! Owns the rules of the hook. Pure: events, clocks, atomics of the fast path and messages are the hook's. The audit's
//! virtual GPU runs the same rules, so that what is enforced and what is computed in virtual time is one thing.
//!
//! | module | what it owns |
//! |---|---|
//! | [`right`] | when the right to run is asked for, held, and given back |
//! | [`admission`] | how much may be queued under it |
//! | [`batch`] | which launches are measured together, and what is charged for them |
//! | [`cost`] | what a kind of work is expected to take |
//! | [`timeline`] | events as points on one line, overlaps counted once |

pub mod admission;
pub mod batch;
pub mod cost;
pub mod right;
pub mod timeline;
