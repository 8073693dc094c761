//! A function without a GPU for the tests, as `tests::echo` answers. `PORT`: where it listens on loopback.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Response, Uri};
use axum::routing::any;

fn main() -> Result<()> {
    let port: u16 = std::env::var("PORT").context("PORT is not set")?.parse().context("PORT")?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        println!("echo-function listens on port {port}");
        axum::serve(listener, Router::new().fallback(any(answer))).await?;
        Ok(())
    })
}

async fn answer(method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response<Body> {
    println!("{method} {uri}");
    tests::echo::answer(|name| std::env::var(name).ok(), method, uri, headers, body).await
}
