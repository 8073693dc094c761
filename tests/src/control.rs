//! The node agent's control API, over its Unix socket.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use gpu_share::binding::BindingId;
use gpu_share::protocol::{Bind, BindingStatus, Bound, Granted, NodeStatus, SetGrant};
use gpu_share::units::Quota;
use http_body_util::Full;
use hyper::{Method, Request};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::http;

/// Longest wait for an answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// A node agent, by its control socket.
#[derive(Clone, Debug)]
pub struct Control(pub PathBuf);

impl Control {
    /// The whole node.
    pub async fn status(&self) -> Result<NodeStatus> {
        self.call(Method::GET, "/v1/status", &()).await
    }

    /// All bindings of the node.
    pub async fn bindings(&self) -> Result<Vec<BindingStatus>> {
        Ok(self.status().await?.gpus.into_iter().flat_map(|gpu| gpu.bindings).collect())
    }

    /// Binds a share.
    pub async fn bind(&self, bind: &Bind) -> Result<Bound> {
        self.call(Method::POST, "/v1/bindings", bind).await
    }

    /// Changes a quota.
    pub async fn grant(&self, id: &BindingId, quota: Quota) -> Result<Granted> {
        self.call(Method::PUT, &format!("/v1/bindings/{id}/grant"), &SetGrant { quota }).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T> {
        let body = if method == Method::GET { Vec::new() } else { serde_json::to_vec(body)? };
        let request = Request::builder()
            .method(&method)
            .uri(path)
            .header("host", "node")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let answer = http::over_unix(&self.0, request, DEADLINE).await?;
        ensure!(answer.status.is_success(), "{method} {path}: {} {}", answer.status, answer.text());
        serde_json::from_slice(&answer.body).with_context(|| format!("{method} {path}: {}", answer.text()))
    }
}
