//! Renews what a document says between two markers.

use std::path::Path;

use anyhow::{Context, Result};

const BEGIN: &str = "<!-- matrix: written by `make bench-hook` -->\n";
const END: &str = "<!-- end of matrix -->";

/// Puts `text` between the markers of the document at `path`.
pub(crate) fn renew(path: &Path, text: &str) -> Result<()> {
    let old = std::fs::read_to_string(path)?;
    Ok(std::fs::write(path, between(&old, text).with_context(|| format!("no lines {BEGIN:?} and {END:?}"))?)?)
}

fn between(old: &str, text: &str) -> Option<String> {
    let start = old.find(BEGIN)? + BEGIN.len();
    let end = start + old[start..].find(END)?;
    Some(format!("{}{text}{}", &old[..start], &old[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let old = format!("a\n{BEGIN}old\n{END}\nb\n");
        let new = between(&old, "new\n").unwrap();
        assert_eq!(new, format!("a\n{BEGIN}new\n{END}\nb\n"));
        assert_eq!(between(&new, "new\n").unwrap(), new);
        assert_eq!(between("no markers", "new\n"), None);
    }

    #[test]
    fn the_documents_of_the_hook_have_the_markers() {
        assert!(between(include_str!("../../../../watchdog/hook/README.md"), "").is_some());
    }
}
