//! The documents: their commands run, and what they link to is there.
//!
//! Blocks marked `sh` are run, in their order; those marked `console` show what is done by hand or elsewhere.
// A test ends where something is wrong with it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use std::{env, fs};

use tests::local::Local;
use tests::programs;
use tokio::process::Command;
use tokio::time::timeout;

/// Longest time that all commands of a page may take.
const PATIENCE: Duration = Duration::from_secs(120);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Markdown files of the project.
fn pages() -> Vec<PathBuf> {
    let mut pages = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                folders.push(path);
            } else if name.ends_with(".md") {
                pages.push(path);
            }
        }
    }
    pages
}

/// Lines of `text` that stand in no block.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_block = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_block ^= is_fence;
        !is_block && !is_fence
    })
}

/// Targets of the links in `line`.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

/// The anchor of a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// What is wrong with a link of `page` to `target`, if anything.
fn broken(page: &Path, target: &str) -> Option<String> {
    if target.contains("://") || target.contains("{{") {
        return None;
    }
    let (path, wanted) = target.split_once('#').unwrap_or((target, ""));
    let file = if path.is_empty() { page.to_path_buf() } else { page.parent().unwrap().join(path) };
    if !file.exists() {
        return Some(format!("{}: {target} is not there", page.display()));
    }
    let text = if wanted.is_empty() { String::new() } else { fs::read_to_string(&file).unwrap() };
    let found = prose(&text)
        .any(|line| line.starts_with('#') && anchor(line.trim_start_matches(['#', ' '])) == wanted);
    (!wanted.is_empty() && !found).then(|| format!("{}: {target} has no such heading", page.display()))
}

#[test]
fn what_documents_link_to_is_there() {
    let pages = pages();
    assert!(pages.len() > 10, "{pages:?}");
    let broken: Vec<String> = pages
        .iter()
        .flat_map(|page| {
            let text = fs::read_to_string(page).unwrap();
            let of_page = prose(&text).flat_map(links).filter_map(|target| broken(page, target));
            of_page.collect::<Vec<_>>()
        })
        .collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

/// The blocks of `page` that are marked `sh`, as one script.
fn script(page: &str) -> String {
    let blocks = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.collect()
}

#[tokio::test]
async fn the_page_for_trying_it_locally_does_what_it_says() {
    let local = Local::up().start().await;
    let commands = script(&fs::read_to_string(root().join("docs/try-locally.md")).unwrap());
    assert!(commands.lines().count() > 15, "{commands}");
    let folder = programs::built("gpufn").parent().unwrap().to_path_buf();
    let path = format!("{}:{}", folder.display(), env::var("PATH").unwrap_or_default());
    let shell = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &commands])
        .current_dir(root())
        .envs([("PATH", path), ("OPENFAAS_URL", format!("http://{}", local.address()))])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, shell).await.expect("the commands end in time").unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{errors}");
    // Both tables, the answer, and what was decided.
    assert!(said.matches("resnet50").count() > 3 && said.contains("ready for"), "{said}\n{errors}");
    local.stop().await;
}
