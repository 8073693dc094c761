//! The documents: their commands run, and what they link to is there.
//!
//! Blocks marked `sh` are run, in their order; those marked `console` show what is done by hand or elsewhere.
// A test ends where something is wrong with it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use std::{env, fs};

use gpu_share::annotations::Wish;
use gpu_share::latency::Profiles;
use gpu_share::units::Bytes;
use scaler::keda::metadata::Terms;
use serde_json::Value;
use tests::local::Local;
use tests::markdown::blocks;
use tests::programs;
use tokio::process::Command;
use tokio::time::timeout;

/// Longest time that all commands of a page may take.
const PATIENCE: Duration = Duration::from_mins(2);

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
            } else if path.extension().is_some_and(|kind| kind == "md") {
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

/// Maps below `key`, however deep.
fn below<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(members) => {
            found.extend(members.get(key).filter(|value| value.is_object()));
            members.values().for_each(|value| below(value, key, found));
        }
        Value::Array(items) => items.iter().for_each(|value| below(value, key, found)),
        _ => {}
    }
}

fn texts(map: &Value) -> BTreeMap<String, String> {
    serde_json::from_value(map.clone()).unwrap()
}

#[test]
fn annotations_and_triggers_of_the_pages_are_what_the_programs_read() {
    let (mut wishes, mut triggers) = (0, 0);
    for page in pages().iter().filter(|page| page.parent().is_some_and(|folder| folder.ends_with("docs"))) {
        let text = fs::read_to_string(page).unwrap();
        for block in blocks(&text, "yaml") {
            let object: Value = serde_yaml::from_str(block).unwrap();
            let (mut annotations, mut metadata) = (Vec::new(), Vec::new());
            below(&object, "annotations", &mut annotations);
            below(&object["spec"]["triggers"], "metadata", &mut metadata);
            for map in annotations {
                let wish = Wish::read(&texts(map), Bytes::gib(16), &Profiles::shipped());
                assert!(wish.unwrap().is_some(), "{}: {map}", page.display());
                wishes += 1;
            }
            for map in metadata {
                Terms::read("fn", &texts(map).into_iter().collect()).unwrap();
                triggers += 1;
            }
        }
    }
    assert!(wishes >= 3 && triggers >= 1, "{wishes} and {triggers}");
}

#[tokio::test]
async fn the_page_for_trying_it_locally_does_what_it_says() {
    let local = Local::up().start().await;
    let commands = blocks(&fs::read_to_string(root().join("docs/try-locally.md")).unwrap(), "sh").concat();
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
