//! What a platform bills for a load: so much of each thing, at so much each.

use serde::Serialize;

/// Seconds in a month of 730 hours, as price lists count.
pub const MONTH: f64 = 730.0 * 3600.0;
/// Seconds in an hour.
pub const HOUR: f64 = 3600.0;

/// One line of a bill.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Charge {
    /// What is billed, with its unit.
    pub what: &'static str,
    /// How much of it over the load.
    pub quantity: f64,
    /// What one costs.
    pub price: f64,
    /// How much of it is free in a month.
    pub free: f64,
}

impl Charge {
    /// `quantity` of `what` at `price` each.
    pub fn new(what: &'static str, quantity: f64, price: f64) -> Self {
        Self { what, quantity, price, free: 0.0 }
    }

    /// The same, of which `free` a month costs nothing.
    #[must_use]
    pub fn free(self, free: f64) -> Self {
        Self { free, ..self }
    }
}

/// A bill for a load.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Bill {
    /// Its lines.
    pub charges: Vec<Charge>,
}

impl Bill {
    /// Cost of the load once, as if nothing were free.
    pub fn cost(&self) -> f64 {
        self.charges.iter().map(|charge| charge.quantity * charge.price).sum()
    }

    /// Cost of a month in which the load, `seconds` long, repeats.
    pub fn month(&self, seconds: f64) -> f64 {
        let times = MONTH / seconds;
        let of = |charge: &Charge| (charge.quantity * times - charge.free).max(0.0) * charge.price;
        self.charges.iter().map(of).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_free_in_a_month_is_taken_off_the_month_and_not_off_each_repetition() {
        let bill = Bill {
            charges: vec![
                Charge::new("requests", 1000.0, 0.4e-6).free(2e6),
                Charge::new("node hours", 1.0, 0.5),
            ],
        };
        assert!((bill.cost() - (0.4e-3 + 0.5)).abs() < 1e-12);
        // 730 hours, 730,000 requests: all of them free.
        assert!((bill.month(HOUR) - 365.0).abs() < 1e-9);
        // 36 times as often: 26.28 million requests, two of them free.
        assert!((bill.month(100.0) - (24.28 * 0.4 + 36.0 * 365.0)).abs() < 1e-9);
    }
}
