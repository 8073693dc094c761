//! One run of wrk, and what it says.

use std::process::Command;

use anyhow::{Context, Result, bail};

/// What a load was answered with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Load {
    /// Requests answered.
    pub(crate) requests: f64,
    /// Requests per second.
    pub(crate) rate: f64,
    /// Median latency, in microseconds.
    pub(crate) p50: f64,
    /// 99th percentile of the latency, in microseconds.
    pub(crate) p99: f64,
}

/// Requests for `url` over `connections` for `seconds`; `script` is Lua for wrk.
pub(crate) fn load(url: &str, connections: u32, seconds: u32, script: Option<&str>) -> Result<Load> {
    let mut command = Command::new("wrk");
    command.args([
        "-t1",
        "--latency",
        &format!("-c{connections}"),
        &format!("-d{seconds}s"),
        "--timeout",
        "20s",
    ]);
    let folder = tempfile::tempdir()?;
    if let Some(script) = script {
        let path = folder.path().join("script.lua");
        std::fs::write(&path, script)?;
        command.arg("-s").arg(path);
    }
    let output = command.arg(url).output().context("wrk")?;
    read(&String::from_utf8_lossy(&output.stdout)).with_context(|| format!("wrk {url}"))
}

/// Reads the text that wrk prints.
fn read(text: &str) -> Result<Load> {
    if let Some(line) = text.lines().find(|line| line.contains("Non-2xx")) {
        bail!("not all requests were answered: {}", line.trim());
    }
    let second = |start: &str| {
        let line = text.lines().map(str::trim).find(|line| line.starts_with(start));
        line.and_then(|line| line.split_whitespace().nth(1))
            .with_context(|| format!("no line {start:?} in {text}"))
    };
    let requests =
        text.lines().find(|line| line.contains(" requests in ")).context("no count of requests")?;
    let requests = requests.split_whitespace().next().and_then(|count| count.parse().ok());
    Ok(Load {
        requests: requests.filter(|count| *count > 0.0).context("no requests were answered")?,
        rate: second("Requests/sec:")?.parse()?,
        p50: microseconds(second("50%")?)?,
        p99: microseconds(second("99%")?)?,
    })
}

/// A time such as `57.00us`, `1.43ms` or `2.00s`.
fn microseconds(text: &str) -> Result<f64> {
    for (unit, factor) in [("us", 1.0), ("ms", 1e3), ("s", 1e6), ("m", 60e6)] {
        if let Some(number) = text.strip_suffix(unit) {
            return Ok(number.parse::<f64>()? * factor);
        }
    }
    bail!("time is {text:?}, allowed is a number with us, ms, s or m")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_prints_is_understood() {
        let text = "  Latency Distribution\n     50%   57.00us\n     99%    1.43ms\n  91000 requests in 1.00s, 9MB read\n\
                    Requests/sec:  90500.10\n";
        let load = read(text).unwrap();
        assert_eq!(load, Load { requests: 91000.0, rate: 90500.1, p50: 57.0, p99: 1430.0 });
        assert!(read(&format!("{text}  Non-2xx or 3xx responses: 3\n")).is_err());
        assert!(read("").is_err());
    }
}
