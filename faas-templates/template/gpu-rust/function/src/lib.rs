//! A function for a part of a GPU.

use bytes::Bytes;
use http::{Request, Response};

/// What a handler may fail with: the caller gets 500, the log gets the reason.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// What stays between requests.
pub struct Model;

/// Runs once, before the first request: put the model onto the GPU here.
///
/// # Errors
/// Ends the process, which the watchdog starts again.
pub async fn load() -> Result<Model, Error> {
    Ok(Model)
}

/// Answers a request.
///
/// # Errors
/// Whatever the handler can't answer.
pub async fn handle(_request: Request<Bytes>, _model: &Model) -> Result<Response<Bytes>, Error> {
    Ok(Response::new(Bytes::from("Hello from gpu-rust")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_answers() {
        let model = load().await.unwrap();
        let response = handle(Request::new(Bytes::new()), &model).await.unwrap();
        assert_eq!(response.status(), 200);
    }
}
