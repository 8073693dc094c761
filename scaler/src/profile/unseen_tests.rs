//! Models of a made-up GPU whose launches are gated: what is learnt from some of them must hold for another.

use super::corrected::Corrected;
use super::description::{self, Description};
use super::grid::{Cell, Measured, Point};
use super::prior::{Example, Prior};

/// Milliseconds that a model of that size takes: GPU time or gate, whichever is longer.
fn truth(size: u32, cell: Cell) -> f64 {
    let (batch, sm, quota) = (f64::from(cell.batch()), f64::from(cell.sm()), f64::from(cell.quota()));
    let size = f64::from(size);
    let gpu = 0.4 * size * batch * (0.3 + 20.0 / sm.min(60.0)) + 0.5;
    let gate = (4.0 + 1.5 * size) * (100.0 / quota).powf(1.2);
    gpu.max(gate)
}

fn measured(size: u32) -> Measured {
    // Every other SM share is enough to learn from, and twice as fast.
    let points = Cell::all().filter(|cell| cell.sm() % 10 == 0);
    let points = points.map(|cell| Point::new(cell, truth(size, cell)).unwrap()).collect();
    Measured { model: format!("m{size:02}"), points }
}

fn describe(sizes: impl Iterator<Item = u32>) -> Vec<Description> {
    let text =
        sizes.fold("model,family,operator,count,macs,weights,reads,writes\n".to_string(), |text, size| {
            let (count, work, data) = (10 * size, 400 * size, 3 * size);
            text + &format!("m{size:02},net,conv,{count},{work}e6,{data}e6,{data}e6,{data}e6\n")
        });
    description::read(&text).unwrap().into_values().collect()
}

fn mean_error(predicted: &super::posterior::Surface, size: u32) -> f64 {
    Cell::all().map(|cell| (predicted.ln_ms(cell).exp() / truth(size, cell) - 1.0).abs()).sum::<f64>() / 800.0
}

#[test]
fn an_unseen_model_is_predicted_from_others_and_better_after_probes_and_production() {
    let sizes = [1, 2, 3, 4, 6, 8, 10, 12];
    let models: Vec<_> = sizes.into_iter().map(measured).collect();
    let descriptions = describe(sizes.into_iter());
    let examples: Vec<_> = models
        .iter()
        .zip(&descriptions)
        .map(|(measured, description)| Example { measured, description })
        .collect();
    let prior = Prior::learn(&examples).unwrap();
    let unseen = &describe([5].into_iter())[0];
    let described = prior.predict(unseen, &[]);
    assert!(mean_error(&described, 5) < 0.25, "{}", mean_error(&described, 5));
    let cells = [(1, 100, 10), (1, 100, 50), (1, 100, 100), (8, 20, 100), (4, 10, 100), (8, 100, 100)];
    let cells = cells.map(|(batch, sm, quota)| Cell::at(batch, sm, quota).unwrap());
    let probes = cells.map(|cell| Point::new(cell, truth(5, cell)).unwrap());
    let informed = prior.predict(unseen, &probes);
    assert!(mean_error(&informed, 5) < 0.06, "{}", mean_error(&informed, 5));
    assert!(mean_error(&informed, 5) < mean_error(&described, 5));
    let at = Cell::at(2, 50, 70).unwrap();
    assert!(informed.deviation(at) < described.deviation(at));
    let (low, high) = informed.interval_ms(at, 1.0);
    assert!(
        low < high
            && informed.latency_ms(2.0, 50.0, 70.0) < high
            && informed.latency_ms(2.0, 50.0, 70.0) > low
    );
    // The host got twice as slow: production says so at some cells, and the others follow.
    let mut corrected = Corrected::new(&prior, unseen, &probes);
    for cell in cells.into_iter().cycle().take(600) {
        corrected.observe(cell, 2.0 * truth(5, cell)).unwrap();
    }
    let slower = corrected.surface();
    let ratio = slower.ln_ms(at) - informed.ln_ms(at);
    assert!((ratio.exp() - 2.0).abs() < 0.3, "{}", ratio.exp());
    assert!(corrected.observe(at, -1.0).is_err());
}

#[test]
fn nothing_is_learnt_from_a_handful_of_models() {
    let models: Vec<_> = [1, 2, 3].into_iter().map(measured).collect();
    let descriptions = describe([1, 2, 3].into_iter());
    let examples: Vec<_> = models
        .iter()
        .zip(&descriptions)
        .map(|(measured, description)| Example { measured, description })
        .collect();
    let error = Prior::learn(&examples).unwrap_err().to_string();
    assert_eq!(error, "models is \"3\", allowed is 8 measured models or more");
}

#[test]
fn the_shipped_descriptions_are_of_all_shipped_measurements() {
    let models = super::grid::read(include_str!("../../profiles/has-gpu-latency.csv")).unwrap();
    let descriptions = description::read(include_str!("../../profiles/operators.csv")).unwrap();
    assert_eq!(models.len(), 46);
    assert_eq!(models.iter().map(|model| model.points.len()).sum::<usize>(), 36_600);
    assert_eq!(descriptions.len(), 69);
    assert!(models.iter().all(|model| descriptions.contains_key(&model.model)));
}
