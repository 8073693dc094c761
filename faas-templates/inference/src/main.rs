//! An inference function as a user would write it: loads a model onto the GPU once, then answers HTTP requests with it.
//!
//! It knows nothing of gpufn. It opens the CUDA driver through `cudarc` under its usual name; whose driver that is, and
//! what part of the GPU it gets, is decided outside. The model's arithmetic is left to the driver: one kernel
//! `<model>_layer` is launched for each layer, in a grid that states layers and batch, and a simulated GPU takes the time
//! that the model's profile says. A small kernel whose result is checked runs at the end of each request, so that an
//! answer is right or an error.
//!
//! Environment: `model` (name of the profile), `layers` (kernels of one inference), `weights_mib` (memory of the model),
//! `PORT` (where to listen on loopback).

use std::net::Ipv4Addr;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::any;
use axum::{Json, Router};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::model::{Model, Shape};

mod model;

/// One request on its way to the thread that owns the GPU's context.
type Job = oneshot::Sender<Result<Answer>>;

/// What a request is answered with.
#[derive(Debug, Serialize)]
struct Answer {
    model: String,
    /// Time on the GPU and in its queue, milliseconds.
    inference_ms: f64,
    /// The checked kernel's result.
    checksum: f32,
    pid: u32,
}

fn main() -> Result<()> {
    let shape = Shape::from_env(|name| std::env::var(name).ok())?;
    let port: u16 = match std::env::var("PORT") {
        Ok(port) => port.parse().with_context(|| format!("PORT is {port:?}, allowed is 1 to 65535"))?,
        Err(_) => 8000,
    };
    let jobs = start_model(shape)?;
    let app = Router::new().fallback(any(infer)).with_state(jobs);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let mut terminated = signal(SignalKind::terminate())?;
        let stop = async move {
            terminated.recv().await;
        };
        axum::serve(listener, app).with_graceful_shutdown(stop).await?;
        Ok(())
    })
}

/// Loads the model on a thread of its own, which then answers one request after the other: the GPU runs one batch of a
/// model at a time anyway. Returns when the model is on the GPU.
fn start_model(shape: Shape) -> Result<mpsc::Sender<Job>> {
    let (jobs, queue) = mpsc::channel::<Job>();
    let (loaded, ready) = mpsc::channel();
    thread::Builder::new().name("model".into()).spawn(move || match Model::load(&shape) {
        Ok(model) => {
            // The receiver waits for exactly this message, unless the whole program is ending.
            let _ = loaded.send(Ok(()));
            for job in queue {
                // A caller that has gone needs no answer.
                let _ = job.send(answer(&model, &shape));
            }
        }
        Err(error) => drop(loaded.send(Err(error))),
    })?;
    ready.recv().context("the model's thread ended")??;
    Ok(jobs)
}

fn answer(model: &Model, shape: &Shape) -> Result<Answer> {
    let start = Instant::now();
    let checksum = model.infer()?;
    if (checksum - Model::CHECKSUM).abs() > f32::EPSILON {
        bail!("the GPU computed {checksum}, right is {}", Model::CHECKSUM);
    }
    let inference_ms = start.elapsed().as_secs_f64() * 1e3;
    Ok(Answer { model: shape.model.clone(), inference_ms, checksum, pid: std::process::id() })
}

async fn infer(State(jobs): State<mpsc::Sender<Job>>) -> Result<Json<Answer>, (StatusCode, String)> {
    let failed = |error: String| (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"));
    let (job, answer) = oneshot::channel();
    jobs.send(job).map_err(|_| failed("the model's thread ended".into()))?;
    match answer.await {
        Ok(Ok(answer)) => Ok(Json(answer)),
        Ok(Err(error)) => Err(failed(format!("{error:#}"))),
        Err(_) => Err(failed("the model's thread ended".into())),
    }
}
