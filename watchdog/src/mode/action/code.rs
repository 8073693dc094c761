//! Puts an action's code where it can be run. Blocking: it writes files. What an archive holds is unpacked nowhere else
//! than in the action's own folder.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;

use super::message::{Init, Refusal};

pub(crate) mod archive;

use archive::{BadArchive, Limits};

/// What an action may be when it is unpacked: an archive can't fill the disk.
const MOST_UNPACKED: Limits = Limits { bytes: 512 << 20, names: 500_000 };

/// Writes the code of `init` into `folder`, and says what is to be run.
pub(crate) fn place(init: &Init, code: &str, folder: &Path) -> Result<PathBuf, Refusal> {
    let bytes = if init.is_binary {
        STANDARD.decode(code).map_err(|error| {
            Refusal::new(StatusCode::BAD_REQUEST, format!("cannot decode the request: {error}"))
        })?
    } else {
        code.as_bytes().to_vec()
    };
    let program = folder.join("exec");
    let placed = if init.is_binary && archive::is_archive(&bytes) {
        unpack(&bytes, folder).map_err(|error| error.to_string())
    } else {
        write(&program, &mut &bytes[..], 0o755).map_err(|error| error.to_string())
    };
    placed.map_err(|error| {
        Refusal::new(StatusCode::BAD_GATEWAY, format!("The action can't be unpacked: {error}"))
    })?;
    if !program.is_file() {
        let words = "The action failed to generate or locate a binary. See logs for details.";
        return Err(Refusal::new(StatusCode::BAD_GATEWAY, words));
    }
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).map_err(|error| {
        Refusal::new(StatusCode::BAD_GATEWAY, format!("The action can't be run: {error}"))
    })?;
    Ok(program)
}

fn unpack(bytes: &[u8], folder: &Path) -> Result<(), BadArchive> {
    archive::unpack(bytes, MOST_UNPACKED, |entry| {
        let path = folder.join(entry.path);
        match entry.content {
            None => fs::create_dir_all(path),
            Some(content) => write(&path, content, entry.mode),
        }
    })
}

fn write(path: &Path, content: &mut dyn Read, mode: u32) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = fs::File::create(path)?;
    io::copy(content, &mut file)?;
    file.set_permissions(fs::Permissions::from_mode(mode))
}
