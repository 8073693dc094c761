//! The issuer's public keys, as it publishes them. Shared secrets are not keys here: whoever checks could also sign.

use std::collections::HashMap;
use std::fmt;

use http::Uri;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;

use super::fetch::{FetchError, fetch};

/// Keys by their names.
pub(super) struct Keys {
    /// Who signs with them.
    pub(super) issuer: String,
    keys: HashMap<String, (DecodingKey, Vec<Algorithm>)>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("issuer", &self.issuer)
            .field("names", &self.names())
            .finish_non_exhaustive()
    }
}

/// What an issuer says of itself (`OpenID` Connect Discovery 1.0, section 3).
#[derive(Debug, Deserialize)]
struct Issuer {
    issuer: String,
    jwks_uri: String,
}

#[derive(Debug, Deserialize)]
struct KeySet {
    keys: Vec<Value>,
}

impl Keys {
    /// Those that the gateway at `authority` publishes now.
    pub(super) async fn fetch(authority: &str) -> Result<Self, FetchError> {
        let url = format!("{authority}/.well-known/openid-configuration");
        let issuer: Issuer = parse(&url, &fetch(&url).await?)?;
        let url = reachable(authority, &issuer.jwks_uri);
        let set: KeySet = parse(&url, &fetch(&url).await?)?;
        // A key of a kind that is not known here is no reason to refuse the others.
        let keys = set.keys.into_iter().filter_map(usable).collect();
        Ok(Self { issuer: issuer.issuer, keys })
    }

    /// Whether there is one called `name`.
    pub(super) fn has(&self, name: &str) -> bool {
        self.keys.contains_key(name)
    }

    /// The one called `name`, if it is one for `algorithm`.
    pub(super) fn get(&self, name: &str, algorithm: Algorithm) -> Option<&DecodingKey> {
        let (key, algorithms) = self.keys.get(name)?;
        algorithms.contains(&algorithm).then_some(key)
    }

    /// All names.
    pub(super) fn names(&self) -> Vec<&str> {
        self.keys.keys().map(String::as_str).collect()
    }
}

fn parse<'a, T: Deserialize<'a>>(url: &str, body: &'a [u8]) -> Result<T, FetchError> {
    serde_json::from_slice(body).map_err(|source| FetchError::Content { url: url.to_string(), source })
}

/// The gateway names itself as it is seen from outside the cluster, often by https; it has the same keys inside.
fn reachable(authority: &str, url: &str) -> String {
    match url.parse::<Uri>() {
        Ok(uri) if uri.scheme_str() == Some("http") => url.to_string(),
        Ok(uri) => format!("{authority}{}", uri.path_and_query().map_or("/", |path| path.as_str())),
        Err(_) => url.to_string(),
    }
}

/// The key with its name and what it may be used for.
fn usable(key: Value) -> Option<(String, (DecodingKey, Vec<Algorithm>))> {
    let key: Jwk = serde_json::from_value(key).ok()?;
    let of_kind = match &key.algorithm {
        AlgorithmParameters::RSA(_) => vec![
            Algorithm::RS256,
            Algorithm::RS384,
            Algorithm::RS512,
            Algorithm::PS256,
            Algorithm::PS384,
            Algorithm::PS512,
        ],
        AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
            EllipticCurve::P256 => vec![Algorithm::ES256],
            EllipticCurve::P384 => vec![Algorithm::ES384],
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(_) => vec![Algorithm::EdDSA],
        AlgorithmParameters::OctetKey(_) => return None,
    };
    let name = key.common.key_id.clone()?;
    let named = key.common.key_algorithm.map(|named| named.to_string());
    let is_named =
        |algorithm: &Algorithm| named.as_ref().is_none_or(|name| *name == format!("{algorithm:?}"));
    let algorithms: Vec<_> = of_kind.into_iter().filter(is_named).collect();
    Some((name, (DecodingKey::from_jwk(&key).ok()?, algorithms)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_shared_secret_and_an_unknown_kind_are_no_keys() {
        assert!(usable(json!({"kty": "oct", "kid": "a", "k": "c2VjcmV0"})).is_none());
        assert!(usable(json!({"kty": "new", "kid": "a"})).is_none());
        assert!(usable(json!({"kty": "RSA", "n": "AQAB", "e": "AQAB"})).is_none());
        let (name, (_, algorithms)) =
            usable(json!({"kty": "RSA", "kid": "a", "alg": "RS256", "n": "AQAB", "e": "AQAB"})).unwrap();
        assert_eq!((name.as_str(), algorithms.as_slice()), ("a", [Algorithm::RS256].as_slice()));
    }

    #[test]
    fn keys_behind_the_public_name_are_fetched_inside() {
        let authority = "http://gateway.openfaas:8080";
        assert_eq!(
            reachable(authority, "https://gw.example.com/.well-known/keys?x"),
            "http://gateway.openfaas:8080/.well-known/keys?x"
        );
        assert_eq!(reachable(authority, "http://127.0.0.1:1/keys"), "http://127.0.0.1:1/keys");
    }
}
