//! Mode `static`: files of one folder, as Go's file server gives them. It reads nothing outside of the folder unless a
//! link in it leads there, and it writes nothing.

use std::fs::Metadata;
use std::io::{self, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::{Body, Frame, Incoming};
use std::task::{Context, Poll, ready};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt, ReadBuf};

use crate::answer::{Answer, empty, text};
use crate::exchange::Exchange;
use crate::mode::fork::cgi::decoded;
use crate::mode::http::Cut;

mod date;
mod listing;

mod range;

use range::{Part, part};

/// Read from a file at once.
const BLOCK: usize = 64 << 10;

/// Answers from files.
#[derive(Debug)]
pub(crate) struct FilesMode {
    root: PathBuf,
}

impl FilesMode {
    /// Files of the folder `root`.
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The file that `request` names.
    pub(crate) async fn answer(&self, request: &Request<Incoming>, exchange: Exchange) -> Response<Answer> {
        let answer = match self.find(request).await {
            Ok(answer) => answer,
            Err(error) => return finish(refused(&error), exchange),
        };
        let (parts, body) = answer.into_parts();
        match body {
            Content::Whole(body) => finish(Response::from_parts(parts, body), exchange),
            Content::File(mut body) => {
                body.open = Some((exchange, parts.status));
                Response::from_parts(parts, Answer::Other(Box::into_pin(body)))
            }
        }
    }

    async fn find(&self, request: &Request<Incoming>) -> io::Result<Response<Content>> {
        let target = request.uri().path();
        if target.ends_with("/index.html") {
            return Ok(redirect("./", request.uri().query()));
        }
        let Some(path) = self.path(target) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let metadata = tokio::fs::metadata(&path).await?;
        let is_folder = target.ends_with('/');
        let name = target.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        match (metadata.is_dir(), is_folder) {
            (true, false) => return Ok(redirect(&format!("{name}/"), request.uri().query())),
            (false, true) => return Ok(redirect(&format!("../{name}"), request.uri().query())),
            (false, false) => return file(&path, &metadata, request).await,
            (true, true) => {}
        }
        let index = path.join("index.html");
        if let Ok(metadata) = tokio::fs::metadata(&index).await {
            return file(&index, &metadata, request).await;
        }
        let html =
            tokio::task::spawn_blocking(move || listing::html(&path)).await.map_err(io::Error::other)??;
        let answer = text(StatusCode::OK, "text/html; charset=utf-8", html);
        Ok(answer.map(Content::Whole))
    }

    /// The path that a target names; `None` if none can have that name.
    fn path(&self, target: &str) -> Option<PathBuf> {
        let decoded = decoded(target).ok()?;
        let mut path = self.root.clone();
        for name in decoded.split(|byte| *byte == b'/') {
            match name {
                b"" | b"." => {}
                // Above the root is the root.
                b".." if path == self.root => {}
                b".." => drop(path.pop()),
                name => path.push(std::ffi::OsStr::from_bytes(name)),
            }
        }
        Some(path)
    }
}

/// What is answered.
enum Content {
    Whole(Answer),
    File(Box<FileBody>),
}

fn finish(answer: Response<Answer>, mut exchange: Exchange) -> Response<Answer> {
    let length = answer.body().size_hint().exact().unwrap_or_default();
    exchange.add_bytes(usize::try_from(length).unwrap_or(usize::MAX));
    exchange.finish(answer.status());
    answer
}

fn refused(error: &io::Error) -> Response<Answer> {
    let (status, words) = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename => {
            (StatusCode::NOT_FOUND, "404 page not found\n")
        }
        io::ErrorKind::PermissionDenied => (StatusCode::FORBIDDEN, "403 Forbidden\n"),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "500 Internal Server Error\n"),
    };
    let mut answer = text(status, "text/plain; charset=utf-8", words);
    answer.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

fn redirect(to: &str, query: Option<&str>) -> Response<Content> {
    let to = query.map_or_else(|| to.to_string(), |query| format!("{to}?{query}"));
    let mut answer = empty(StatusCode::MOVED_PERMANENTLY);
    if let Ok(to) = to.parse() {
        answer.headers_mut().insert(header::LOCATION, to);
    }
    answer.map(Content::Whole)
}

