//! How a function is spoken to: the names of the modes, and who answers in each. What a mode does is in its own module.

use ::http::{Request, Response};
use gpu_share::invalid::Invalid;
use hyper::body::Incoming;

use crate::answer::Answer;
use crate::exchange::Exchange;

pub(crate) mod action;
pub(crate) mod files;
pub(crate) mod fork;
pub(crate) mod http;

use action::ActionMode;
use files::FilesMode;
use fork::ForkMode;
use http::{HttpMode, Peer};

/// The way requests reach the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The function is started once and serves HTTP at the upstream URL.
    Http,
    /// A process for each request; its output is the answer as it comes.
    Streaming,
    /// A process for each request; its output is the answer once it has ended well.
    Serializing,
    /// No function: files.
    Static,
    /// An `OpenWhisk` action that is a process for each activation.
    OpenWhisk,
    /// An `OpenWhisk` action that is started once and reads a line for each activation.
    ActionLoop,
}

impl Mode {
    /// All names, for messages.
    pub(crate) const NAMES: &'static str = "streaming, serializing, http, static, openwhisk or actionloop";

    /// The mode called `name`.
    pub(crate) fn read(name: &str) -> Result<Self, Invalid> {
        match name {
            "http" => Ok(Self::Http),
            "streaming" => Ok(Self::Streaming),
            "serializing" => Ok(Self::Serializing),
            "static" => Ok(Self::Static),
            "openwhisk" => Ok(Self::OpenWhisk),
            "actionloop" => Ok(Self::ActionLoop),
            _ => Err(Invalid::new("mode", name, Self::NAMES)),
        }
    }

    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Streaming => "streaming",
            Self::Serializing => "serializing",
            Self::Static => "static",
            Self::OpenWhisk => "openwhisk",
            Self::ActionLoop => "actionloop",
        }
    }

    /// Whether a command must be configured. An action may come with its code in `/init`.
    pub(crate) fn needs_function(self) -> bool {
        matches!(self, Self::Http | Self::Streaming | Self::Serializing)
    }

    /// Whether the function is an `OpenWhisk` action.
    pub(crate) fn is_action(self) -> bool {
        matches!(self, Self::OpenWhisk | Self::ActionLoop)
    }
}

/// Who answers requests.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // There is one of them.
pub(crate) enum Invoker {
    /// The function, over HTTP.
    Http(HttpMode),
    /// A process for each request.
    Fork(ForkMode),
    /// Files.
    Files(FilesMode),
    /// An `OpenWhisk` action.
    Action(ActionMode),
}

impl Invoker {
    /// Answers `request`, which came from `peer`.
    pub(crate) async fn answer(
        &self,
        request: Request<Incoming>,
        peer: Peer,
        exchange: Exchange,
    ) -> Response<Answer> {
        // Boxed but for one: every request is moved with the room for all that it could become.
        match self {
            Self::Http(mode) => mode.answer(request, peer, exchange).await,
            Self::Fork(mode) => Box::pin(mode.answer(request, exchange)).await,
            Self::Files(mode) => Box::pin(mode.answer(&request, exchange)).await,
            Self::Action(mode) => Box::pin(mode.answer(request, exchange)).await,
        }
    }
}
