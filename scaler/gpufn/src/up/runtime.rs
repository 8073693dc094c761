//! What starts a replica and ends it, behind a trait: processes here, and whatever tests put in its place.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::logbook::LogBook;
use super::spec::Spec;

pub(crate) mod process;

/// A replica to start.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) spec: Arc<Spec>,
    pub(crate) instance: Arc<str>,
    /// Environment of its binding, if it has one.
    pub(crate) binding_env: Vec<(String, String)>,
    pub(crate) log: Arc<LogBook>,
}

/// A replica that was started; whether it is ready, `/_/ready` at its address tells.
#[derive(Clone, Debug)]
pub(crate) struct Launched {
    pub(crate) address: SocketAddr,
    pub(crate) pid: Option<u32>,
    /// Why it ended, once it has.
    pub(crate) ended: watch::Receiver<Option<String>>,
    /// Ends it in good order, and by force if that takes too long.
    pub(crate) stop: CancellationToken,
    /// Ends it at once.
    pub(crate) kill: CancellationToken,
}

impl Launched {
    /// Waits for its end; says why.
    pub(crate) async fn end(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "nobody watches its process any more".into(),
        }
    }
}

/// Starts replicas.
pub(crate) trait Runtime: Send + Sync + core::fmt::Debug {
    /// Starts one, or says in one line why it can't.
    fn launch(&self, order: Launch) -> BoxFuture<'_, Result<Launched, String>>;
}
