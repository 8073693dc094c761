//! A folder as HTML, as Go's file server lists it. Pure but for reading the folder.

use std::io;
use std::path::Path;

/// The names in `folder`, each a link.
pub(crate) fn html(folder: &Path) -> io::Result<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let slash = if entry.file_type()?.is_dir() { "/" } else { "" };
        names.push(format!("{}{slash}", entry.file_name().to_string_lossy()));
    }
    names.sort_unstable();
    let lines = names.iter().map(|name| format!("<a href=\"{}\">{}</a>\n", link(name), escaped(name)));
    let body: String = lines.collect();
    Ok(format!(
        "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n{body}</pre>\n"
    ))
}

/// A name as the path of a link. One with a colon must not be taken for a scheme.
fn link(name: &str) -> String {
    let mut path = String::new();
    if name.split('/').next().is_some_and(|first| first.contains(':')) {
        path.push_str("./");
    }
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/:@!$()*+,;=".contains(&byte) {
            path.push(char::from(byte));
        } else {
            let digit = |value: u8| char::from_digit(value.into(), 16).unwrap_or('0').to_ascii_uppercase();
            path.extend(['%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
    path
}

fn escaped(name: &str) -> String {
    let mut text = String::new();
    for letter in name.chars() {
        match letter {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '"' => text.push_str("&#34;"),
            '\'' => text.push_str("&#39;"),
            letter => text.push(letter),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_links_and_no_markup() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b&<i>.txt", "a b"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        let html = html(folder.path()).unwrap();
        let wanted = "<pre>\n<a href=\"a%20b\">a b</a>\n<a href=\"b%26%3Ci%3E.txt\">b&amp;&lt;i&gt;.txt</a>\n\
                      <a href=\"sub/\">sub/</a>\n</pre>\n";
        assert!(html.ends_with(wanted), "{html}");
    }

    #[test]
    fn a_name_is_no_scheme() {
        assert_eq!(link("javascript:x"), "./javascript:x");
    }
}
