//! The watchdogs of the pods themselves: as fresh as it gets, with nothing else to be installed.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt;
use gpu_share::units::Nanos;

use super::{FunctionName, Readings, Roster, Source, SourceError, get};
use crate::control::reading as control;
use crate::serve::board::Replica;
use crate::traffic::{Counters, Reading};

/// Watchdogs that are asked at the same time.
const AT_ONCE: usize = 128;

/// Reads each pod's metrics.
#[derive(Clone, Debug)]
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
    /// What each function's watchdogs show, latencies included; who has not answered within `patience` is left out.
    pub(in crate::serve) async fn look(
        &self,
        now: Nanos,
        roster: &HashMap<String, Vec<Replica>>,
        patience: Duration,
    ) -> HashMap<String, control::Readings> {
        let empty = |(name, replicas): (&String, &Vec<_>)| {
            (name.clone(), control::Readings::new(now, replicas.len()))
        };
        let mut readings: HashMap<_, _> = roster.iter().map(empty).collect();
        let all = roster.iter().flat_map(|(name, replicas)| replicas.iter().map(move |one| (name, one)));
        let asked: Vec<_> = all.map(|(name, one)| self.look_at(name, one)).collect();
        let mut answers = futures_util::stream::iter(asked).buffer_unordered(AT_ONCE);
        let deadline = tokio::time::sleep(patience);
        tokio::pin!(deadline);
        loop {
            let answer = tokio::select! {
                answer = answers.next() => answer,
                () = &mut deadline => None,
            };
            let Some((function, replica, shown)) = answer else { return readings };
            if let Some((shown, reading)) = shown.zip(readings.get_mut(function)) {
                reading.add(replica.into(), shown);
            }
        }
    }

    async fn look_at<'a>(
        &self,
        function: &'a String,
        one: &'a Replica,
    ) -> (&'a String, &'a str, Option<control::Shown>) {
        let url = format!("http://{}/metrics", SocketAddr::new(one.address, self.port));
        let text = get(&self.client, &url).await;
        (function, &one.name, text.ok().and_then(|text| control::Shown::read(&text)))
    }

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
