//! What pages say of Helm: each command renders, and each Deployment is one.

use std::fs;
use std::path::{Path, PathBuf};

use tests::helm::{Helm, chart};
use tests::markdown::blocks;

/// Pages with commands of Helm.
fn pages() -> Vec<PathBuf> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("docs");
    let pages = fs::read_dir(docs).unwrap().map(|entry| entry.unwrap().path());
    let charts = ["gpufn", "gpufn-node", "gpufn-scaler"].map(|name| chart(name).join("README.md"));
    pages.filter(|path| path.extension().is_some_and(|kind| kind == "md")).chain(charts).collect()
}

/// Commands of `page` that install or upgrade, whole where they go over several lines.
fn commands(page: &str) -> Vec<String> {
    let joined = blocks(page, "console").concat().replace("\\\n", " ");
    let lines = joined.lines().filter_map(|line| line.strip_prefix("$ helm ")).map(ToString::to_string);
    lines.filter(|line| line.starts_with("install ") || line.starts_with("upgrade ")).collect()
}

#[test]
#[ignore = "needs Helm: make test-charts"]
fn every_command_of_the_pages_renders_the_chart_that_it_names() {
    let folder = Helm::installed().with_dependencies("gpufn").unwrap();
    let mut count = 0;
    for page in pages() {
        for command in commands(&fs::read_to_string(&page).unwrap()) {
            let (_, rest) = command.split_once(' ').unwrap();
            let rest = rest
                .replace(" charts/", " ./")
                .replace(" --create-namespace", "")
                .replace(" --reuse-values", "");
            let rendered = Helm::installed().shell(&format!("template {rest}"), folder.path());
            let rendered =
                rendered.unwrap_or_else(|error| panic!("{}: {command}: {error:#}", page.display()));
            // A shell without the quotes would take the backslash away.
            if let Some((key, value)) = rest.split("nodeSelector.").nth(1).and_then(|set| set.split_once('='))
            {
                let wanted = format!("{}: \"{}\"", key.replace('\\', ""), value.trim_end_matches('\''));
                assert!(rendered.contains(&wanted), "{wanted}: {rendered}");
            }
            Helm::installed()
                .validate("1.36.0", &rendered)
                .unwrap_or_else(|error| panic!("{command}: {error:#}"));
            count += 1;
        }
    }
    assert!(count >= 7, "{count}");
}

#[test]
#[ignore = "needs Helm: make test-charts"]
fn every_deployment_of_the_pages_is_one_that_kubernetes_knows() {
    let mut count = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for block in blocks(&text, "yaml").iter().filter(|block| block.contains("kind: Deployment")) {
            Helm::installed()
                .validate("1.36.0", block)
                .unwrap_or_else(|error| panic!("{}: {error:#}", page.display()));
            count += 1;
        }
    }
    assert!(count > 0);
}
