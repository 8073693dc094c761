//! Inferences that become one, in front of a model of the test's own.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::fixture::{Builder, Watchdog, in_front_of};

/// A model that gives its first input back, and answers 400 to requests with a 666 in it.
struct Model {
    url: String,
    /// The rows of each request.
    seen: Arc<Mutex<Vec<u64>>>,
}

impl Model {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&seen);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let seen = Arc::clone(&shared);
                let service = service_fn(move |request| infer(request, Arc::clone(&seen)));
                let server = hyper::server::conn::http1::Builder::new();
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { url, seen }
    }

    fn batched(&self, size: u64, delay: &str) -> Builder {
        in_front_of(&self.url).env("max_batch_size", size).env("max_batch_delay", delay)
    }

    fn seen(&self) -> Vec<u64> {
        self.seen.lock().unwrap().clone()
    }
}

async fn infer(
    request: Request<Incoming>,
    seen: Arc<Mutex<Vec<u64>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let request: Value = serde_json::from_slice(&body).unwrap();
    let input = &request["inputs"][0];
    seen.lock().unwrap().push(input["shape"][0].as_u64().unwrap());
    let is_bad = input["data"].as_array().unwrap().contains(&json!(666));
    let answer = if is_bad {
        json!({"error": "666 is not allowed"})
    } else {
        let mut output = input.clone();
        output["name"] = json!("y");
        json!({"model_name": "m", "id": request["id"], "outputs": [output]})
    };
    let mut answer = Response::new(Full::from(answer.to_string()));
    if is_bad {
        *answer.status_mut() = StatusCode::BAD_REQUEST;
    }
    Ok(answer)
}

fn inference(id: usize, data: &[u64]) -> Value {
    let input = json!({"name": "x", "datatype": "INT64", "shape": [data.len()], "data": data});
    json!({"id": format!("r{id}"), "inputs": [input]})
}

fn send(watchdog: &Watchdog, body: &Value) -> tokio::task::JoinHandle<(StatusCode, Value)> {
    let request = watchdog.request("POST", "/v2/models/m/infer").json(body);
    tokio::spawn(async move {
        let answer = request.send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    })
}

#[tokio::test]
async fn requests_that_come_together_are_one_for_the_function() {
    let model = Model::start().await;
    let watchdog = model.batched(8, "10s").start().await;
    let bodies: Vec<Vec<u64>> = vec![vec![1], vec![2, 3], vec![4, 5, 6], vec![7, 8]];
    let calls: Vec<_> =
        bodies.iter().enumerate().map(|(id, data)| send(&watchdog, &inference(id, data))).collect();
    for (id, (call, data)) in calls.into_iter().zip(&bodies).enumerate() {
        let (status, answer) = call.await.unwrap();
        assert_eq!(status, StatusCode::OK, "{answer}");
        assert_eq!(answer["id"], json!(format!("r{id}")));
        assert_eq!(answer["outputs"][0]["data"], json!(data));
        assert_eq!(answer["outputs"][0]["shape"], json!([data.len()]));
    }
    assert_eq!(model.seen(), [8]);
}

#[tokio::test]
async fn a_request_waits_only_as_long_as_it_may() {
    let model = Model::start().await;
    let watchdog = model.batched(8, "200ms").start().await;
    let start = Instant::now();
    let (status, answer) = send(&watchdog, &inference(0, &[1])).await.unwrap();
    assert_eq!((status, &answer["id"]), (StatusCode::OK, &json!("r0")));
    assert!(start.elapsed().as_millis() >= 200);
    // One that is as large as a batch has nothing to wait for.
    send(&watchdog, &inference(0, &[1; 8])).await.unwrap();
    assert_eq!(model.seen(), [1, 8]);
}

#[tokio::test]
async fn a_bad_request_in_a_batch_fails_alone() {
    let model = Model::start().await;
    let watchdog = model.batched(3, "10s").start().await;
    let calls: Vec<_> = [1, 666, 3].iter().map(|number| send(&watchdog, &inference(0, &[*number]))).collect();
    let mut statuses = Vec::new();
    for call in calls {
        statuses.push(call.await.unwrap().0.as_u16());
    }
    assert_eq!(statuses, [200, 400, 200]);
    assert_eq!(model.seen(), [3, 1, 1, 1]);
}

#[tokio::test]
async fn a_client_that_goes_away_does_not_end_the_others_batch() {
    let model = Model::start().await;
    let watchdog = model.batched(3, "2s").start().await;
    let first = send(&watchdog, &inference(0, &[1]));
    watchdog.until_metric("http_requests_in_flight 1").await;
    let second = send(&watchdog, &inference(1, &[2]));
    watchdog.until_metric("http_requests_in_flight 2").await;
    first.abort();
    let (status, answer) = second.await.unwrap();
    assert_eq!((status, &answer["outputs"][0]["data"]), (StatusCode::OK, &json!([2])));
}

#[tokio::test]
async fn without_a_batch_size_every_request_goes_alone_and_unchanged() {
    let model = Model::start().await;
    let watchdog = in_front_of(&model.url).start().await;
    let calls: Vec<_> = (0..4).map(|id| send(&watchdog, &inference(id, &[1]))).collect();
    for call in calls {
        assert_eq!(call.await.unwrap().0, StatusCode::OK);
    }
    assert_eq!(model.seen(), [1, 1, 1, 1]);
}
