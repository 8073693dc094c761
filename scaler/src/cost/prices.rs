//! Platforms and their prices, as a YAML file says them: each price with its source and its day.
//!
//! Pure: whoever has the file passes its text. Nothing is known of a platform beyond what the file says.

use std::collections::BTreeSet;

use gpu_share::invalid::Invalid;
use serde::Deserialize;

use super::gpus::{Gpus, Shares};
use super::instances::{Instances, Requests};
use super::nodes::{Nodes, OwnNodes};
use super::{Operation, Unfit, Workload};

const API_VERSION: &str = "gpufn.dev/v1";
const KIND: &str = "Prices";
/// Highest price of anything, in the file's currency.
const HIGHEST: f64 = 1e6;
const BYTES_PER_GIB: f64 = 1_073_741_824.0;

/// The shipped list prices.
const LIST: &str = include_str!("../../prices/list.yaml");
/// What the IoT study (Chadha et al., WoSC 2022) paid.
const STUDY: &str = include_str!("../../prices/iot-study-2022.yaml");

/// One price.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Price {
    /// In the file's currency.
    pub amount: f64,
    /// Where it is from.
    pub source: String,
    /// The day on which it was so, `YYYY-MM-DD`.
    pub date: String,
}

impl Price {
    fn check(&self, field: &str) -> Result<(), Invalid> {
        if !(0.0..=HIGHEST).contains(&self.amount) {
            return Err(Invalid::new(format!("{field}.amount"), self.amount, format!("0 to {HIGHEST}")));
        }
        if self.source.trim().is_empty() {
            return Err(Invalid::new(format!("{field}.source"), "", "where the price is from"));
        }
        if is_day(&self.date) {
            Ok(())
        } else {
            Err(Invalid::new(format!("{field}.date"), &self.date, "a day such as 2026-11-30"))
        }
    }
}

/// Whether `text` is a day, `YYYY-MM-DD`.
fn is_day(text: &str) -> bool {
    let parts: Vec<_> = text.split('-').collect();
    let number = |text: &str, length: usize| {
        (text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit()))
            .then(|| text.parse::<u32>().ok())?
    };
    let [year, month, day] = parts[..] else { return false };
    number(year, 4).is_some_and(|year| year >= 2000)
        && number(month, 2).is_some_and(|month| (1..=12).contains(&month))
        && number(day, 2).is_some_and(|day| (1..=31).contains(&day))
}

/// Platforms and prices.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Prices {
    api_version: String,
    kind: String,
    /// What amounts are in, such as USD.
    pub currency: String,
    /// A gibibyte of logs, if they are billed.
    #[serde(default)]
    log_gib: Option<Price>,
    /// Gibibytes of logs that are free in a month.
    #[serde(default)]
    free_log_gib: f64,
    /// The platforms, in the order in which they are shown.
    pub platforms: Vec<Platform>,
}

/// One platform: how it runs functions and what it bills.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "model", rename_all = "kebab-case")]
pub enum Platform {
    /// A whole GPU for each replica.
    Gpus(Gpus),
    /// Shares of GPUs that gpufn hands out.
    Shares(Shares),
    /// Kubernetes nodes with autoscalers for pods and nodes.
    Nodes(Nodes),
    /// A fixed number of nodes of one's own, such as for OpenWhisk.
    OwnNodes(OwnNodes),
    /// Billed by request and for the time in which requests run.
    Requests(Requests),
    /// Billed for the time in which instances run.
    Instances(Instances),
}

impl Prices {
    /// The shipped list prices, as text: what a file of one's own starts from.
    pub fn shipped_text() -> &'static str {
        LIST
    }

    /// The shipped list prices.
    pub fn shipped() -> Result<Self, Invalid> {
        Self::read(LIST)
    }

    /// What the IoT study paid.
    pub fn study() -> Result<Self, Invalid> {
        Self::read(STUDY)
    }

    /// Reads a price file.
    pub fn read(text: &str) -> Result<Self, Invalid> {
        let form = "a price file as `gpufn plan --print-prices` shows one";
        let prices: Self = serde_yaml::from_str(text).map_err(|error| Invalid::new("prices", error, form))?;
        for (field, value, allowed) in
            [("apiVersion", &prices.api_version, API_VERSION), ("kind", &prices.kind, KIND)]
        {
            if value != allowed {
                return Err(Invalid::new(field, value, allowed));
            }
        }
        if prices.currency.is_empty() || prices.currency.chars().any(|letter| !letter.is_ascii_alphabetic()) {
            return Err(Invalid::new("currency", &prices.currency, "letters such as USD"));
        }
        if let Some(price) = &prices.log_gib {
            price.check("logGib")?;
        }
        amount("freeLogGib", prices.free_log_gib)?;
        if prices.platforms.is_empty() {
            return Err(Invalid::new("platforms", 0, "one or more"));
        }
        let mut names = BTreeSet::new();
        for platform in &prices.platforms {
            platform.check().map_err(|error| error.within(&format!("platform {}", platform.name())))?;
            if !names.insert(platform.name()) {
                return Err(Invalid::new("platforms", platform.name(), "each name once"));
            }
        }
        Ok(prices)
    }

    /// The price of a gibibyte of logs, if they are billed.
    pub fn logs(&self) -> Option<&Price> {
        self.log_gib.as_ref()
    }

    /// The platform of that name.
    pub fn platform(&self, name: &str) -> Result<&Platform, Invalid> {
        self.platforms.iter().find(|platform| platform.name() == name).ok_or_else(|| {
            let names: Vec<_> = self.platforms.iter().map(Platform::name).collect();
            Invalid::new("platform", name, format!("one of {}", names.join(", ")))
        })
    }

    /// How `platform` runs `work`, and the bill for it, logs included.
    pub fn operate(&self, platform: &Platform, work: &Workload) -> Result<Operation, Unfit> {
        let mut operation = platform.operate(work)?;
        if let Some(price) = self.logs().filter(|_| work.log_bytes > 0.0) {
            let gib = work.load.requests() * work.log_bytes / BYTES_PER_GIB;
            let logs = super::bill::Charge::new("GiB of logs", gib, price.amount).free(self.free_log_gib);
            operation.bill.charges.push(logs);
        }
        Ok(operation)
    }
}