async fn file(
    path: &Path,
    metadata: &Metadata,
    request: &Request<Incoming>,
) -> io::Result<Response<Content>> {
    let mut file = File::open(path).await?;
    let modified = metadata.modified().ok();
    let mut headers = HeaderMap::new();
    let stamp = modified.map(date::http_date);
    if let Some(Ok(value)) = stamp.as_deref().map(str::parse) {
        headers.insert(header::LAST_MODIFIED, value);
    }
    if is_known(request.headers(), modified) {
        return Ok(with(StatusCode::NOT_MODIFIED, headers, Content::Whole(Answer::Empty)));
    }
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CONTENT_TYPE, media_type(path, &mut file).await?);
    let size = metadata.len();
    let wanted = request.headers().get(header::RANGE).and_then(|value| value.to_str().ok());
    let wanted = wanted.filter(|_| is_same(request.headers(), stamp.as_deref()));
    let (status, start, length) = match part(wanted, size) {
        Part::All => (StatusCode::OK, 0, size),
        Part::Of(start, length) => {
            headers.insert(
                header::CONTENT_RANGE,
                value(&format!("bytes {start}-{}/{size}", start + length - 1)),
            );
            (StatusCode::PARTIAL_CONTENT, start, length)
        }
        Part::None => {
            headers.insert(header::CONTENT_RANGE, value(&format!("bytes */{size}")));
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            let words = Answer::Text(Some("invalid range: failed to overlap\n".into()));
            return Ok(with(StatusCode::RANGE_NOT_SATISFIABLE, headers, Content::Whole(words)));
        }
    };
    headers.insert(header::CONTENT_LENGTH, length.into());
    if request.method() == Method::HEAD || length == 0 {
        return Ok(with(status, headers, Content::Whole(Answer::Empty)));
    }
    file.seek(SeekFrom::Start(start)).await?;
    let space = vec![0; BLOCK].into_boxed_slice();
    Ok(with(status, headers, Content::File(Box::new(FileBody { file, space, left: length, open: None }))))
}

fn with(status: StatusCode, headers: HeaderMap, content: Content) -> Response<Content> {
    let mut answer = Response::new(content);
    *answer.status_mut() = status;
    *answer.headers_mut() = headers;
    answer
}

/// Digits and ASCII words are always a value.
fn value(words: &str) -> HeaderValue {
    HeaderValue::from_str(words).unwrap_or(HeaderValue::from_static(""))
}

/// Whether the client has the file already (RFC 9110, 13.1.3).
fn is_known(headers: &HeaderMap, modified: Option<SystemTime>) -> bool {
    let since = headers.get(header::IF_MODIFIED_SINCE).and_then(|value| date::parse(value.to_str().ok()?));
    let modified = modified.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.zip(modified).is_some_and(|(since, modified)| modified.as_secs() <= since)
}

/// Whether the client's part belongs to this file (RFC 9110, 13.1.5).
fn is_same(headers: &HeaderMap, stamp: Option<&str>) -> bool {
    headers
        .get(header::IF_RANGE)
        .is_none_or(|value| stamp.is_some_and(|stamp| value.as_bytes() == stamp.as_bytes()))
}

/// By the name, else by whether the beginning is text.
async fn media_type(path: &Path, file: &mut File) -> io::Result<HeaderValue> {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let known = match extension.to_ascii_lowercase().as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "json" => "application/json",
        "xml" => "text/xml; charset=utf-8",
        "txt" => "text/plain; charset=utf-8",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "ico" => "image/x-icon",
        "pdf" => "application/pdf",
        "wasm" => "application/wasm",
        _ => "",
    };
    if !known.is_empty() {
        return Ok(HeaderValue::from_static(known));
    }
    let mut beginning = [0; 512];
    let count = file.read(&mut beginning).await?;
    let is_text = std::str::from_utf8(&beginning[..count])
        .map_or_else(|error| error.error_len().is_none(), |_| true)
        && !beginning[..count].iter().any(|byte| matches!(byte, 0..=8 | 0x0e..=0x1a | 0x1c..=0x1f));
    let found = if is_text { "text/plain; charset=utf-8" } else { "application/octet-stream" };
    Ok(HeaderValue::from_static(found))
}

/// A part of a file on its way to the client.
#[derive(Debug)]
struct FileBody {
    file: File,
    space: Box<[u8]>,
    left: u64,
    open: Option<(Exchange, StatusCode)>,
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = &mut *self;
        let Some((exchange, _)) = &mut this.open else { return Poll::Ready(None) };
        let most = usize::try_from(this.left).unwrap_or(usize::MAX).min(this.space.len());
        let mut buffer = ReadBuf::new(&mut this.space[..most]);
        let read = ready!(Pin::new(&mut this.file).poll_read(cx, &mut buffer));
        let count = buffer.filled().len();
        if read.is_err() || count == 0 {
            let error = read.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
            this.open = None;
            return Poll::Ready(Some(Err(Cut::Io(error))));
        }
        let bytes = Bytes::copy_from_slice(buffer.filled());
        exchange.add_bytes(count);
        this.left -= count as u64;
        if this.left == 0
            && let Some((exchange, status)) = this.open.take()
        {
            exchange.finish(status);
        }
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.open.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_target_leaves_the_folder() {
        let mode = FilesMode::new(PathBuf::from("/srv/public"));
        for (target, wanted) in [
            ("/", Some("/srv/public")),
            ("/a%20b/c.txt", Some("/srv/public/a b/c.txt")),
            ("/../../etc/passwd", Some("/srv/public/etc/passwd")),
            ("/a/%2e%2e/%2e%2e/etc", Some("/srv/public/etc")),
            ("/a/..%2f..%2fetc", Some("/srv/public/etc")),
            ("/%00", None),
        ] {
            assert_eq!(mode.path(target), wanted.map(PathBuf::from), "{target}");
        }
    }
}
