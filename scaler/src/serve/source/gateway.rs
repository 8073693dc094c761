//! A gateway's own metrics: it sees requests also for functions that have no replica yet.

use std::collections::BTreeMap;

use gpu_share::units::Nanos;

use super::{Readings, Roster, Source, SourceError, get};
use crate::traffic::{Counters, Reading};

/// Who counted.
const REPLICA: &str = "gateway";

/// Reads the metrics of one gateway.
#[derive(Debug)]
pub(in crate::serve) struct Gateway {
    /// With a time limit.
    pub(in crate::serve) client: reqwest::Client,
    /// Of its metrics.
    pub(in crate::serve) url: String,
}

impl Source for Gateway {
    async fn read(&self, now: Nanos, roster: &Roster) -> Result<Readings, SourceError> {
        let counted = Counters::of_gateway(&get(&self.client, &self.url).await?);
        // A function that was never called is not there, and has no load.
        let reading = |name: &super::FunctionName| {
            let counters = counted.get(&format!("{}.{}", name.name, name.namespace));
            let replicas = BTreeMap::from([(REPLICA.into(), counters.copied().unwrap_or_default())]);
            Reading { at: now, expected: 1, replicas }
        };
        Ok(roster.keys().map(|name| (name.clone(), reading(name))).collect())
    }
}
