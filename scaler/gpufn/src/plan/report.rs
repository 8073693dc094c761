//! What a workload costs on each platform: everything that is told, as JSON and as tables.

use std::fmt::Write as _;

use scaler::cost::Workload;
use scaler::cost::bill::Charge;
use scaler::cost::break_even::{Curve, break_evens, curve};
use scaler::cost::prices::{Platform, Price, Prices};
use serde::Serialize;

use crate::figures::{short, table};

/// Everything that is told.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Report {
    /// What all costs are in.
    pub currency: String,
    pub load: LoadRow,
    /// The objective, if there is one.
    pub slo: Option<String>,
    /// Those that can run it, the cheapest first.
    pub platforms: Vec<Row>,
    /// Those that can't, and why.
    pub left_out: Vec<LeftOut>,
    pub break_evens: Vec<BreakEvenRow>,
    pub assumptions: Vec<String>,
    pub prices: Vec<PriceRow>,
    /// Cost of a month by constant rate.
    pub curves: Vec<CurveRow>,
}

/// The load in numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct LoadRow {
    pub requests: f64,
    pub seconds: f64,
    pub mean_rps: f64,
    pub peak_rps: f64,
}

/// One platform.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    pub name: String,
    /// Cost of a month in which the load repeats.
    pub month: f64,
    /// Cost of a thousand requests in such a month.
    pub per_1000: f64,
    /// Cost of the load once, nothing being free.
    pub once: f64,
    /// Median latency; none where requests are never served.
    pub p50_ms: Option<f64>,
    pub p95_ms: Option<f64>,
    /// Requests later than the objective's bound.
    pub late_percent: Option<f64>,
    /// What runs.
    pub runs: String,
    /// What is billed for the load once.
    pub bill: Vec<Charge>,
}

/// A platform that can't run the workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct LeftOut {
    pub name: String,
    pub why: String,
}

/// The constant rates at which the cheaper of two changes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct BreakEvenRow {
    /// The lowest of them.
    pub rate_rps: f64,
    /// Cheaper below it.
    pub below: String,
    /// Cheaper above it.
    pub above: String,
    /// Where they change places again: costs that go up in steps cross several times.
    pub again_rps: Vec<f64>,
}

impl BreakEvenRow {
    /// In words.
    pub(super) fn again(&self) -> String {
        match (self.again_rps.len(), self.again_rps.last()) {
            (_, None) => String::new(),
            (1, Some(&rate)) => format!("until {}", amount(rate)),
            (times, Some(&rate)) => format!("then {times} times again, up to {}", amount(rate)),
        }
    }
}

/// Where a price is from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct PriceRow {
    pub platform: String,
    pub of: &'static str,
    pub amount: f64,
    pub date: String,
    pub source: String,
}

/// Cost of a month by constant rate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct CurveRow {
    pub platform: String,
    /// Requests a second, cost of a month.
    pub points: Vec<(f64, f64)>,
}

impl Report {
    /// What `work` costs on those of `wanted` that can run it; break-even rates are told against `against`, or the
    /// cheapest.
    pub(super) fn of(
        prices: &Prices,
        wanted: &[&Platform],
        work: &Workload,
        against: Option<&Platform>,
    ) -> Self {
        let (mut platforms, mut left_out, mut assumptions) = (Vec::new(), Vec::new(), general(work));
        for platform in wanted {
            match prices.operate(platform, work) {
                Ok(operation) => {
                    platforms.push(Row::of(platform.name(), &operation, work));
                    assumptions.extend(operation.assumptions);
                }
                Err(why) => left_out.push(LeftOut { name: platform.name().into(), why: why.to_string() }),
            }
        }
        platforms.sort_by(|a, b| a.month.total_cmp(&b.month));
        let kept = |name: &str| platforms.iter().any(|row| row.name == name);
        let curves = wanted.iter().filter(|platform| kept(platform.name()));
        let curves: Vec<_> = curves.map(|platform| (*platform, curve(prices, platform, work))).collect();
        let cheapest = platforms.first().map(|row| row.name.as_str());
        let against = against.map(Platform::name).or(cheapest).unwrap_or_default();
        Self {
            currency: prices.currency.clone(),
            load: LoadRow {
                requests: work.load.requests(),
                seconds: work.load.seconds(),
                mean_rps: work.load.mean(),
                peak_rps: work.load.peak(),
            },
            slo: work.slo.map(|slo| slo.to_string()),
            break_evens: against_one(prices, work, &curves, against),
            prices: price_rows(prices, wanted, work),
            curves: curves
                .into_iter()
                .map(|(_, Curve { platform, points })| CurveRow { platform, points })
                .collect(),
            platforms,
            left_out,
            assumptions,
        }
    }

