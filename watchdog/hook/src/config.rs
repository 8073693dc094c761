//! What the environment says about this process: its binding, and where the real libraries are.
//!
//! Reading is a pure function of the variables. It opens nothing.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::OnceLock;

use gpu_share::binding::BindingId;
use gpu_share::names::env;

/// The binding of a process and the two paths through which it talks to the node agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) binding: BindingId,
    pub(crate) page: PathBuf,
    pub(crate) socket: PathBuf,
}

/// Whether this process has a share to keep to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    /// None was asked for: the library is a plain proxy.
    None,
    /// It is bound.
    Bound(Place),
    /// One was asked for, but what the environment says about it can't be used; the text says why.
    Broken(String),
}

/// What keeps a process to its SM share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SmBy {
    /// The percentage of MPS, if one is set.
    Mps,
    /// Green contexts, which this library makes.
    Green,
    /// Green contexts were asked for, but a percentage of MPS is set, and one limit is enough.
    Percentage,
}

/// Everything that the environment says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) share: Share,
    /// Go on without a share if there is none to be had, instead of refusing.
    pub(crate) open: bool,
    pub(crate) sm_by: SmBy,
    /// Every launch waits for its end (`CUDA_LAUNCH_BLOCKING`, which the driver reads too).
    pub(crate) launches_block: bool,
    pub(crate) driver: Option<PathBuf>,
    pub(crate) nvml: Option<PathBuf>,
}

impl Config {
    /// Reads the variables through `get`.
    pub(crate) fn read(get: impl Fn(&str) -> Option<OsString>) -> Self {
        let set = |name: &str| get(name).filter(|value| !value.is_empty());
        let path = |name: &str| set(name).map(PathBuf::from);
        let share = share(path(env::BINDING), path(env::PAGE), path(env::SOCKET));
        let (share, sm_by) = match sm_by(set(env::SM_BY).as_deref(), set(env::MPS_PERCENTAGE).is_some()) {
            Ok(sm_by) => (share, sm_by),
            Err(_) if share == Share::None => (share, SmBy::Mps),
            Err(why) => (Share::Broken(why), SmBy::Mps),
        };
        Self {
            share,
            sm_by,
            open: get(env::POLICY).is_some_and(|policy| policy == "open"),
            launches_block: get("CUDA_LAUNCH_BLOCKING")
                .is_some_and(|value| !value.is_empty() && value != "0"),
            driver: path(env::DRIVER),
            nvml: path(env::NVML),
        }
    }

    /// Whether a share was asked for.
    pub(crate) fn wants_share(&self) -> bool {
        self.share != Share::None
    }
}

fn sm_by(asked: Option<&OsStr>, percentage: bool) -> Result<SmBy, String> {
    match asked.map(OsStr::to_string_lossy).as_deref() {
        None | Some("mps") => Ok(SmBy::Mps),
        Some("green") if percentage => Ok(SmBy::Percentage),
        Some("green") => Ok(SmBy::Green),
        Some(other) => Err(format!("{} is {other:?}, allowed is mps or green", env::SM_BY)),
    }
}

fn share(binding: Option<PathBuf>, page: Option<PathBuf>, socket: Option<PathBuf>) -> Share {
    let (binding, page, socket) = match (binding, page, socket) {
        (None, None, None) => return Share::None,
        (Some(binding), Some(page), Some(socket)) => (binding, page, socket),
        (binding, page, _) => {
            let missing = match (binding, page) {
                (None, _) => env::BINDING,
                (_, None) => env::PAGE,
                _ => env::SOCKET,
            };
            return Share::Broken(format!("{missing} is not set, allowed is all of them or none"));
        }
    };
    match BindingId::try_from(binding.to_string_lossy().into_owned()) {
        Ok(binding) => Share::Bound(Place { binding, page, socket }),
        Err(error) => Share::Broken(format!("{}: {error}", env::BINDING)),
    }
}

/// This process's environment, read once.
pub(crate) fn config() -> &'static Config {
    static CONFIG: OnceLock<Config> = OnceLock::new();
    CONFIG.get_or_init(|| Config::read(|name| std::env::var_os(name)))
}

/// One line for whoever runs the function, and nothing that is secret.
pub(crate) fn say(line: &str) {
    use std::io::Write;
    // A function may have closed its standard error; that is no reason to fail.
    let _ = writeln!(std::io::stderr(), "gpufn hook: {line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Config {
        Config::read(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn without_variables_the_library_is_a_plain_proxy() {
        assert_eq!(read(&[]).share, Share::None);
        assert_eq!(read(&[("GPUFN_PAGE", "")]).share, Share::None);
    }

    #[test]
    fn all_three_variables_make_a_binding() {
        let config = read(&[("GPUFN_BINDING", "b-1"), ("GPUFN_PAGE", "/p"), ("GPUFN_SOCKET", "/s")]);
        let Share::Bound(place) = config.share else { panic!("it must be bound") };
        assert_eq!((place.binding.as_str(), place.page.to_str()), ("b-1", Some("/p")));
    }

    #[test]
    fn green_contexts_keep_the_sm_share_if_nothing_else_does() {
        assert_eq!(read(&[]).sm_by, SmBy::Mps);
        assert_eq!(read(&[("GPUFN_SM_BY", "mps")]).sm_by, SmBy::Mps);
        assert_eq!(read(&[("GPUFN_SM_BY", "green")]).sm_by, SmBy::Green);
        let percentage = ("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "30");
        assert_eq!(read(&[("GPUFN_SM_BY", "green"), percentage]).sm_by, SmBy::Percentage);
        assert_eq!(read(&[percentage]).sm_by, SmBy::Mps);
    }

    #[test]
    fn another_way_to_keep_it_is_refused_where_there_is_a_share() {
        let wrong = ("GPUFN_SM_BY", "mig");
        assert_eq!(read(&[wrong]).share, Share::None);
        let bound = [("GPUFN_BINDING", "b-1"), ("GPUFN_PAGE", "/p"), ("GPUFN_SOCKET", "/s"), wrong];
        let broken = read(&bound).share;
        assert!(
            matches!(broken, Share::Broken(why) if why == "GPUFN_SM_BY is \"mig\", allowed is mps or green")
        );
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let Share::Broken(why) = read(&[("GPUFN_BINDING", "b-1"), ("GPUFN_PAGE", "/p")]).share else {
            panic!()
        };
        assert!(why.starts_with("GPUFN_SOCKET is not set"), "{why}");
        let broken = read(&[("GPUFN_BINDING", "../b"), ("GPUFN_PAGE", "/p"), ("GPUFN_SOCKET", "/s")]).share;
        assert!(matches!(broken, Share::Broken(why) if why.starts_with("GPUFN_BINDING: ")));
    }
}
