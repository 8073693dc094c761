//! What `image` names in process mode: an executable, or a folder that `faas-cli build --shrinkwrap` made.
//!
//! Reads the Dockerfile of such a folder for its `ENV` lines only; it never builds or runs an instruction.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use gpu_share::invalid::Invalid;

use openfaas::shapes::Map;

/// How to start a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    /// Folder that it runs in.
    pub(crate) folder: PathBuf,
    /// Command line, split at spaces by the watchdog.
    pub(crate) process: String,
    /// Environment that the image brings along.
    pub(crate) env: Map,
}

/// Looks at what `image` names.
pub(crate) fn read(image: &str, env_process: &str) -> Result<Program, Invalid> {
    let path = path_of(image).ok_or_else(|| not_allowed(image))?;
    let found = std::fs::metadata(&path).map_err(|_| not_allowed(image))?;
    if found.is_dir() {
        return read_folder(image, path, env_process);
    }
    let executable = found.is_file() && found.permissions().mode() & 0o111 != 0;
    let Some(text) = path.to_str().filter(|text| executable && !text.contains(' ')) else {
        return Err(not_allowed(image));
    };
    let process = if env_process.is_empty() { text } else { env_process }.to_string();
    let folder = path.parent().unwrap_or_else(|| Path::new("/")).to_path_buf();
    Ok(Program { folder, process, env: Map::new() })
}

fn read_folder(image: &str, folder: PathBuf, env_process: &str) -> Result<Program, Invalid> {
    let text = std::fs::read_to_string(folder.join("Dockerfile")).unwrap_or_default();
    let mut env = dockerfile_env(&text);
    let own = env.remove("fprocess").or_else(|| env.remove("function_process"));
    // Its function listens where it is told to, so each replica can be told another port.
    if env.remove("listens_on").as_deref() == Some("upstream_url") {
        env.remove("upstream_url");
    }
    let process = Some(env_process.to_string()).filter(|process| !process.is_empty()).or(own);
    let process = process.ok_or_else(|| {
        Invalid::new(
            "envProcess",
            "",
            format!("a command, since {image} has no Dockerfile with ENV fprocess"),
        )
    })?;
    Ok(Program { folder, process, env })
}

fn not_allowed(image: &str) -> Invalid {
    Invalid::new("image", image, "file://PATH of an executable or folder")
}

/// The absolute path that an image names.
///
/// faas-cli takes the colon of `file://` for a registry's port and appends `:latest` to an image from a stack.yaml: a
/// tag behind a path that is not there itself is left out.
fn path_of(image: &str) -> Option<PathBuf> {
    let path = image.strip_prefix("file://").unwrap_or(image);
    let untagged = path.rsplit_once(':').map(|(path, _)| path).filter(|path| Path::new(path).exists());
    let path = Path::new(untagged.filter(|_| !Path::new(path).exists()).unwrap_or(path));
    (path.is_absolute() && !image.contains('\0')).then(|| path.to_path_buf())
}

/// What the `ENV` lines of a Dockerfile's last stage come to, with `ARG` defaults and earlier variables filled in.
pub(crate) fn dockerfile_env(text: &str) -> Map {
    let mut stages = BTreeMap::<String, Map>::new();
    let (mut env, mut args, mut stage) = (Map::new(), Map::new(), None);
    for line in joined_lines(text) {
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((&line, ""));
        match word.to_ascii_uppercase().as_str() {
            "FROM" => {
                let parts: Vec<_> = rest.split_whitespace().filter(|part| !part.starts_with("--")).collect();
                if let Some(name) = stage.take() {
                    stages.insert(name, core::mem::take(&mut env));
                }
                env = parts
                    .first()
                    .and_then(|base| stages.get(&base.to_lowercase()))
                    .cloned()
                    .unwrap_or_default();
                stage = parts.get(2).map(|name| name.to_lowercase());
            }
            "ENV" => env.extend(assignments(rest, &env, &args)),
            "ARG" if rest.contains('=') => args.extend(assignments(rest, &env, &args)),
            _ => {}
        }
    }
    env
}

/// Instructions, each on one line: comments gone, lines that end in a backslash joined with the next.
fn joined_lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut open = String::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(start) = line.strip_suffix('\\') {
            open.push_str(start);
            open.push(' ');
        } else {
            lines.push(core::mem::take(&mut open) + line);
        }
    }
    lines.extend(Some(open.trim_end().to_string()).filter(|rest| !rest.is_empty()));
    lines
}

/// `A=b C="d e"`, or the older `A b c` of one variable.
fn assignments(text: &str, env: &Map, args: &Map) -> Vec<(String, String)> {
    let words = words(text);
    let legacy = !words.first().is_some_and(|word| word.contains('='));
    if legacy {
        let (name, value) = text.trim().split_once(char::is_whitespace).unwrap_or((text, ""));
        return vec![(name.into(), fill_in(value.trim(), env, args))];
    }
    words
        .iter()
        .filter_map(|word| word.split_once('='))
        .map(|(name, value)| (name.to_string(), fill_in(value, env, args)))
        .collect()
}

