//! What neighbours on a GPU cost, from the published curves of replicas side by side.

use std::collections::BTreeMap;

use faas_sim::gpu::Contention;
use gpu_share::invalid::Invalid;

/// FaST-GShare's curves.
const PUBLISHED: &str = include_str!("../../scenarios/fast-spatial.csv");
/// SM shares of the curves, percent.
pub(super) const SMS: [u8; 3] = [12, 24, 100];
const HEAD: &str = "model,sm,replicas,rps";

/// One measured point: replicas, and requests a second of all of them.
pub(super) type Point = (u32, f64);

/// Coefficients by model.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Neighbours {
    curves: BTreeMap<(String, u8), Vec<Point>>,
}

impl Neighbours {
    /// From the curves that are shipped.
    pub(super) fn published() -> Result<Self, Invalid> {
        Self::parse(PUBLISHED)
    }

    /// Reads lines `model,sm,replicas,rps` after a line with these names; lines that start with `#` are skipped.
    pub(super) fn parse(text: &str) -> Result<Self, Invalid> {
        let mut lines =
            text.lines().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.is_empty());
        let head = lines.next().map_or("", |(_, line)| line);
        if head != HEAD {
            return Err(Invalid::new("head of the curves", head, HEAD));
        }
        let mut found = Self::default();
        for (index, line) in lines {
            let allowed = "a model, SM share 12, 24 or 100, replicas from 1, requests a second above 0";
            let bad = || Invalid::new(format!("line {} of the curves", index + 1), line, allowed);
            let cells: Vec<_> = line.split(',').collect();
            let [model, sm, replicas, rps]: [&str; 4] = cells.try_into().map_err(|_| bad())?;
            let sm = sm.parse().ok().filter(|sm| SMS.contains(sm)).ok_or_else(bad)?;
            let replicas = replicas.parse().ok().filter(|&replicas| replicas > 0).ok_or_else(bad)?;
            let rps = rps.parse().ok().filter(|rps: &f64| rps.is_finite() && *rps > 0.0).ok_or_else(bad)?;
            found.curves.entry((model.into(), sm)).or_default().push((replicas, rps));
        }
        Ok(found)
    }

    /// The curves: model, SM share, and points.
    pub(super) fn curves(&self) -> impl Iterator<Item = (&str, u8, &[Point])> {
        self.curves.iter().map(|((model, sm), points)| (model.as_str(), *sm, points.as_slice()))
    }

    /// What neighbours cost `model`; one that was not measured gets the mean of those that were.
    pub(super) fn of(&self, model: &str) -> Contention {
        let is_known = self.curves.keys().any(|(known, _)| known == model);
        Contention::new(SMS.map(|sm| {
            let curves =
                self.curves.iter().filter(|((name, at), _)| *at == sm && (!is_known || name == model));
            let (sum, count) =
                curves.fold((0.0, 0.0), |(sum, count), (_, points)| (sum + coefficient(points), count + 1.0));
            if count > 0.0 { sum / count } else { 0.0 }
        }))
    }
}

/// What one more neighbour costs, by least squares over a curve.
fn coefficient(points: &[Point]) -> f64 {
    let Some(&(_, alone)) = points.iter().find(|(replicas, _)| *replicas == 1) else { return 0.0 };
    let slowdowns: Vec<_> =
        points.iter().map(|&(replicas, rps)| (replicas, f64::from(replicas) * alone / rps)).collect();
    Contention::fit(&slowdowns)
}

#[cfg(test)]
mod tests {
    use gpu_share::units::SmShare;

    use super::*;

    #[test]
    fn the_more_of_a_gpu_replicas_want_the_more_they_cost_each_other() {
        let neighbours = Neighbours::published().unwrap();
        for model in ["resnet", "rnnt", "gnmt", "another"] {
            let cost = |sm| neighbours.of(model).slowdown(SmShare::from_percent(sm).unwrap(), 4);
            assert!(1.0 < cost(12) && cost(12) < cost(24) && cost(24) < cost(100), "{model}");
        }
    }

    #[test]
    fn a_bad_line_is_refused() {
        for line in ["m,12,1", "m,13,1,5", "m,12,0,5", "m,12,1,-5", "m,12,1,inf"] {
            let error = Neighbours::parse(&format!("{HEAD}\n{line}\n")).unwrap_err().to_string();
            assert!(error.starts_with(&format!("line 2 of the curves is {line:?}, allowed is ")), "{error}");
        }
    }
}
