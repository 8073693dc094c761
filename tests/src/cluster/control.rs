//! What the node's supervisor does for tests and for people: one question and one answer, each a line of JSON, over a
//! socket on the node.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::components::Component;

/// Name of the socket in the node's folder.
pub const SOCKET: &str = "control.sock";
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_mins(1);
/// Longest wait for the question of one who connected: the supervisor does nothing else meanwhile.
const QUESTION: Duration = Duration::from_secs(1);

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Which components run?
    Status,
    /// Kill a component, as a crash would.
    Kill(Component),
    /// Start one that was killed.
    Start(Component),
}

/// The components that run, with their process numbers on the node; or what was wrong with the question.
pub type Answer = Result<BTreeMap<Component, u32>, String>;

/// Asks the supervisor behind `socket`.
pub async fn ask(socket: &Path, request: Request) -> Result<BTreeMap<Component, u32>> {
    let exchange = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(format!("{}\n", serde_json::to_string(&request)?).as_bytes()).await?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).await?;
        serde_json::from_str::<Answer>(&line).with_context(|| format!("answer {line:?}"))
    };
    let answer = timeout(PATIENCE, exchange).await.context("no answer")?;
    answer.with_context(|| socket.display().to_string())?.map_err(|error| anyhow!(error))
}

/// Takes the question that is asked by `stream`, which `reply` answers.
pub async fn take(stream: UnixStream, reply: impl FnOnce(Request) -> Answer) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    timeout(QUESTION, stream.read_line(&mut line)).await.context("no question")??;
    let answer = match serde_json::from_str(&line) {
        Ok(request) => reply(request),
        Err(error) => Err(format!("request {line:?}: {error}")),
    };
    stream.write_all(format!("{}\n", serde_json::to_string(&answer)?).as_bytes()).await?;
    Ok(())
}