/// Splits at spaces outside quotes; quotes are taken off, a backslash keeps the next character.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut inside) = (Vec::new(), String::new(), None, false);
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (character, quote) {
            ('\\', None | Some('"')) => word.extend(characters.next()),
            ('"' | '\'', None) => (quote, inside) = (Some(character), true),
            (end, Some(open)) if end == open => quote = None,
            (space, None) if space.is_whitespace() => {
                if inside || !word.is_empty() {
                    words.push(core::mem::take(&mut word));
                }
                inside = false;
            }
            (other, _) => word.push(other),
        }
    }
    words.extend((inside || !word.is_empty()).then_some(word));
    words
}

/// Replaces `$NAME`, `${NAME}` and `${NAME:-default}`; what is unknown is empty, as Docker has it.
fn fill_in(value: &str, env: &Map, args: &Map) -> String {
    let mut filled = String::new();
    let mut rest = value;
    while let Some((before, after)) = rest.split_once('$') {
        filled.push_str(before);
        let (name, default, tail) = variable(after);
        match env.get(name).or_else(|| args.get(name)).filter(|found| !found.is_empty()) {
            Some(found) => filled.push_str(found),
            None if name.is_empty() => filled.push('$'),
            None => filled.push_str(default),
        }
        rest = tail;
    }
    filled + rest
}

/// Name, default and what follows, of text behind a `$`.
fn variable(text: &str) -> (&str, &str, &str) {
    if let Some((inner, tail)) = text.strip_prefix('{').and_then(|text| text.split_once('}')) {
        let (name, default) = inner.split_once(":-").unwrap_or((inner, ""));
        return (name, default, tail);
    }
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
    (&text[..end], "", &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(text: &str) -> Vec<(String, String)> {
        dockerfile_env(text).into_iter().collect()
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.into(), value.into())
    }

    #[test]
    fn the_last_stage_counts_and_inherits_what_it_is_built_from() {
        let text = "FROM watchdog AS watchdog\nENV lost=1\nFROM --platform=x python AS build\nENV A=1\n\
                    FROM build\nENV fprocess=\"python index.py\" mode=http\nENV upstream_url http://127.0.0.1:5000\n";
        let want = [
            pair("A", "1"),
            pair("fprocess", "python index.py"),
            pair("mode", "http"),
            pair("upstream_url", "http://127.0.0.1:5000"),
        ];
        assert_eq!(env(text), want);
    }

    #[test]
    fn lines_are_joined_and_variables_filled_in() {
        let text =
            "# c\nARG PORT=5000\nENV A=x \\\n  # inside\n B=${A:-y}-$PORT\nENV C=$B/${NONE:-z} D='a b'\n";
        assert_eq!(env(text), [pair("A", "x"), pair("B", "y-5000"), pair("C", "y-5000/z"), pair("D", "a b")]);
    }

    #[test]
    fn an_image_of_a_registry_is_refused_with_what_is_allowed() {
        let error = read("ghcr.io/openfaas/figlet:latest", "").unwrap_err().to_string();
        let want =
            "image is \"ghcr.io/openfaas/figlet:latest\", allowed is file://PATH of an executable or folder";
        assert_eq!(error, want);
        assert!(read("relative/path", "").is_err());
        let text = tempfile::NamedTempFile::new().unwrap();
        assert!(read(text.path().to_str().unwrap(), "").is_err(), "a file that is not executable");
    }

    #[test]
    fn an_executable_runs_itself_unless_told_otherwise() {
        assert_eq!(read("file:///bin/sh", "").unwrap().process, "/bin/sh");
        assert_eq!(read("/bin/sh", "cat -n").unwrap().process, "cat -n");
    }

    #[test]
    fn the_tag_that_faas_cli_appends_is_left_out() {
        assert_eq!(read("file:///bin/sh:latest", "").unwrap().process, "/bin/sh");
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("a:b");
        std::os::unix::fs::symlink("/bin/sh", &program).unwrap();
        let image = format!("file://{}", program.display());
        assert_eq!(read(&image, "").unwrap().process, program.display().to_string());
    }

    #[test]
    fn a_folder_without_a_command_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let image = format!("file://{}", folder.path().display());
        assert!(read(&image, "").unwrap_err().to_string().starts_with("envProcess is"));
        std::fs::write(folder.path().join("Dockerfile"), "FROM x\nENV fprocess=\"python3 index.py\"\n")
            .unwrap();
        let program = read(&image, "").unwrap();
        assert_eq!((program.process.as_str(), program.folder.as_path()), ("python3 index.py", folder.path()));
    }

    #[test]
    fn a_function_that_listens_where_it_is_told_to_has_no_port_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let image = format!("file://{}", folder.path().display());
        let fixed = "FROM x\nENV fprocess=f upstream_url=http://127.0.0.1:5000\n";
        for (dockerfile, port) in
            [(fixed.to_string(), true), (format!("{fixed}ENV listens_on=upstream_url\n"), false)]
        {
            std::fs::write(folder.path().join("Dockerfile"), dockerfile).unwrap();
            assert_eq!(read(&image, "").unwrap().env.contains_key("upstream_url"), port);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_dockerfile_makes_the_reader_panic(text in "(\\PC|\n|\\\\|\"|\\$|ENV |FROM |ARG ){0,60}") {
            dockerfile_env(&text);
        }
    }
}
