//! Who may call this function: tokens of the OpenFaaS gateway, checked against the gateway's keys. It decides by
//! signature, issuer, audience, time and permissions alone, and logs no token.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use gpu_share::invalid::Invalid;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Uri, header};
use jsonwebtoken::{Validation, decode, decode_header};
use serde::Deserialize;

use crate::answer::{Answer, INTERNAL, text};
use crate::logs::log;

mod fetch;
mod keys;

use fetch::FetchError;
use keys::Keys;

/// The gateway, as functions in the cluster reach it.
const AUTHORITY: &str = "http://gateway.openfaas:8080";

/// The gateway of a function that runs on someone's own machine.
const LOCAL_AUTHORITY: &str = "http://127.0.0.1:8000";

/// Where Kubernetes says which namespace a pod is in.
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// Keys are fetched again after this time, so that one that was withdrawn is not trusted for ever.
const REFRESH: Duration = Duration::from_mins(5);

/// At least this time is between two fetches for keys that are not known: tokens with invented ones cost nothing.
const PAUSE: Duration = Duration::from_secs(2);

/// How far clocks may be apart, in seconds.
const LEEWAY: u64 = 1;

/// How long checking the token took, for the function.
const AUTH_SECONDS: HeaderName = HeaderName::from_static("x-auth-seconds");

/// What to check tokens against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JwtConfig {
    /// Whether keys and refusals are logged.
    debug: bool,
    /// URL of the gateway, without a path.
    authority: String,
    /// The function's name.
    name: String,
    /// The function's namespace; `None` to ask Kubernetes.
    namespace: Option<String>,
}

impl JwtConfig {
    /// Reads it through `get`, which gives a variable's value if it is set; `None` if anyone may call.
    pub(crate) fn read(get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, Invalid> {
        let flag = |name: &str| get(name).is_some_and(|value| value == "true" || value == "1");
        if !flag("jwt_auth") {
            return Ok(None);
        }
        let default = if flag("jwt_auth_local") { LOCAL_AUTHORITY } else { AUTHORITY };
        let authority = get("jwt_authority").unwrap_or_else(|| default.to_string());
        let is_plain = authority.parse::<Uri>().is_ok_and(|uri| uri.scheme_str() == Some("http"));
        if !is_plain {
            return Err(Invalid::new(
                "jwt_authority",
                authority,
                "a URL such as http://gateway.openfaas:8080",
            ));
        }
        let name = get("OPENFAAS_NAME");
        let name = name.ok_or_else(|| Invalid::new("OPENFAAS_NAME", "", "the function's name"))?;
        let authority = authority.trim_end_matches('/').to_string();
        let (debug, namespace) = (flag("jwt_auth_debug"), get("OPENFAAS_NAMESPACE"));
        Ok(Some(Self { debug, authority, name, namespace }))
    }
}

/// Why tokens can't be checked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JwtError {
    /// There is no namespace to look for in tokens.
    #[error("OPENFAAS_NAMESPACE is \"\", and {NAMESPACE_FILE} can't be read: {0}")]
    Namespace(std::io::Error),
    /// The issuer's keys can't be fetched.
    #[error("the keys of jwt_auth can't be fetched: {0}")]
    Fetch(#[from] FetchError),
}

/// Why a request is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    /// It has no token.
    #[error("Bearer must be present in Authorization header")]
    NoToken,
    /// Its token is not one of the issuer's, or not for here, or not for now.
    #[error("failed to parse JWT token: {0}")]
    Token(String),
    /// Its token is good, and not for this function.
    #[error("insufficient permissions")]
    Permissions,
}

