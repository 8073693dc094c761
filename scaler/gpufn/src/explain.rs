//! `gpufn explain NAMESPACE/FUNCTION`: why a function has what it has, from the scaler that decides.
//!
//! Owns the text; what is said comes from the scaler (`GET /v1/functions/NAMESPACE/NAME/explanation`).

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use gpu_share::invalid::Invalid;
use scaler::control::explanation::Explanation;
use scaler::control::period::Past;
use scaler::policy::{Candidate, Explained};

use crate::load::runtime;

/// Longest time for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Arguments of `gpufn explain`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The function: NAMESPACE/NAME.
    #[arg(value_name = "NAMESPACE/FUNCTION")]
    function: String,
    /// Where the scaler answers over HTTP.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8090", env = "GPUFN_SCALER")]
    server: String,
    /// Print what the text is made of.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
#[allow(clippy::needless_pass_by_value)] // A command owns its arguments; all of them are run alike.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (namespace, name) = split(&args.function)?;
    let explanation = runtime()?.block_on(ask(&args.server, namespace, name))?;
    let text = if args.json {
        serde_json::to_string_pretty(&explanation)? + "\n"
    } else {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        text(&explanation, now)
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Namespace and name; both are put into a path, so that they are checked.
fn split(function: &str) -> Result<(&str, &str), Invalid> {
    let is_label = |text: &str| {
        let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&text.len()) && text.bytes().all(is_inner)
    };
    function
        .split_once('/')
        .filter(|(namespace, name)| is_label(namespace) && is_label(name))
        .ok_or_else(|| Invalid::new("FUNCTION", function, "NAMESPACE/NAME, each 1 to 63 of a-z, 0-9 and -"))
}

async fn ask(server: &str, namespace: &str, name: &str) -> anyhow::Result<Explanation> {
    let client = reqwest::Client::builder().timeout(PATIENCE).no_proxy().build()?;
    let url = format!("{}/v1/functions/{namespace}/{name}/explanation", server.trim_end_matches('/'));
    let answer = client.get(&url).send().await;
    let answer =
        answer.with_context(|| format!("nothing answers at {server}; is gpufn-scaler reached there?"))?;
    let status = answer.status();
    if !status.is_success() {
        let said = answer.text().await.unwrap_or_default();
        let said = said.lines().next().unwrap_or_default();
        anyhow::bail!("{server} answers {status}: {said}");
    }
    answer.json().await.with_context(|| format!("{url} does not answer as gpufn-scaler does"))
}

/// For people, at `now`, seconds since the epoch.
fn text(explained: &Explanation, now: u64) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = write(&mut text, explained, now);
    text
}

fn write(out: &mut String, explained: &Explanation, now: u64) -> std::fmt::Result {
    let Explanation { function, slo, sm_percent, floor_percent, ceiling_percent, .. } = explained;
    writeln!(out, "{function}")?;
    writeln!(
        out,
        "  asks for    {sm_percent} % of the SMs, a quota of {floor_percent:.0} to {ceiling_percent:.0} %"
    )?;
    writeln!(out, "  objective   {}", slo.as_deref().unwrap_or("none: planned by utilisation"))?;
    let decided_by = match (&explained.decided_by, explained.is_deciding) {
        (_, true) => format!("this scaler, which has watched it for {:.0} s", explained.watched_seconds),
        (Some(holder), false) => format!("{holder}; what follows is what this scaler knows"),
        (None, false) => "nobody now".into(),
    };
    writeln!(out, "  decided by  {decided_by}")?;
    if let Some(known) = &explained.known {
        demand(out, known)?;
    }
    if let Some(need) = &explained.need {
        writeln!(out, "  needs       {:.2} replicas: {}", need.replicas, need.reason)?;
    }
    if !explained.owners.is_empty() {
        writeln!(out, "  scaled by   {}", explained.owners.join(", "))?;
    }
    for left in &explained.left_alone {
        writeln!(out, "  left alone  {}: {}", left.what, left.why)?;
    }
    replicas(out, explained)?;
    if let Some(known) = explained.known.as_ref().filter(|known| !known.candidates.is_empty()) {
        writeln!(out, "\nplans")?;
        known.candidates.iter().try_for_each(|candidate| plan(out, candidate))?;
    }
    if explained.past.is_empty() {
        return writeln!(out, "\nnothing was changed yet");
    }
    writeln!(out, "\ndone, newest first")?;
    explained.past.iter().rev().try_for_each(|past| done(out, past, now))
}

fn demand(out: &mut String, known: &Explained) -> std::fmt::Result {
    writeln!(
        out,
        "  demand      {:.1}/s; grants are ready for {:.1}/s, replicas for {:.1}/s (burstiness {:.1}, margin {:.2})",
        known.rate, known.ready_for, known.ready_for_cold, known.burstiness, known.margin
    )?;
    let request = known.request.map_or_else(
        || "not known before five have finished: the ceiling, if any comes".into(),
        |request| {
            let (gpu, beside, off) = (request.gpu_ms, request.beside_ms, 100.0 * request.uncertainty);
            format!("{gpu:.1} ms of GPU time (± {off:.0} %), {beside:.1} ms beside it")
        },
    );
    writeln!(out, "  a request   {request}")?;
    known.latency_ms.map_or(Ok(()), |latency| writeln!(out, "  latency     {latency:.0} ms, mean of 2 s"))
}