impl Platform {
    /// Its name, the same from run to run.
    pub fn name(&self) -> &str {
        match self {
            Self::Gpus(platform) => &platform.name,
            Self::Shares(platform) => &platform.name,
            Self::Nodes(platform) => &platform.name,
            Self::OwnNodes(platform) => &platform.name,
            Self::Requests(platform) => &platform.name,
            Self::Instances(platform) => &platform.name,
        }
    }

    /// Its prices, by what they are of.
    pub fn prices(&self) -> Vec<(&'static str, &Price)> {
        match self {
            Self::Gpus(platform) => platform.prices(),
            Self::Shares(platform) => platform.prices(),
            Self::Nodes(platform) => platform.prices(),
            Self::OwnNodes(platform) => platform.prices(),
            Self::Requests(platform) => platform.prices(),
            Self::Instances(platform) => platform.prices(),
        }
    }

    fn check(&self) -> Result<(), Invalid> {
        let name = self.name();
        if name.is_empty()
            || name.len() > 40
            || name.chars().any(|c| !(c.is_ascii_alphanumeric() || c == '-'))
        {
            return Err(Invalid::new("name", name, "1 to 40 letters, digits and -"));
        }
        for (field, price) in self.prices() {
            price.check(field)?;
        }
        match self {
            Self::Gpus(platform) => platform.check(),
            Self::Shares(platform) => platform.check(),
            Self::Nodes(platform) => platform.check(),
            Self::OwnNodes(platform) => platform.check(),
            Self::Requests(platform) => platform.check(),
            Self::Instances(platform) => platform.check(),
        }
    }

    fn operate(&self, work: &Workload) -> Result<Operation, Unfit> {
        match self {
            Self::Gpus(platform) => platform.operate(work),
            Self::Shares(platform) => platform.operate(work),
            Self::Nodes(platform) => platform.operate(work),
            Self::OwnNodes(platform) => platform.operate(work),
            Self::Requests(platform) => platform.operate(work),
            Self::Instances(platform) => platform.operate(work),
        }
    }
}

/// Refuses an amount in `field` that is negative, or no number.
pub(super) fn amount(field: &str, value: f64) -> Result<(), Invalid> {
    within(field, value, 0.0, 1e9)
}

/// Refuses a value in `field` that is not from `least` to `most`.
pub(super) fn within(field: &str, value: f64, least: f64, most: f64) -> Result<(), Invalid> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(Invalid::new(field, value, format!("{least} to {most}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_files_are_read_and_every_price_has_a_source_and_a_day() {
        for text in [LIST, STUDY] {
            let prices = Prices::read(text).unwrap();
            assert!(prices.platforms.iter().all(|platform| !platform.prices().is_empty()));
        }
    }

    #[test]
    fn a_wrong_file_is_refused_with_what_is_wrong() {
        let cases = [
            (
                "amount: 0.26805",
                "amount: -0.26805",
                "nodeHour.amount is \"-0.26805\", allowed is 0 to 1000000",
            ),
            ("amount: 0.26805", "amount: .nan", "nodeHour.amount is \"NaN\""),
            ("date: 2026-11-30", "date: 2026-13-30", "date is \"2026-13-30\", allowed is a day"),
            ("model: own-nodes", "model: lambda", "unknown variant `lambda`"),
            ("name: openwhisk", "name: kubernetes", "platforms is \"kubernetes\", allowed is each name once"),
            ("kind: Prices", "kind: Price", "kind is \"Price\", allowed is Prices"),
            ("concurrency: 80", "concurency: 80", "concurency"),
            ("currency: USD", "currency: \"\"", "currency is \"\""),
            ("target: 0.5", "target: 0", "target is \"0\""),
        ];
        for (right, wrong, complaint) in cases {
            assert!(LIST.contains(right), "{right}");
            let error = Prices::read(&LIST.replace(right, wrong)).unwrap_err().to_string();
            assert!(error.contains(complaint) && !error.contains('\n'), "{wrong}: {error}");
        }
        assert!(Prices::read("").is_err());
    }

    #[test]
    fn an_unknown_platform_is_refused_with_those_that_there_are() {
        let error = Prices::study().unwrap().platform("lambda").unwrap_err().to_string();
        assert_eq!(error, "platform is \"lambda\", allowed is one of gke, openwhisk, cloud-run");
    }
}