impl Denied {
    /// What the client is told.
    pub(crate) fn answer(&self) -> Response<Answer> {
        let status = match self {
            Self::NoToken | Self::Token(_) => StatusCode::UNAUTHORIZED,
            Self::Permissions => StatusCode::FORBIDDEN,
        };
        let mut answer = text(status, "text/plain; charset=utf-8", format!("{self}\n"));
        let headers = answer.headers_mut();
        headers.insert(INTERNAL, HeaderValue::from_static("faas-middleware"));
        if status == StatusCode::UNAUTHORIZED {
            let realm = HeaderValue::from_static("Bearer realm=IAM function invoke");
            headers.insert(header::WWW_AUTHENTICATE, realm);
        }
        answer
    }
}

#[derive(Debug, Deserialize)]
struct Claims {
    #[serde(default)]
    function: Permissions,
}

/// Patterns of `namespace:name`, with `*` for anything.
#[derive(Debug, Default, Deserialize)]
struct Permissions {
    #[serde(default)]
    permissions: Vec<String>,
    #[serde(default)]
    audience: Vec<String>,
}

impl Permissions {
    fn allow(&self, function: &str) -> bool {
        let lists = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, function));
        (self.audience.is_empty() || lists(&self.audience)) && lists(&self.permissions)
    }
}

/// Whether all of `text` is as `pattern` says.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(start) else { return false };
    let mut pieces: Vec<&str> = rest.split('*').collect();
    let end = pieces.pop().unwrap_or_default();
    let mut text = text;
    for piece in pieces {
        let Some((_, after)) = text.split_once(piece) else { return false };
        text = after;
    }
    text.ends_with(end)
}

/// Checks tokens.
#[derive(Debug)]
pub(crate) struct Authenticator {
    config: JwtConfig,
    /// `namespace:name`.
    function: String,
    keys: RwLock<Arc<Keys>>,
    /// When keys were last asked for; held while they are.
    refreshed: tokio::sync::Mutex<Instant>,
    /// When the last refusal was logged for want of keys.
    complained: Mutex<Option<Instant>>,
}

impl Authenticator {
    /// Fetches the issuer's keys, and from then on keeps them up to date. Inside a runtime only.
    pub(crate) async fn start(config: JwtConfig) -> Result<Arc<Self>, JwtError> {
        let namespace = match &config.namespace {
            Some(namespace) => namespace.clone(),
            None => std::fs::read_to_string(NAMESPACE_FILE).map_err(JwtError::Namespace)?.trim().to_string(),
        };
        let keys = Keys::fetch(&config.authority).await?;
        if config.debug {
            log!("[JWT Auth] Issuer: {}\tkeys: {}", keys.issuer, keys.names().join(" "));
        }
        let authenticator = Arc::new(Self {
            function: format!("{namespace}:{}", config.name),
            config,
            keys: RwLock::new(Arc::new(keys)),
            refreshed: tokio::sync::Mutex::new(Instant::now()),
            complained: Mutex::new(None),
        });
        tokio::spawn(Arc::clone(&authenticator).keep_fresh());
        Ok(authenticator)
    }

    /// Lets a request with a good token through, and notes in its headers how long that took.
    pub(crate) async fn check(&self, headers: &mut HeaderMap) -> Result<(), Denied> {
        let started = Instant::now();
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = value.map(|value| value.strip_prefix("Bearer ").unwrap_or(value));
        let token = token.filter(|token| !token.is_empty()).ok_or(Denied::NoToken)?;
        let outcome = self.verify(token).await;
        if let (true, Err(denied)) = (self.config.debug, &outcome) {
            log!("[JWT Auth] {}: {denied}", self.function);
        }
        outcome?;
        if let Ok(value) = HeaderValue::try_from(format!("{:.6}", started.elapsed().as_secs_f64())) {
            headers.insert(AUTH_SECONDS, value);
        }
        Ok(())
    }

