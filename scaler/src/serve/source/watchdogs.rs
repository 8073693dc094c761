//! The watchdogs of the pods themselves: as fresh as it gets, with nothing else to be installed.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use futures_util::StreamExt;
use gpu_share::units::Nanos;

use super::{FunctionName, Readings, Roster, Source, SourceError, get};
use crate::traffic::{Counters, Reading};

/// Watchdogs that are asked at the same time.
const AT_ONCE: usize = 128;

/// Reads each pod's metrics.
#[derive(Debug)]
pub(in crate::serve) struct Watchdogs {
    /// With a time limit.
    pub(in crate::serve) client: reqwest::Client,
    /// Where watchdogs show metrics.
    pub(in crate::serve) port: u16,
}

impl Source for Watchdogs {
    async fn read(&self, now: Nanos, roster: &Roster) -> Result<Readings, SourceError> {
        let empty = |(name, replicas): (&FunctionName, &Vec<_>)| {
            (name.clone(), Reading { at: now, expected: replicas.len(), replicas: BTreeMap::new() })
        };
        let read = roster.iter().filter(|(_, replicas)| !replicas.is_empty());
        let mut readings: HashMap<_, _> = read.map(empty).collect();
        let all = roster.iter().flat_map(|(name, replicas)| replicas.iter().map(move |one| (name, one)));
        // Made before they are polled: what borrows in a stream's closure is not known to be Send.
        let asked: Vec<_> =
            all.map(|(name, one)| self.ask(name.clone(), one.name.clone(), one.address)).collect();
        let mut answers = futures_util::stream::iter(asked).buffer_unordered(AT_ONCE);
        while let Some((function, replica, counters)) = answers.next().await {
            if let Some((counters, reading)) = counters.zip(readings.get_mut(&function)) {
                reading.replicas.insert(replica, counters);
            }
        }
        Ok(readings)
    }
}

impl Watchdogs {
    async fn ask(
        &self,
        function: FunctionName,
        replica: String,
        address: IpAddr,
    ) -> (FunctionName, String, Option<Counters>) {
        let url = format!("http://{}/metrics", SocketAddr::new(address, self.port));
        let counters = match get(&self.client, &url).await {
            Ok(text) => Counters::of_watchdog(&text),
            Err(error) => {
                tracing::debug!(%function, replica, %error, "a watchdog can't be read");
                None
            }
        };
        (function, replica, counters)
    }
}
