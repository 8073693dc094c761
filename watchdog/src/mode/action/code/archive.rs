//! Walks through an action's ZIP archive, within bounds. It never gives a path that leads out of a folder, never a link, and
//! never more bytes or names than it may. It writes nothing.

use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};

use zip::ZipArchive;
use zip::result::ZipError;

/// Signature of an entry in the central directory (PKWARE APPNOTE, 4.3.12).
const ENTRY: &[u8] = b"PK\x01\x02";
/// Signature of the end of the central directory, with which an empty archive starts (4.3.16).
const END: &[u8] = b"PK\x05\x06";
/// Signature of an entry's own head, with which any other starts (4.3.7).
const HEAD: &[u8] = b"PK\x03\x04";

/// What an archive may become when it is unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of all files.
    pub bytes: u64,
    /// Most names in the paths of all entries: each may be a file or a folder of its own.
    pub names: usize,
}

/// Why an archive can't be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum BadArchive {
    /// It ends early, points out of itself, or is packed in a way that is not known.
    #[error("the archive can't be read: {0}")]
    Unreadable(#[from] ZipError),
    /// An entry's name leads out of the folder.
    #[error("the archive has an entry {0:?}, which leads out of it")]
    Path(String),
    /// An entry is a link, which could lead anywhere.
    #[error("the archive has a link {0:?}, allowed are files and folders")]
    Link(PathBuf),
    /// An entry is damaged, or can't be written.
    #[error("{0:?} can't be unpacked: {1}")]
    Entry(PathBuf, io::Error),
    /// An entry's size is not what the archive says it is.
    #[error("{0:?} does not have the size that the archive says")]
    Size(PathBuf),
    /// It is larger than it may be.
    #[error("the archive has more than {0} bytes when it is unpacked")]
    TooLarge(u64),
    /// It has more entries, or longer paths, than it may.
    #[error("the archive has more than {0} names in its paths")]
    TooMany(usize),
}

/// A file or a folder of an archive.
#[allow(missing_debug_implementations)] // A reader has nothing to show.
pub struct Entry<'a> {
    /// Its path, below the archive's folder: names only.
    pub path: &'a Path,
    /// What is in it; `None` for a folder.
    pub content: Option<&'a mut dyn Read>,
    /// Its permissions.
    pub mode: u32,
}

/// Whether `bytes` look like an archive.
pub(crate) fn is_archive(bytes: &[u8]) -> bool {
    bytes.starts_with(HEAD) || bytes.starts_with(END)
}

/// Gives each entry to `place`, which reads its content to the end.
pub fn unpack(
    bytes: &[u8],
    limits: Limits,
    mut place: impl FnMut(Entry<'_>) -> io::Result<()>,
) -> Result<(), BadArchive> {
    // The directory is read as a whole, and no entry is without this: there are not more of them.
    if bytes.windows(ENTRY.len()).filter(|window| *window == ENTRY).count() > limits.names {
        return Err(BadArchive::TooMany(limits.names));
    }
    let mut archive = ZipArchive::new(Cursor::new(bytes))?;
    let (mut bytes_left, mut names_left) = (limits.bytes, limits.names);
    for number in 0..archive.len() {
        let mut file = archive.by_index(number)?;
        let path = inside(&file)?;
        names_left =
            names_left.checked_sub(path.components().count()).ok_or(BadArchive::TooMany(limits.names))?;
        // Archives of other systems have none.
        let mode = file.unix_mode().map_or(0o644, |mode| mode & 0o777 | 0o600);
        if file.is_dir() {
            let entry = Entry { path: &path, content: None, mode };
            place(entry).map_err(|error| BadArchive::Entry(path, error))?;
            continue;
        }
        let size = file.size();
        bytes_left = bytes_left.checked_sub(size).ok_or(BadArchive::TooLarge(limits.bytes))?;
        // What the archive says of the size may be a lie: one more byte tells.
        let mut content = (&mut file).take(size.saturating_add(1));
        let placed = place(Entry { path: &path, content: Some(&mut content), mode });
        let rest = content.limit();
        placed.map_err(|error| BadArchive::Entry(path.clone(), error))?;
        if rest != 1 {
            return Err(BadArchive::Size(path));
        }
    }
    Ok(())
}

/// The path of an entry, if it stays in the folder and is no link.
fn inside<R: Read>(file: &zip::read::ZipFile<'_, R>) -> Result<PathBuf, BadArchive> {
    let outside = || {
        let name = String::from_utf8_lossy(file.name_raw());
        BadArchive::Path(name.chars().take(80).collect())
    };
    let path = file.enclosed_name().ok_or_else(outside)?;
    if file.is_symlink() {
        return Err(BadArchive::Link(path));
    }
    if path.as_os_str().is_empty() && !file.is_dir() {
        return Err(outside());
    }
    Ok(path)
}

#[cfg(test)]
mod tests;
