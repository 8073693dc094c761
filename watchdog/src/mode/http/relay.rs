//! The function's answer on its way to the client: streams it, ends it at its deadline, and gives the connection back.
//! An answer that is cut ends without its last chunk, so that the client can tell.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::StatusCode;
use hyper::body::{Body, Frame, SizeHint};

use super::reply::{Broken, Reply};
use crate::alarm::Alarm;
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
    Broken(Broken),
    /// It can't be read, or its request can't.
    #[error("{0}")]
    Io(std::io::Error),
}

/// The body of the function's answer on its way to the client.
#[derive(Debug)]
pub(crate) struct Relay {
    reply: Reply,
    status: StatusCode,
    deadline: Option<Alarm>,
    /// `None` when the answer is complete or cut.
    open: Option<Exchange>,
}

impl Relay {
    /// What is still to come of an answer.
    pub(crate) fn new(
        reply: Reply,
        status: StatusCode,
        deadline: Option<Alarm>,
        exchange: Exchange,
    ) -> Box<Self> {
        Box::new(Self { reply, status, deadline, open: Some(exchange) })
    }

    fn complete(&mut self) {
        if let Some(exchange) = self.open.take() {
            self.take_reply().complete();
            exchange.finish(self.status);
        }
    }

    fn take_reply(&mut self) -> Reply {
        std::mem::replace(&mut self.reply, Reply::Whole(Bytes::new()))
    }

    fn cut(&mut self, cut: Cut) -> Cut {
        if let Some(exchange) = self.open.take() {
            // Its connection ends here.
            drop(self.take_reply());
            log!("Upstream HTTP response cut: {cut}");
            exchange.finish(match cut {
                Cut::Late => StatusCode::GATEWAY_TIMEOUT,
                Cut::Broken(_) | Cut::Io(_) => StatusCode::BAD_GATEWAY,
            });
        }
        cut
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match Pin::new(&mut self.reply).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(exchange), Some(bytes)) = (&mut self.open, frame.data_ref()) {
                    exchange.add_bytes(bytes.len());
                }
                if self.reply.is_end_stream() {
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
                Some(deadline) => Pin::new(deadline).poll(cx).map(|()| Some(Err(self.cut(Cut::Late)))),
                None => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.reply.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.reply.size_hint()
    }
}
