//! The profile of a model that nobody ran, from its description and the models that were measured.
//!
//! Pure. What is predicted is the time at the whole quota: there a gate of launches, as the measured models had one, lets
//! all pass, and a quota of GPU time stretches it as it does any other profile.

use gpu_share::invalid::Invalid;

use super::description::Description;
use super::grid::{BATCHES, Cell, SMS};
use super::prior::{Example, Prior};
use super::rehearsal::{Rehearsal, widening};
use super::sheet::{Place, Sample, Sheet};

/// Factors of intervals without a probe, of models whose family was measured and of others: what rehearsals of the shipped
/// models need, see [`super::rehearsal::widening`]. Kept, for to rehearse is to learn eight times; `make figures-profile` holds
/// them against [`factors`].
const WIDENING_OF_KIN: f64 = 0.71;
const WIDENING_OF_STRANGERS: f64 = 1.071;

/// Learns from `examples` and predicts the model `named` so: a point for each batch and SM share of the grid, with the
/// interval that holds 90 %.
pub fn sheet(
    named: &str,
    model: &Description,
    examples: &[Example<'_>],
    window_ms: f64,
) -> Result<Sheet, Invalid> {
    let is_kin = examples.iter().any(|example| example.description.family == model.family);
    let factor = if is_kin { WIDENING_OF_KIN } else { WIDENING_OF_STRANGERS };
    let surface = Prior::learn(examples)?.predict(model, &[]);
    let mut sheet = Sheet::new(named, "V100 (predicted from a description)", window_ms);
    for batch in BATCHES {
        for sm in SMS {
            let cell = Cell::at(batch, sm, 100)?;
            let latency_ms = surface.ln_ms(cell).exp();
            let (low, high) = surface.interval_ms(cell, factor);
            let place = Place { batch, sm: u8::try_from(sm).unwrap_or(100), quota: 100 };
            let interval_ms = Some([low, high]);
            sheet.points.push(Sample { place, gpu_ms: latency_ms, latency_ms, requests: 1, interval_ms });
        }
    }
    make_monotonic(&mut sheet);
    Ok(sheet)
}

/// More SMs are not slower, and a larger batch is not faster: what measurements of others say against that is their noise.
fn make_monotonic(sheet: &mut Sheet) {
    let times: Vec<_> = sheet.points.iter().map(|point| (point.place, point.latency_ms)).collect();
    for point in &mut sheet.points {
        let Place { batch, sm, .. } = point.place;
        let at = |b: u32| {
            let row = times.iter().filter(|(place, _)| place.batch == b && place.sm <= sm);
            row.map(|(_, ms)| *ms).fold(f64::INFINITY, f64::min)
        };
        let ms = BATCHES.into_iter().filter(|&smaller| smaller <= batch).map(at).fold(0.0, f64::max);
        let factor = ms / point.latency_ms;
        point.interval_ms = point.interval_ms.map(|ends| ends.map(|end| end * factor));
        (point.gpu_ms, point.latency_ms) = (ms, ms);
    }
}

/// Factors of intervals that are kept here, and what rehearsals of `examples` need in their place, which is to learn eight
/// times: of models whose family was measured, and of others.
pub fn factors(examples: &[Example<'_>]) -> Result<[(f64, f64); 2], Invalid> {
    let needed = |rehearsals: Vec<Rehearsal<'_>>| widening(&rehearsals, &[]);
    Ok([
        (WIDENING_OF_KIN, needed(Rehearsal::all(examples)?)),
        (WIDENING_OF_STRANGERS, needed(Rehearsal::of_families(examples)?)),
    ])
}