    async fn verify(&self, token: &str) -> Result<(), Denied> {
        let invalid = |error: jsonwebtoken::errors::Error| Denied::Token(error.to_string());
        let head = decode_header(token).map_err(invalid)?;
        let name = head.kid.ok_or_else(|| Denied::Token("it names no key".to_string()))?;
        let mut keys = self.keys();
        if !keys.has(&name) {
            keys = self.refresh(PAUSE).await;
        }
        let key = keys.get(&name, head.alg);
        let key = key.ok_or_else(|| Denied::Token(format!("invalid kid: {name:?}")))?;
        let mut validation = Validation::new(head.alg);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.set_issuer(&[&keys.issuer]);
        // The gateway is who tokens are for, and it is the issuer.
        validation.set_audience(&[&keys.issuer]);
        let claims = decode::<Claims>(token, key, &validation).map_err(invalid)?.claims;
        if claims.function.allow(&self.function) { Ok(()) } else { Err(Denied::Permissions) }
    }

    fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The keys, fetched again unless that was done less than `pause` ago. One request fetches for all that wait.
    async fn refresh(&self, pause: Duration) -> Arc<Keys> {
        let mut refreshed = self.refreshed.lock().await;
        if refreshed.elapsed() >= pause {
            match Keys::fetch(&self.config.authority).await {
                Ok(keys) => *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys),
                // The old ones are as good as before.
                Err(error) => self.complain(&error),
            }
            *refreshed = Instant::now();
        }
        self.keys()
    }

    fn complain(&self, error: &FetchError) {
        let mut complained = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        if complained.is_none_or(|at| at.elapsed() >= REFRESH) {
            *complained = Some(Instant::now());
            log!("[JWT Auth] can't fetch keys: {error}");
        }
    }

    async fn keep_fresh(self: Arc<Self>) {
        loop {
            tokio::time::sleep(REFRESH).await;
            self.refresh(REFRESH / 2).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_has_to_match_the_whole_name() {
        for (pattern, name, wanted) in [
            ("*", "ns:fn", true),
            ("ns:*", "ns:fn", true),
            ("ns:*", "other-ns:fn", false),
            ("ns:fn", "ns:fn", true),
            ("ns:fn", "ns:fn-2", false),
            ("*:fn", "ns:fn", true),
            ("n*:f*n", "ns:fooon", true),
            ("n*s:*a*b", "ns:xaxb", true),
            ("n*s:*a*b", "ns:xbxa", false),
            ("ab*ba", "aba", false),
            ("ns:f.", "ns:fn", false),
            ("", "ns:fn", false),
        ] {
            assert_eq!(matches(pattern, name), wanted, "{pattern} {name}");
        }
    }

    #[test]
    fn permissions_are_needed_and_an_audience_only_narrows_them() {
        let permissions = |permissions: &[&str], audience: &[&str]| Permissions {
            permissions: permissions.iter().map(ToString::to_string).collect(),
            audience: audience.iter().map(ToString::to_string).collect(),
        };
        assert!(permissions(&["ns:*"], &[]).allow("ns:fn"));
        assert!(permissions(&["*"], &["ns:fn"]).allow("ns:fn"));
        assert!(!permissions(&["*"], &["ns:other"]).allow("ns:fn"));
        assert!(!permissions(&[], &["ns:fn"]).allow("ns:fn"));
    }

    #[test]
    fn without_jwt_auth_anyone_may_call_and_with_it_a_name_is_needed() {
        let read = |pairs: &[(&str, &str)]| {
            let find =
                |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
            JwtConfig::read(find)
        };
        assert_eq!(read(&[("OPENFAAS_NAME", "fn")]).unwrap(), None);
        assert!(read(&[("jwt_auth", "true")]).is_err());
        let config = read(&[("jwt_auth", "1"), ("OPENFAAS_NAME", "fn")]).unwrap().unwrap();
        assert_eq!(config.authority, AUTHORITY);
        let local = [("jwt_auth", "true"), ("jwt_auth_local", "true"), ("OPENFAAS_NAME", "fn")];
        assert_eq!(read(&local).unwrap().unwrap().authority, LOCAL_AUTHORITY);
        assert!(read(&[local.as_slice(), &[("jwt_authority", "https://x")]].concat()).is_err());
    }
}
