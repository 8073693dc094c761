//! Forecasts against arrivals whose rate is known.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const STEP: Nanos = Nanos::from_millis(200);
const COLD: Nanos = Nanos::from_secs(5);

fn poisson(random: &mut StdRng, mean: f64) -> u64 {
    let (mut count, mut product) = (0, random.random::<f64>());
    while product > (-mean).exp() {
        count += 1;
        product *= random.random::<f64>();
    }
    count
}

/// Forecasts of 200 ms steps, with `rate` by the second.
fn run(demand: &mut Demand, seconds: u64, seed: u64, rate: impl Fn(f64) -> f64) -> Vec<Forecast> {
    let mut random = StdRng::seed_from_u64(seed);
    (1..=seconds * 5)
        .map(|step| {
            let now = Nanos(STEP.0 * step);
            let count = poisson(&mut random, rate(now.secs_f64()) * STEP.secs_f64());
            demand.observe(now, count, COLD)
        })
        .collect()
}

fn demand() -> Demand {
    Demand::new(0.025, Nanos::from_millis(300), 0.025)
}

#[test]
fn steady_arrivals_are_forecast_without_a_lasting_surcharge() {
    let forecasts = run(&mut demand(), 300, 1, |_| 10.0);
    let late = &forecasts[300..];
    let mean = |part: fn(&Forecast) -> f64| late.iter().map(part).sum::<f64>() / late.len() as f64;
    assert!((mean(|f| f.rate) - 10.0).abs() < 0.8, "{}", mean(|f| f.rate));
    assert!((10.0..12.5).contains(&mean(|f| f.vertical)), "{}", mean(|f| f.vertical));
    assert!((10.5..16.0).contains(&mean(|f| f.cold)), "{}", mean(|f| f.cold));
    assert!((mean(|f| f.arrival_scv) - 1.0).abs() < 0.2, "{}", mean(|f| f.arrival_scv));
}

#[test]
fn forecasts_are_exceeded_about_as_seldom_as_asked_for() {
    let mut demand = demand();
    let forecasts = run(&mut demand, 600, 2, |second| 20.0 + 10.0 * (second / 20.0).sin());
    let (late, ahead) = (&forecasts[1_000..], 2);
    let pairs = late.iter().zip(&late[ahead..]);
    let kept =
        pairs.clone().filter(|(now, then)| then.rate <= now.vertical).count() as f64 / pairs.count() as f64;
    assert!(kept > 0.95, "{kept}");
    assert!((demand.coverage() - kept).abs() < 0.03, "{} claimed, {kept} came", demand.coverage());
}

#[test]
fn a_step_is_seen_within_a_second() {
    let seen = (0..20).filter(|&seed| {
        let forecasts = run(&mut demand(), 61, seed, |second| if second <= 60.0 { 5.0 } else { 20.0 });
        forecasts[304].vertical > 12.0
    });
    assert!(seen.count() >= 16);
}

#[test]
fn a_rise_is_carried_on_to_the_end_of_a_cold_start() {
    let forecasts = run(&mut demand(), 60, 4, |second| 2.0 * second);
    let last = forecasts[299];
    assert!(last.cold > 120.0 && last.cold < 180.0, "{last:?}");
}

#[test]
fn bursts_are_told_from_poisson_arrivals() {
    let mut demand = demand();
    let mut random = StdRng::seed_from_u64(5);
    let mut last = Forecast::default();
    for step in 1..=1_500 {
        // Four at a time: the index of dispersion is four.
        let count = 4 * poisson(&mut random, 10.0 / 4.0 * 0.2);
        last = demand.observe(Nanos(STEP.0 * step), count, COLD);
    }
    assert!((2.0..6.0).contains(&last.arrival_scv), "{}", last.arrival_scv);
}

#[test]
fn when_nothing_comes_any_more_nothing_is_expected() {
    let mut demand = demand();
    run(&mut demand, 20, 6, |_| 10.0);
    for step in 101..=400 {
        demand.observe(Nanos(STEP.0 * step), 0, COLD);
    }
    let last = demand.observe(Nanos(STEP.0 * 401), 0, COLD);
    assert!(last.vertical < 0.3, "{last:?}");
}

#[test]
fn calls_between_which_no_time_passes_lose_no_arrival() {
    let mut demand = demand();
    demand.observe(STEP, 0, COLD);
    demand.observe(STEP, 50, COLD);
    assert!(demand.observe(STEP + STEP, 0, COLD).rate > 5.0);
}
