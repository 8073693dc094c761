//! The README says what is so.

use std::collections::BTreeSet;

use crate::fixture::in_front_of;
use crate::function::Function;

const README: &str = include_str!("../../README.md");

/// Names in the first column of the table under `heading`.
fn names_under(heading: &str) -> BTreeSet<String> {
    let section = README.split(&format!("## {heading}\n")).nth(1).expect("the section is there");
    let rows =
        section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = rows.skip(2).filter_map(|row| row.split('|').nth(1));
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(ToString::to_string).collect()
}

/// Names of the metrics in a scrape.
fn exported(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .map(ToString::to_string)
        .collect()
}

#[tokio::test]
async fn the_table_of_metrics_lists_what_is_exported() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    watchdog.get("/x").await;
    watchdog.until_metric("http_requests_total{code=\"200\",method=\"get\"} 1").await;
    let plain = exported(&watchdog.metrics().await);
    let documented = names_under("Metrics");
    let without_share: BTreeSet<String> =
        documented.iter().filter(|name| !name.starts_with("gpufn_")).cloned().collect();
    assert_eq!(plain, without_share);
    let in_source = include_str!("../../src/metrics.rs");
    let in_source =
        in_source.split('"').filter(|word| word.starts_with("gpufn_function_")).map(ToString::to_string);
    let with_share: BTreeSet<String> =
        documented.into_iter().filter(|name| name.starts_with("gpufn_")).collect();
    assert_eq!(in_source.collect::<BTreeSet<_>>(), with_share);
}
