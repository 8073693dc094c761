//! How a function is spoken to. Owns the names of the modes; what a mode does is in its own module.

use gpu_share::invalid::Invalid;

pub(crate) mod http;

/// The way requests reach the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The function is started once and serves HTTP at the upstream URL.
    Http,
}

impl Mode {
    /// The mode called `name`.
    pub(crate) fn read(name: &str) -> Result<Self, Invalid> {
        match name {
            "http" => Ok(Self::Http),
            _ => Err(Invalid::new("mode", name, "http")),
        }
    }

    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
        }
    }
}
