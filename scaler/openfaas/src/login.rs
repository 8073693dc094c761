//! Who may use `/system/…`: whoever knows the password, and no web page.

use axum::body::Body;
use axum::response::Response;
use base64::Engine as _;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use crate::answers::plain;

/// A user and a password, by which clients are let in.
#[derive(Clone)]
pub struct Login {
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
}

impl core::fmt::Debug for Login {
    /// Without the password.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// The refusal of a request, if it is refused. Without a login every client is let in: an `Authorization` header is ignored
/// then.
///
/// A web page that a user visits may not change anything, though the browser can reach the address: what it sends carries
/// `Origin` (Fetch Standard, 3.1), which no client of this API does.
pub fn refusal(method: &Method, headers: &HeaderMap, login: Option<&Login>) -> Option<Box<Response>> {
    if headers.contains_key(header::ORIGIN) && !method.is_safe() {
        let why = "web pages may not change anything here (the request has an Origin)";
        return Some(Box::new(plain(StatusCode::FORBIDDEN, why)));
    }
    let is_in = login.is_none_or(|login| is_allowed(headers, login));
    (!is_in).then(|| Box::new(invalid_credentials()))
}

fn invalid_credentials() -> Response {
    let mut response = Response::new(Body::from("invalid credentials"));
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    let headers = response.headers_mut();
    headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"Restricted\""));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn is_allowed(headers: &HeaderMap, login: &Login) -> bool {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some(given) = given.and_then(|text| text.strip_prefix("Basic ")) else { return false };
    let Ok(given) = base64::engine::general_purpose::STANDARD.decode(given.trim()) else { return false };
    let wanted = format!("{}:{}", login.user, login.password);
    // All bytes are looked at whatever they are, so that the time tells nothing about the password.
    let differ = given.iter().zip(wanted.as_bytes()).fold(0, |differ, (a, b)| differ | (a ^ b));
    given.len() == wanted.len() && differ == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(method: &Method, headers: &[(header::HeaderName, &str)], login: Option<&Login>) -> Option<u16> {
        let headers =
            headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect::<HeaderMap>();
        refusal(method, &headers, login).map(|answer| answer.status().as_u16())
    }

    #[test]
    fn only_who_knows_the_password_is_let_in() {
        let login = Login { user: "admin".into(), password: "s3cret".into() };
        let with = |value| status(&Method::GET, &[(header::AUTHORIZATION, value)], Some(&login));
        assert_eq!(with("Basic YWRtaW46czNjcmV0"), None);
        for wrong in ["Basic YWRtaW46bm9wZQ==", "Basic YWRtaW46czNjcmV0YQ==", "Basic !", "Basic", "Bearer x"]
        {
            assert_eq!(with(wrong), Some(401), "{wrong}");
        }
        assert_eq!(status(&Method::GET, &[], Some(&login)), Some(401));
        assert_eq!(status(&Method::GET, &[], None), None);
        assert!(!format!("{login:?}").contains("s3cret"));
    }

    #[test]
    fn a_web_page_may_look_and_not_change() {
        let page = [(header::ORIGIN, "http://example.org")];
        assert_eq!(status(&Method::POST, &page, None), Some(403));
        assert_eq!(status(&Method::GET, &page, None), None);
    }
}
