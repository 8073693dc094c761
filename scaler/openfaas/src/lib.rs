//! The OpenFaaS provider API, as far as its two servers have it in common: `gpufn up`, which runs functions on this machine, and
//! `gpufn-scaler provider`, which runs them on Kubernetes.
//!
//! Owns what clients send and are told, and what is refused whoever runs the function. It runs nothing and keeps nothing.
//! What faas-cli, the gateway and the SDK rely on was read in faas-provider 0.25 and faas-cli 0.18 (both MIT).
//!
//! | module | what it owns |
//! |---|---|
//! | [`shapes`] | the JSON |
//! | [`names`] | what functions, namespaces, secrets, variables and labels may be called |
//! | [`checks`] | what else of a deployment is looked at: sizes, quantities, bounds of replicas, times |
//! | [`answers`] | an answer in plain text, and an error as one |
//! | [`login`] | who may use `/system/…` |
//! | [`logs`] | the query of `/system/logs`, and its lines |
//! | [`calls`] | a request to a function on its way there: path, headers, client |

pub mod answers;
pub mod calls;
pub mod checks;
pub mod login;
pub mod logs;
pub mod names;
pub mod shapes;
