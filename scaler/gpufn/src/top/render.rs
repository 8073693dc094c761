//! What `gpufn top` draws: text of at most 100 columns, from one overview and the one before.
//!
//! Pure.

use std::fmt::Write;

use crate::figures::short;
use crate::load::percent;
use crate::view::{FunctionSummary, Overview, ReplicaSummary};

/// Widths of the columns behind the name, and their titles.
const COLUMNS: [(usize, &str); 15] = [
    (8, "STATE"),
    (5, "GPU/R"),
    (3, "SM"),
    (5, "FLOOR"),
    (5, "GRANT"),
    (4, "CEIL"),
    (5, "USED"),
    (3, "FLY"),
    (4, "HELD"),
    (5, "REQ/S"),
    (4, "P50"),
    (4, "P95"),
    (4, "P99"),
    (5, "LATE"),
    (7, "PID"),
];

/// Width of the name.
const NAME: usize = 14;

/// The table at `now`; what is a difference is since `before`.
pub(super) fn table(url: &str, now: &Overview, before: Option<&Overview>) -> String {
    let mut text = head(url, now);
    text += &line("FUNCTION", &COLUMNS.map(|(_, title)| title.to_string()));
    if now.functions.is_empty() {
        text += "no functions yet; deploy one with faas-cli\n";
    }
    for function in &now.functions {
        text += &function_line(function);
        for replica in &function.replicas {
            text += &replica_line(replica, now, before);
        }
    }
    text + "times in ms over the last 10 s; SM, floor, grant, ceiling, used in %; late: share of all so far\n"
}

/// `text` drawn over what is on the screen, without a flicker: each line is cleared where it ends.
pub(super) fn frame(text: &str) -> String {
    format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\r\n"))
}

fn head(url: &str, now: &Overview) -> String {
    let reserved: f64 = now.gpus.iter().map(|gpu| gpu.reserved_ratio).sum();
    let mut text = cut(&format!("gpufn {url}  policy {}  up {:.0} s", now.policy, now.uptime_s), 100) + "\n";
    let _ = writeln!(text, "{reserved:.2} of {} GPUs reserved", now.gpus.len());
    for (index, gpu) in now.gpus.iter().enumerate() {
        let gib = |bytes: u64| crate::figures::number(bytes) / f64::from(1 << 30);
        let memory = format!("{:.1} of {:.1} GiB bound", gib(gpu.memory_bound_bytes), gib(gpu.memory_bytes));
        let reserved = format!("{:.0} %", gpu.reserved_ratio * 100.0);
        text += &cut(&format!("  GPU {index}  {reserved:>5} reserved  {memory}  {}", gpu.name), 100);
        text.push('\n');
    }
    text + "\n"
}

fn function_line(function: &FunctionSummary) -> String {
    let count = function.replicas.iter().filter(|replica| replica.state == "ready").count();
    let ms = |value: Option<f64>| value.map_or_else(|| "-".into(), brief);
    // Without an objective nothing is late.
    let late = function.slo.as_ref().map(|_| percent(function.late_total, function.requests_total));
    let blank = String::new;
    line(
        &function.name,
        &[
            format!("{count} ready"),
            blank(),
            blank(),
            blank(),
            blank(),
            blank(),
            blank(),
            function.in_flight.to_string(),
            function.held.to_string(),
            brief(function.rate_rps),
            ms(function.p50_ms),
            ms(function.p95_ms),
            ms(function.p99_ms),
            late.map_or_else(|| "-".into(), |late| format!("{}%", brief(late))),
            blank(),
        ],
    )
}

fn replica_line(replica: &ReplicaSummary, now: &Overview, before: Option<&Overview>) -> String {
    let gpu = replica.gpu.as_ref().and_then(|uuid| now.gpus.iter().position(|gpu| gpu.uuid == *uuid));
    let place = match (gpu, replica.row) {
        (Some(gpu), Some(row)) => format!("{gpu}/{row}"),
        _ => "-".into(),
    };
    // A function without a share has none of these.
    let share = |value: f64| if replica.binding.is_some() { brief(value) } else { "-".into() };
    let pid = replica.pid.or(replica.watchdog_pid).map_or_else(|| "-".into(), |pid| pid.to_string());
    let blank = String::new;
    line(
        &format!("  {}", tail(&replica.instance)),
        &[
            replica.state.clone(),
            place,
            share(f64::from(replica.sm_percent)),
            share(replica.floor_percent),
            share(replica.grant_percent),
            share(replica.ceiling_percent),
            used_percent(replica, now, before).map_or_else(|| "-".into(), brief),
            replica.in_flight.to_string(),
            blank(),
            blank(),
            blank(),
            blank(),
            blank(),
            blank(),
            pid,
        ],
    )
}

