//! Replicas that are replaced one after the other under load, as a Deployment does it: nothing is lost.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::{Client, StatusCode};

use crate::fixture::{Watchdog, is_full, with_process};

/// Where requests go, as the endpoints of a Service.
#[derive(Default)]
struct Endpoints {
    ready: Mutex<Vec<String>>,
    next: AtomicUsize,
}

impl Endpoints {
    fn add(&self, watchdog: &Watchdog) {
        self.ready.lock().unwrap().push(watchdog.authority());
    }

    fn remove(&self, watchdog: &Watchdog) {
        self.ready.lock().unwrap().retain(|authority| *authority != watchdog.authority());
    }

    fn pick(&self) -> String {
        let ready = self.ready.lock().unwrap();
        ready[self.next.fetch_add(1, Ordering::SeqCst) % ready.len()].clone()
    }
}

/// What clients saw.
#[derive(Default)]
struct Seen {
    good: AtomicUsize,
    bad: Mutex<Vec<String>>,
}

async fn call(client: &Client, url: String, seen: &Seen) {
    let outcome = async {
        let answer = client.get(&url).send().await?.error_for_status()?;
        answer.bytes().await
    };
    match outcome.await {
        Ok(_) => {
            seen.good.fetch_add(1, Ordering::SeqCst);
        }
        Err(error) => seen.bad.lock().unwrap().push(format!("{url}: {error:?}")),
    }
}

async fn replica() -> Watchdog {
    with_process().env("healthcheck_interval", "500ms").start().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_restarts_lose_no_request() {
    let (restarts, requests) = if is_full() { (20, 10_000) } else { (4, 1_000) };
    let (endpoints, seen) = (Arc::new(Endpoints::default()), Arc::new(Seen::default()));
    let stop = Arc::new(AtomicBool::new(false));
    let mut replicas = vec![replica().await, replica().await];
    for replica in &replicas {
        endpoints.add(replica);
    }
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let (endpoints, seen, stop) = (Arc::clone(&endpoints), Arc::clone(&seen), Arc::clone(&stop));
        clients.spawn(async move {
            let client = Client::new();
            let mut number = 0;
            while !stop.load(Ordering::SeqCst) {
                number += 1;
                call(&client, format!("http://{}/sleep/{}", endpoints.pick(), number % 20), &seen).await;
            }
        });
    }
    for _ in 0..restarts {
        let new = replica().await;
        endpoints.add(&new);
        let mut old = replicas.remove(0);
        replicas.push(new);
        old.signal("TERM");
        // The kubelet learns of it by a probe, and the endpoints a moment later.
        old.until_status("/_/health", StatusCode::SERVICE_UNAVAILABLE).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        endpoints.remove(&old);
        assert_eq!(old.ended().await.code(), Some(0));
    }
    while seen.good.load(Ordering::SeqCst) < requests {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(seen.bad.lock().unwrap().is_empty());
    }
    stop.store(true, Ordering::SeqCst);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    let bad = seen.bad.lock().unwrap();
    assert!(bad.is_empty(), "{} of {}: {:?}", bad.len(), seen.good.load(Ordering::SeqCst), bad.first());
}

#[tokio::test]
async fn an_answer_while_draining_asks_its_client_to_go_elsewhere() {
    let watchdog = with_process().env("healthcheck_interval", "10s").start().await;
    assert!(watchdog.get("/x").await.headers().get("connection").is_none());
    watchdog.signal("TERM");
    watchdog.until_status("/_/health", StatusCode::SERVICE_UNAVAILABLE).await;
    let answer = watchdog.get("/x").await;
    assert_eq!(
        (answer.status(), &answer.headers()["connection"]),
        (StatusCode::OK, &"close".parse().unwrap())
    );
}
