//! The function's answer on its way to the client: streams it, ends it at its deadline, and gives the connection back.
//! An answer that is cut ends without its last chunk, so that the client can tell.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::StatusCode;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

use super::backend::Via;
use crate::exchange::Exchange;
use crate::logs::log;

/// Why an answer was cut.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cut {
    /// It was not complete in time.
    #[error("the answer was not complete in time")]
    Late,
    /// The function ended it.
    #[error("the function did not complete its answer: {0}")]
    Broken(hyper::Error),
    /// It can't be read, or its request can't.
    #[error("{0}")]
    Io(std::io::Error),
}

/// The body of the function's answer.
#[derive(Debug)]
pub(crate) struct Relay {
    answer: Incoming,
    status: StatusCode,
    deadline: Option<Pin<Box<Sleep>>>,
    /// `None` when the answer is complete or cut.
    open: Option<(Via, Exchange)>,
}

impl Relay {
    /// The body of an answer that came `via` a connection; `None` if it is empty, and then the exchange is finished.
    pub(crate) fn new(
        answer: Incoming,
        status: StatusCode,
        deadline: Option<Pin<Box<Sleep>>>,
        via: Via,
        exchange: Exchange,
    ) -> Option<Box<Self>> {
        let mut relay = Self { answer, status, deadline, open: Some((via, exchange)) };
        if relay.answer.is_end_stream() {
            relay.complete();
            return None;
        }
        Some(Box::new(relay))
    }

    fn complete(&mut self) {
        if let Some((via, exchange)) = self.open.take() {
            via.complete();
            exchange.finish(self.status);
        }
    }

    fn cut(&mut self, cut: Cut) -> Cut {
        if let Some((_, exchange)) = self.open.take() {
            log!("Upstream HTTP response cut: {cut}");
            exchange.finish(match cut {
                Cut::Late => StatusCode::GATEWAY_TIMEOUT,
                Cut::Broken(_) | Cut::Io(_) => StatusCode::BAD_GATEWAY,
            });
        }
        cut
    }

    /// The next frame of the answer, driving the connection until there is one or nothing can be read now.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.answer).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        if let Some((via, _)) = &mut self.open {
            via.drive(cx);
        }
        Pin::new(&mut self.answer).poll_frame(cx)
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.poll_answer(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some((_, exchange)), Some(bytes)) = (&mut self.open, frame.data_ref()) {
                    exchange.add_bytes(bytes.len());
                }
                if self.answer.is_end_stream() {
                    self.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(self.cut(Cut::Broken(error))))),
            Poll::Ready(None) => {
                self.complete();
                Poll::Ready(None)
            }
            Poll::Pending => match &mut self.deadline {
                Some(deadline) => deadline.as_mut().poll(cx).map(|()| Some(Err(self.cut(Cut::Late)))),
                None => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.answer.size_hint()
    }
}