fn replicas(out: &mut String, explained: &Explanation) -> std::fmt::Result {
    if explained.replicas.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nreplicas")?;
    for one in &explained.replicas {
        write!(
            out,
            "  {}  {}, {:.0} % (up to {:.0} % in its row), {} in flight",
            one.name, one.state, one.grant_percent, one.room_percent, one.in_flight
        )?;
        match &one.written_by {
            Some(writer) => writeln!(out, "; left alone: {writer} wrote its quota")?,
            None => writeln!(out)?,
        }
    }
    Ok(())
}

fn plan(out: &mut String, plan: &Candidate) -> std::fmt::Result {
    let mark = if plan.is_chosen { "→" } else { " " };
    let latency = plan.latency_ms.map_or_else(|| "no bound".into(), |latency| format!("{latency:.0} ms"));
    write!(out, "{mark} {} × {:.0} %  {:.2} GPU, {latency}", plan.replicas, plan.quota_percent, plan.gpus)?;
    match &plan.refused {
        Some(refused) => writeln!(out, "; no: {refused}"),
        None => writeln!(out, "; keeps the objective"),
    }
}

fn done(out: &mut String, past: &Past, now: u64) -> std::fmt::Result {
    let Past { at, subject, what, reason, outcome } = past;
    let outcome = if outcome == "done" { String::new() } else { format!(" ({outcome})") };
    writeln!(out, "  {} s ago  {subject}: {what}{outcome}\n    {reason}", now.saturating_sub(*at))
}

#[cfg(test)]
mod tests {
    use scaler::control::explanation::{LeftAlone, NeedNow, ReplicaNow};
    use scaler::policy::Request;

    use super::*;

    fn explained() -> Explanation {
        let candidate = |replicas, quota_percent, refused: Option<&str>| Candidate {
            replicas,
            quota_percent,
            gpus: 0.3,
            latency_ms: Some(180.0),
            refused: refused.map(Into::into),
            is_chosen: refused.is_none() && replicas == 1,
        };
        Explanation {
            function: "fn/resnet".into(),
            decided_by: Some("host_1".into()),
            is_deciding: true,
            slo: Some("p95<250ms".into()),
            sm_percent: 50,
            floor_percent: 20.0,
            ceiling_percent: 80.0,
            watched_seconds: 61.2,
            left_alone: vec![LeftAlone {
                what: "replicas".into(),
                why: "replicas are the ScaledObject so's".into(),
            }],
            owners: vec!["ScaledObject so".into()],
            known: Some(Explained {
                rate: 12.0,
                ready_for: 15.0,
                ready_for_cold: 18.0,
                burstiness: 1.0,
                margin: 1.0,
                request: Some(Request { gpu_ms: 20.1, uncertainty: 0.05, beside_ms: 3.0 }),
                latency_ms: Some(120.0),
                candidates: vec![
                    candidate(1, 45.0, Some("9.0 % would wait too long")),
                    candidate(1, 60.0, None),
                ],
            }),
            replicas: vec![ReplicaNow {
                name: "resnet-0".into(),
                state: "ready".into(),
                grant_percent: 60.0,
                room_percent: 80.0,
                in_flight: 2,
                written_by: None,
            }],
            need: Some(NeedNow { replicas: 1.4, reason: "12.0/s".into() }),
            past: vec![Past {
                at: 100,
                subject: "resnet-0".into(),
                what: "quota 45 % to 60 %".into(),
                reason: "more comes".into(),
                outcome: "done".into(),
            }],
        }
    }

    #[test]
    fn the_text_says_demand_plans_and_what_was_done() {
        let text = text(&explained(), 130);
        for line in [
            "  demand      12.0/s; grants are ready for 15.0/s, replicas for 18.0/s (burstiness 1.0, margin 1.00)",
            "  left alone  replicas: replicas are the ScaledObject so's",
            "  resnet-0  ready, 60 % (up to 80 % in its row), 2 in flight",
            "  1 × 45 %  0.30 GPU, 180 ms; no: 9.0 % would wait too long",
            "→ 1 × 60 %  0.30 GPU, 180 ms; keeps the objective",
            "  30 s ago  resnet-0: quota 45 % to 60 %",
        ] {
            assert!(text.lines().any(|one| one == line), "{line:?} is not in\n{text}");
        }
    }

    #[test]
    fn a_function_is_named_by_namespace_and_name() {
        assert_eq!(split("fn/resnet").unwrap(), ("fn", "resnet"));
        for bad in ["resnet", "fn/", "/resnet", "fn/../x", "fn/a/b", "fn/A", "fn/a b", "fn/a?x=y"] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }
}
