//! From what is seen in a cluster to what is to be written there: the vertical path of the scaler.
//!
//! Owns how Deployments, pods and readings become the policy's views, and how its decisions become changed annotations. It
//! decides nothing itself: what each replica should have is [`crate::policy::Gpufn`]'s to say, as in the simulator and in
//! `gpufn up`. Pure: who reads, writes and leads is [`crate::serve`].
//!
//! | module | what it owns |
//! |---|---|
//! | [`election`] | which of several scalers may write |
//! | [`owners`] | who else scales a function, and what is left to us then |
//! | [`reading`] | what a watchdog shows of grants and latencies |
//! | [`period`] | one control period: views, decisions, changes |
//! | [`replicas`] | numbers of replicas where nobody else owns them |
//! | [`standing`] | what a function has, in a few numbers |
//! | [`explanation`] | why a function has what it has, for people |

pub mod election;
pub mod explanation;
pub mod owners;
pub mod period;
pub mod reading;
pub mod replicas;
pub mod standing;