/// Part of the time since `before` in which the replica used its GPU, percent.
fn used_percent(replica: &ReplicaSummary, now: &Overview, before: Option<&Overview>) -> Option<f64> {
    let before = before?;
    let mut replicas = before.functions.iter().flat_map(|function| &function.replicas);
    let earlier = replicas.find(|earlier| earlier.instance == replica.instance)?;
    let seconds = now.uptime_s - before.uptime_s;
    (seconds > 0.0).then(|| 100.0 * (replica.used_seconds - earlier.used_seconds).max(0.0) / seconds)
}

fn line(name: &str, cells: &[String; 15]) -> String {
    let mut text = format!("{:<NAME$}", cut(name, NAME));
    for ((width, title), cell) in COLUMNS.iter().zip(cells) {
        let cell = cut(cell, *width);
        // The state is a word and reads from its left.
        let _ = match *title {
            "STATE" => write!(text, " {cell:<width$}"),
            _ => write!(text, " {cell:>width$}"),
        };
    }
    text.trim_end().to_string() + "\n"
}

/// What tells a replica from its siblings: the end of its name.
fn tail(instance: &str) -> String {
    let skipped = instance.chars().count().saturating_sub(NAME - 2);
    instance.chars().skip(skipped).collect()
}

fn cut(text: &str, width: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(width).collect()
}

/// `value` in at most four characters, if it is below 10,000.
fn brief(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { short((value * 10.0).round() / 10.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::GpuView;

    fn overview(uptime_s: f64, used_seconds: f64) -> Overview {
        let replica = ReplicaSummary {
            instance: "resnet50-7f9c2a".into(),
            state: "draining".into(),
            binding: Some("0123456789abcdef".into()),
            gpu: Some("GPU-1".into()),
            row: Some(12),
            sm_percent: 100,
            floor_percent: 12.5,
            grant_percent: 99.99,
            ceiling_percent: 100.0,
            pid: Some(4_194_303),
            used_seconds,
            in_flight: 999,
            ..Default::default()
        };
        let function = FunctionSummary {
            name: "a-function-with-a-very-long-name".into(),
            slo: Some("p95<100ms".into()),
            in_flight: 999,
            held: 1000,
            rate_rps: 1234.5,
            requests_total: 1000,
            late_total: 5,
            p50_ms: Some(9.87),
            p99_ms: Some(4321.0),
            replicas: vec![replica],
            ..Default::default()
        };
        let gpu = GpuView {
            uuid: "GPU-1".into(),
            name: "gpufn simulated V100 \x1b[31m".into(),
            memory_bytes: 16 << 30,
            memory_bound_bytes: 3 << 29,
            reserved_ratio: 0.47,
            ..GpuView::default()
        };
        let (gpus, functions) = (vec![gpu], vec![function]);
        Overview { uptime_s, policy: "gpufn".into(), gpus, functions, ..Overview::default() }
    }

    #[test]
    fn every_line_fits_in_100_columns_and_cells_stay_apart() {
        let text = table("http://127.0.0.1:8080", &overview(10.0, 3.0), Some(&overview(9.0, 2.55)));
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        let replica = text.lines().find(|line| line.contains("draining")).unwrap();
        let cells: Vec<_> = replica.split_whitespace().collect();
        let expected =
            ["net50-7f9c2a", "draining", "0/12", "100", "12.5", "100", "100", "45", "999", "4194303"];
        assert_eq!(cells, expected);
        let function =
            text.lines().find(|line| line.contains("1 ready") || line.contains("0 ready")).unwrap();
        let cells: Vec<_> = function.split_whitespace().skip(3).collect();
        assert_eq!(cells, ["999", "1000", "1234", "9.9", "-", "4321", "0.5%"]);
        assert!(text.contains("0.47 of 1 GPUs reserved"), "{text}");
    }

    #[test]
    fn what_a_server_sends_cannot_steer_the_terminal() {
        assert!(!table("u", &overview(1.0, 0.0), None).contains('\x1b'));
    }

    #[test]
    fn without_an_earlier_look_use_is_unknown() {
        let now = overview(1.0, 0.5);
        assert_eq!(used_percent(&now.functions[0].replicas[0], &now, None), None);
        assert_eq!(used_percent(&now.functions[0].replicas[0], &now, Some(&now)), None);
    }

    #[test]
    fn a_frame_clears_what_it_draws_over() {
        assert_eq!(frame("a\nb\n"), "\x1b[Ha\x1b[K\r\nb\x1b[K\r\n\x1b[J");
    }
}