    /// As text for a terminal.
    pub(super) fn text(&self) -> String {
        let LoadRow { requests, seconds, mean_rps, peak_rps } = self.load;
        let mut text = format!(
            "{} requests in {} s: {} a second in the mean, {} at most. A month repeats that; costs in {}.\n\n",
            short(requests),
            short(seconds),
            amount(mean_rps),
            amount(peak_rps),
            self.currency
        );
        let mut head = vec!["platform", "a month", "1000 requests", "p50 ms", "p95 ms"];
        head.extend(self.slo.is_some().then_some("late"));
        let rows: Vec<_> = self.platforms.iter().map(|row| row.cells(self.slo.is_some())).collect();
        text += &table(&head, &rows);
        text += "\nWhat runs:\n";
        // A String takes whatever is written to it.
        for row in &self.platforms {
            let _ = writeln!(text, "  {}: {}", row.name, row.runs);
        }
        for LeftOut { name, why } in &self.left_out {
            let _ = writeln!(text, "  left out: {name} {why}");
        }
        if !self.break_evens.is_empty() {
            text += "\nBreak-even at a constant rate:\n";
        }
        for row in &self.break_evens {
            let (rate, again) = (amount(row.rate_rps), row.again());
            let line =
                format!("  {rate} requests a second: below {}, above {} {again}", row.below, row.above);
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text += "\nAssumed:\n";
        for assumption in &self.assumptions {
            let _ = writeln!(text, "  {assumption}");
        }
        text += "\nPrices:\n";
        for PriceRow { platform, of, amount, date, source } in &self.prices {
            let _ = writeln!(text, "  {platform}, {of}: {amount} on {date}; {source}");
        }
        text.trim_end().to_string()
    }
}

impl Row {
    fn of(name: &str, operation: &scaler::cost::Operation, work: &Workload) -> Self {
        let latency = operation.latency(work.arrival_scv);
        let ms = |part: f64| Some(1e3 * latency.quantile(part)).filter(|ms| ms.is_finite());
        let month = operation.bill.month(work.load.seconds());
        let requests = work.load.mean() * scaler::cost::bill::MONTH;
        Self {
            name: name.into(),
            month,
            per_1000: 1e3 * month / requests,
            once: operation.bill.cost(),
            p50_ms: ms(0.5),
            p95_ms: ms(0.95),
            late_percent: work.slo.map(|slo| 100.0 * latency.beyond(slo.bound.secs_f64())),
            runs: operation.runs.clone(),
            bill: operation.bill.charges.clone(),
        }
    }

    /// Cells of the table, with the late requests where there is an objective.
    pub(super) fn cells(&self, late: bool) -> Vec<String> {
        let ms = |value: Option<f64>| value.map_or_else(|| "never".into(), short);
        let mut cells = vec![
            self.name.clone(),
            amount(self.month),
            amount(self.per_1000),
            ms(self.p50_ms),
            ms(self.p95_ms),
        ];
        cells.extend(late.then(|| format!("{} %", short(self.late_percent.unwrap_or_default()))));
        cells
    }
}

/// `value` with three digits that count, small ones too.
pub(super) fn amount(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.2}"),
        size if size > 0.0 => format!("{value:.*}", decimals(size)),
        _ => "0".into(),
    }
}

/// Decimals that show three digits of `size`, below 1.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // From 3 to 12.
fn decimals(size: f64) -> usize {
    (2.0 - size.log10().floor()).clamp(3.0, 12.0) as usize
}

