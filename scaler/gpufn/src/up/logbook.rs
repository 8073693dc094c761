//! The log of one function: the last lines of all its replicas in memory, and all of them in a file.
//!
//! Lines are numbered, so that a reader who waits for more can go on exactly where it was.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;

use openfaas::names::FunctionId;
use openfaas::shapes::LogMessage;

/// Lines kept in memory.
const LINES: usize = 5_000;
/// Bytes of text kept in memory.
const TEXT: usize = 4 << 20;
/// A log file that is larger is set aside as `….1`, over the one set aside before.
const FILE_BYTES: u64 = 16 << 20;

/// One line.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) at: OffsetDateTime,
    pub(crate) instance: Arc<str>,
    pub(crate) text: String,
}

/// The log of one function.
#[derive(Debug)]
pub(crate) struct LogBook {
    inner: Mutex<Inner>,
    /// Number of the next line.
    next: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    lines: VecDeque<Line>,
    next: u64,
    bytes: usize,
    file: Option<(PathBuf, File, u64)>,
}

impl LogBook {
    /// A log that also goes to a file at `path`, or to memory only.
    pub(crate) fn new(path: Option<&Path>) -> Self {
        let file = path.and_then(|path| match open(path) {
            Ok((file, size)) => Some((path.to_path_buf(), file, size)),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "A log file cannot be opened; lines stay in memory.");
                None
            }
        });
        Self { inner: Mutex::new(Inner { file, ..Inner::default() }), next: watch::Sender::new(0) }
    }

    /// Adds a line of a replica.
    pub(crate) fn write(&self, instance: &Arc<str>, text: String) {
        let line = Line { at: OffsetDateTime::now_utc(), instance: instance.clone(), text };
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.append_to_file(&line);
        inner.bytes += line.text.len();
        inner.lines.push_back(line);
        inner.next += 1;
        while inner.lines.len() > LINES || inner.bytes > TEXT {
            let gone = inner.lines.pop_front().map_or(0, |line| line.text.len());
            inner.bytes -= gone;
        }
        let next = inner.next;
        drop(inner);
        self.next.send_replace(next);
    }

    /// Lines from number `from` on that are still there, and the number that comes next.
    pub(crate) fn since(&self, from: u64) -> (Vec<Line>, u64) {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let first = inner.next - inner.lines.len() as u64;
        let skip = usize::try_from(from.saturating_sub(first)).unwrap_or(usize::MAX);
        (inner.lines.iter().skip(skip).cloned().collect(), inner.next)
    }

    /// Tells of every new line.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.next.subscribe()
    }
}

impl Inner {
    fn append_to_file(&mut self, line: &Line) {
        let Some((path, file, size)) = &mut self.file else { return };
        let text = format!("{} {} {}\n", timestamp(line.at), line.instance, line.text);
        if *size + text.len() as u64 > FILE_BYTES {
            let aside = path.with_extension("log.1");
            if let Ok((fresh, _)) = std::fs::rename(&*path, aside).and_then(|()| open(path)) {
                (*file, *size) = (fresh, 0);
            }
        }
        *size += text.len() as u64;
        if let Err(error) = file.write_all(text.as_bytes()) {
            tracing::warn!(path = %path.display(), %error, "A log file cannot be written; lines stay in memory.");
            self.file = None;
        }
    }
}

fn open(path: &Path) -> std::io::Result<(File, u64)> {
    path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    let file = File::options().append(true).create(true).open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

/// RFC 3339 with fraction.
pub(crate) fn timestamp(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_default()
}

/// Which lines a reader wants.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// The last so many; all of them if `None`.
    pub(crate) tail: Option<usize>,
    pub(crate) since: Option<OffsetDateTime>,
    pub(crate) instance: Option<String>,
}

impl Filter {
    /// The lines that pass, as clients read them; `tail` counts only the first time.
    pub(crate) fn apply(&mut self, id: &FunctionId, lines: Vec<Line>) -> Vec<LogMessage> {
        let mut passed: Vec<_> = lines
            .into_iter()
            .filter(|line| self.since.is_none_or(|since| line.at >= since))
            .filter(|line| self.instance.as_deref().is_none_or(|instance| *line.instance == *instance))
            .map(|line| LogMessage {
                name: id.name.clone(),
                namespace: id.namespace.clone(),
                instance: line.instance.to_string(),
                timestamp: timestamp(line.at),
                text: line.text,
            })
            .collect();
        if let Some(tail) = self.tail.take() {
            passed.drain(..passed.len().saturating_sub(tail));
        }
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_goes_on_where_it_was_and_old_lines_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b.log");
        let book = LogBook::new(Some(&path));
        let instance: Arc<str> = "i-1".into();
        for number in 0..LINES + 10 {
            book.write(&instance, number.to_string());
        }
        let (all, next) = book.since(0);
        assert_eq!((all.len(), all[0].text.as_str()), (LINES, "10"));
        book.write(&instance, "more".into());
        assert_eq!(book.since(next).0[0].text, "more");
        let file = std::fs::read_to_string(path).unwrap();
        assert_eq!(file.lines().count(), LINES + 11);
    }

    #[test]
    fn a_filter_takes_the_tail_of_one_replica() {
        let book = LogBook::new(None);
        for (instance, text) in [("a", "1"), ("b", "2"), ("a", "3"), ("a", "4")] {
            book.write(&instance.into(), text.into());
        }
        let id = FunctionId { namespace: "n".into(), name: "f".into() };
        let mut filter = Filter { tail: Some(2), instance: Some("a".into()), since: None };
        let texts: Vec<_> = filter.apply(&id, book.since(0).0).into_iter().map(|m| m.text).collect();
        assert_eq!(texts, ["3", "4"]);
    }
}
