//! Every name of the driver, by every way that a program can ask for its address: what is declared watched leads to the
//! hook, and everything else to where it would lead without.

#![allow(clippy::unwrap_used, clippy::panic)] // A test ends where something is wrong with it.

#[path = "clients/agent.rs"]
#[allow(dead_code)] // Other tests need what these do not.
mod agent;
#[path = "clients/node.rs"]
#[allow(dead_code)] // Other tests need what these do not.
mod node;
#[path = "addresses/roles.rs"]
mod roles;
#[path = "../src/coverage/rules.rs"]
mod rules;

use std::time::Duration;

use agent::NodeAgent;
use node::Node;

const PATIENCE: Duration = Duration::from_mins(1);

#[test]
fn every_name_leads_to_the_hook_by_every_way_or_by_none() {
    let node = Node::start();
    let agent = NodeAgent::builder(&node).start();
    let mut client = node.client("every-name bound").bound(&agent).start();
    client.expect("wrong 0");
    let mut count = |what: &str| client.next().strip_prefix(what).unwrap().parse::<u32>().unwrap();
    let (asked, exchanged) = (count("asked "), count("exchanged "));
    assert!(asked > 100_000 && exchanged > 10_000, "{exchanged} of {asked}");
    client.finish();
}

#[test]
fn without_a_binding_every_name_is_the_drivers_own() {
    let node = Node::start();
    let mut client = node.client("every-name alone").start();
    client.expect("wrong 0");
    client.next();
    client.expect("exchanged 0");
    client.finish();
}