/// What is assumed of every platform.
fn general(work: &Workload) -> Vec<String> {
    let mut all = vec![
        "requests are spread evenly over a step of the load: of a minute with few of them, fewer find no replica than would"
            .to_string(),
        "the load repeats without end, and nothing else runs; no discounts, taxes, disks, load balancers or network traffic"
            .to_string(),
        format!(
            "requests come with a squared coefficient of variation of {} between them; latency is by queueing formulas, \
             without network",
            work.arrival_scv
        ),
    ];
    if work.log_bytes <= 0.0 {
        all.push(
            "no request writes to the log (--log-bytes); in the IoT study (WoSC 2022) logs were two thirds of the bill"
                .into(),
        );
    }
    if work.cpu.is_some() && work.gpu.is_some() {
        all.push(
            "a request computes either on a core or on a GPU, and what it does beside that is the same"
                .into(),
        );
    }
    all
}

fn against_one(
    prices: &Prices,
    work: &Workload,
    curves: &[(&Platform, Curve)],
    against: &str,
) -> Vec<BreakEvenRow> {
    let Some((one, of_one)) = curves.iter().find(|(platform, _)| platform.name() == against) else {
        return Vec::new();
    };
    let others = curves.iter().filter(|(platform, _)| platform.name() != against);
    let row = |(other, of_other): &(&Platform, Curve)| {
        let found = break_evens(prices, work, (other, of_other), (one, of_one));
        let (first, again) = found.split_first()?;
        Some(BreakEvenRow {
            rate_rps: first.rate,
            below: first.below.clone(),
            above: first.above.clone(),
            again_rps: again.iter().map(|found| found.rate).collect(),
        })
    };
    let mut rows: Vec<_> = others.filter_map(row).collect();
    rows.sort_by(|a, b| a.rate_rps.total_cmp(&b.rate_rps));
    rows
}

/// All prices that may be in a bill.
fn price_rows(prices: &Prices, wanted: &[&Platform], work: &Workload) -> Vec<PriceRow> {
    let row = |platform: &str, of: &'static str, price: &Price| PriceRow {
        platform: platform.into(),
        of,
        amount: price.amount,
        date: price.date.clone(),
        source: price.source.clone(),
    };
    let logs = prices.logs().filter(|_| work.log_bytes > 0.0).map(|price| row("all", "logGib", price));
    let own = wanted.iter().flat_map(|platform| {
        platform.prices().into_iter().map(move |(of, price)| row(platform.name(), of, price))
    });
    own.chain(logs).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use scaler::cost::distribution::Distribution;
    use scaler::cost::load::Load;
    use scaler::cost::{GpuTime, Workload};

    use super::*;

    pub(in crate::plan) fn example() -> Report {
        let prices = Prices::shipped().unwrap();
        let work = Workload {
            load: Load::new(60.0, vec![1.0, 8.0, 3.0, 0.0]).unwrap(),
            arrival_scv: 1.0,
            cpu: None,
            gpu: Some(GpuTime::whole_only(Distribution::constant(0.02).unwrap())),
            beside: 0.003,
            memory: gpu_share::units::Bytes::gib(2),
            quota: gpu_share::units::Quota::from_percent(5).unwrap(),
            quota_limit: gpu_share::units::Quota::WHOLE,
            slo: None,
            log_bytes: 0.0,
        };
        let wanted: Vec<_> = prices.platforms.iter().collect();
        Report::of(&prices, &wanted, &work, None)
    }

    #[test]
    fn platforms_are_told_by_cost_and_those_that_can_not_run_it_with_the_reason() {
        let report = example();
        assert_eq!(report.platforms[0].name, "gpufn");
        assert!(report.platforms.windows(2).all(|pair| pair[0].month <= pair[1].month));
        let out: Vec<_> = report.left_out.iter().map(|out| out.name.as_str()).collect();
        assert_eq!(out, ["kubernetes", "openwhisk", "cloud-run-requests", "cloud-run-instances"]);
        let text = report.text();
        for part in
            ["720 requests in 240 s", "left out: kubernetes runs on CPUs", "2026-09-24", "e/q + 2(1−q)"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn the_bill_adds_up_to_what_is_told() {
        for row in example().platforms {
            let sum: f64 = row.bill.iter().map(|charge| charge.quantity * charge.price).sum();
            assert!((sum - row.once).abs() < 1e-9 * sum.max(1.0), "{}", row.name);
        }
    }

    #[test]
    fn amounts_show_digits_that_count() {
        for (value, text) in
            [(1234.5, "1234"), (12.345, "12.35"), (0.5, "0.500"), (0.000_123_4, "0.000123"), (0.0, "0")]
        {
            assert_eq!(amount(value), text);
        }
    }
}
