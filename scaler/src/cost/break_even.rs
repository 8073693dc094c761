//! The request rates at which two platforms cost the same.

use super::load::Load;
use super::prices::{Platform, Prices};
use super::{Unfit, Workload};

/// Rates that are looked at, requests a second.
const RATES: (f64, f64) = (1e-5, 1e4);
/// Rates of the grid, evenly apart in their logarithm, between which a change is looked for.
const GRID: u32 = 360;
/// Times that the place of a change is halved.
const SEARCH: u32 = 60;

/// A rate at which the cheaper of two changes.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakEven {
    /// Requests a second.
    pub rate: f64,
    /// The one that is cheaper below.
    pub below: String,
    /// The one that is cheaper above.
    pub above: String,
}

/// Cost of a month by constant rate, on the grid of rates, up to the most that the platform bears.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// The platform.
    pub platform: String,
    /// Rate in requests a second, and cost of a month.
    pub points: Vec<(f64, f64)>,
}

/// Cost of a month at `rate` requests a second; refused where the platform, at its most, does not keep up.
pub fn month_at(prices: &Prices, platform: &Platform, work: &Workload, rate: f64) -> Result<f64, Unfit> {
    let load = Load::constant(rate).map_err(Unfit::Wrong)?;
    let work = Workload { load, ..work.clone() };
    let operation = prices.operate(platform, &work)?;
    if !operation.keeps_up() {
        return Err(Unfit::TooMuch { rate });
    }
    Ok(operation.bill.month(work.load.seconds()))
}

/// The curve of `platform`, as far as it keeps up.
pub fn curve(prices: &Prices, platform: &Platform, work: &Workload) -> Curve {
    let points = rates().map_while(|rate| Some((rate, month_at(prices, platform, work, rate).ok()?)));
    Curve { platform: platform.name().into(), points: points.collect() }
}

/// Where the cheaper of `a` and `b` changes, by rising rate.
pub fn break_evens(
    prices: &Prices,
    work: &Workload,
    (a, of_a): (&Platform, &Curve),
    (b, of_b): (&Platform, &Curve),
) -> Vec<BreakEven> {
    let difference = |rate: f64| {
        let cost = |platform| month_at(prices, platform, work, rate).unwrap_or(f64::NAN);
        cost(a) - cost(b)
    };
    let known = of_a.points.iter().zip(&of_b.points).map(|(&(rate, a), &(_, b))| (rate, a - b));
    changes(&known.collect::<Vec<_>>(), difference)
        .into_iter()
        .map(|(rate, rises)| {
            let (below, above) = if rises { (a, b) } else { (b, a) };
            BreakEven { rate, below: below.name().into(), above: above.name().into() }
        })
        .collect()
}

/// Where `difference`, of one cost to another by rate, changes its sign, and whether it rises there.
pub fn meetings(difference: impl Fn(f64) -> f64) -> Vec<(f64, bool)> {
    let known: Vec<_> = rates().map(|rate| (rate, difference(rate))).collect();
    changes(&known, difference)
}

/// Where `difference` changes its sign between `known` points of it, and whether it rises there.
fn changes(known: &[(f64, f64)], difference: impl Fn(f64) -> f64) -> Vec<(f64, bool)> {
    let crossing = |pair: &[(f64, f64)]| {
        let ((mut low, at_low), (mut high, at_high)) = (pair[0], pair[1]);
        if (at_low < 0.0) == (at_high < 0.0) || !(at_low - at_high).is_finite() {
            return None;
        }
        for _ in 0..SEARCH {
            let middle = (low * high).sqrt();
            if (difference(middle) < 0.0) == (at_low < 0.0) { low = middle } else { high = middle }
        }
        Some((high, at_low < 0.0))
    };
    known.windows(2).filter_map(crossing).collect()
}

/// The grid of rates.
fn rates() -> impl Iterator<Item = f64> {
    let (least, most) = RATES;
    (0..=GRID).map(move |step| least * (most / least).powf(f64::from(step) / f64::from(GRID)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_line_and_a_constant_change_places_where_they_meet(rate in 0.01..1000.0_f64) {
            let found = meetings(|x| x - rate);
            prop_assert_eq!(found.len(), 1);
            prop_assert!((found[0].0 / rate - 1.0).abs() < 1e-9 && found[0].1);
        }
    }

    #[test]
    fn every_change_is_found_and_a_jump_counts_as_one() {
        let difference = |x: f64| {
            if x < 3.0 {
                -1.0
            } else if x < 500.0 {
                2.0
            } else {
                -3.0
            }
        };
        let found = meetings(difference);
        let at: Vec<_> = found.iter().map(|&(rate, rises)| (rate.round(), rises)).collect();
        assert_eq!(at, [(3.0, true), (500.0, false)]);
        assert!(changes(&[(1.0, 2.0), (2.0, f64::NAN)], difference).is_empty());
    }
}
