//! What the processes of a function use of processor and memory, read from `/proc`.

use std::path::Path;

use gpu_share::units::Nanos;

use super::function::Function;
use openfaas::shapes::Usage;

/// Clock ticks per second of the times in `/proc` (`USER_HZ`, 100 on every Linux; proc(5), time(7)).
const TICKS_PER_SECOND: f64 = 100.0;
/// Bytes per unit of the sizes in `/proc/<pid>/status`.
const STATUS_UNIT: f64 = 1024.0;

/// Memory now, and the mean use of processor over the lives of its replicas.
pub(crate) fn of(function: &Function, now: Nanos) -> Usage {
    let mut usage = Usage::default();
    for replica in function.replicas() {
        let Some(&watchdog) = replica.watchdog.get() else { continue };
        let age = now.since(replica.born).secs_f64().max(0.001);
        for pid in family(watchdog) {
            let process = Path::new("/proc").join(pid.to_string());
            usage.cpu += ticks(&process).unwrap_or(0.0) / TICKS_PER_SECOND / age * 1000.0;
            usage.total_memory_bytes += resident(&process).unwrap_or(0.0);
        }
    }
    usage
}

/// A process and all that it started.
fn family(root: u32) -> Vec<u32> {
    let mut family = vec![root];
    let mut looked_at = 0;
    while let Some(&pid) = family.get(looked_at) {
        looked_at += 1;
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for task in tasks {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            family.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    family
}

/// User and system time (fields 14 and 15 of `stat`, proc(5)).
fn ticks(process: &Path) -> Option<f64> {
    let stat = std::fs::read_to_string(process.join("stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(14 - 3);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn resident(process: &Path) -> Option<f64> {
    let status = std::fs::read_to_string(process.join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: f64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kibibytes * STATUS_UNIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_with_its_children_and_their_memory() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let family = family(std::process::id());
        assert!(family.contains(&child.id()), "{family:?}");
        let own = Path::new("/proc/self");
        assert!(resident(own).unwrap() > 100_000.0);
        assert!(ticks(own).is_some());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
