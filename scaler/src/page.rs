//! The web page `/ui`: its files, built in, and the routes that serve them.
//!
//! One page for all servers that answer `/v1/overview` and `/v1/decisions`. It shows and changes nothing, and it loads nothing
//! from elsewhere: what a browser may do with it is in `POLICY`.

use axum::Router;
use axum::extract::Path;
use axum::http::header::{self, HeaderMap, HeaderName};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// Only this server's own files and answers, in no frame, and no text ever becomes HTML: names come from outside.
const POLICY: &str = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

/// What goes with every file, besides its type and tag.
const HEADERS: [(HeaderName, HeaderValue); 5] = [
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    // Kept, and asked for again each time: another version has the same names.
    (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
];

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// A file of the page.
#[derive(Clone, Copy, Debug)]
struct File {
    name: &'static str,
    kind: &'static str,
    content: &'static str,
}

macro_rules! files {
    ($($kind:ident $name:literal),* $(,)?) => {
        [$(File { name: $name, kind: $kind, content: include_str!(concat!("../page/", $name)) }),*]
    };
}

const FILES: [File; 12] = files![
    HTML "index.html",
    CSS "style.css",
    SVG "icon.svg",
    SCRIPT "main.js",
    SCRIPT "source.js",
    SCRIPT "history.js",
    SCRIPT "words.js",
    SCRIPT "dom.js",
    SCRIPT "functions.js",
    SCRIPT "gpus.js",
    SCRIPT "chart.js",
    SCRIPT "decisions.js",
];

/// `/ui/` and what it consists of; `/` and `/ui` lead there.
pub fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        // Relative, so that it works behind a proxy that puts something before the path.
        .route("/", get(|| async { to("ui/") }))
        .route("/ui", get(|| async { to("ui/") }))
        .route("/ui/", get(|headers: HeaderMap| async move { answer("index.html", &headers) }))
        .route(
            "/ui/{file}",
            get(|Path(file): Path<String>, headers: HeaderMap| async move { answer(&file, &headers) }),
        )
}

fn to(place: &'static str) -> Response {
    (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, place)]).into_response()
}

fn answer(name: &str, asked: &HeaderMap) -> Response {
    let Some(file) = FILES.iter().find(|file| file.name == name) else {
        return (StatusCode::NOT_FOUND, "no such file of the page\n").into_response();
    };
    let tag = file.tag();
    let kept = asked.get(header::IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
    let is_known =
        kept.is_some_and(|tags| tags.split(',').any(|kept| kept.trim().trim_start_matches("W/") == tag));
    let mut response = if is_known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, file.kind)], file.content).into_response()
    };
    let headers = response.headers_mut();
    headers.extend(HEADERS);
    headers.extend(HeaderValue::try_from(tag).ok().map(|tag| (header::ETAG, tag)));
    response
}

impl File {
    /// Another one for another content: FNV-1a.
    fn tag(&self) -> String {
        let hash = self.content.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        format!("\"{hash:016x}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_of_the_folder_are_built_in() {
        let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/page")).unwrap();
        let mut there: Vec<_> =
            folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let mut built: Vec<_> = FILES.iter().map(|file| file.name.to_string()).collect();
        there.sort();
        built.sort();
        assert_eq!(built, there);
    }

    #[test]
    fn what_a_browser_has_is_not_sent_again() {
        let first = answer("main.js", &HeaderMap::new());
        assert_eq!(first.status(), StatusCode::OK);
        let tag = first.headers()[header::ETAG].clone();
        let mut asked = HeaderMap::new();
        asked.insert(
            header::IF_NONE_MATCH,
            HeaderValue::from_str(&format!("\"x\", W/{}", tag.to_str().unwrap())).unwrap(),
        );
        let second = answer("main.js", &asked);
        assert_eq!((second.status(), &second.headers()[header::ETAG]), (StatusCode::NOT_MODIFIED, &tag));
        assert_eq!(answer("style.css", &asked).status(), StatusCode::OK);
        assert_eq!(answer("../Cargo.toml", &asked).status(), StatusCode::NOT_FOUND);
    }
}
