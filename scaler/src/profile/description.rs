//! What is known of a model without running it: its operators, and what they compute, read and write.
//!
//! Pure. A description is what a reader of model files makes of one: operators of one kind summed up, at batch 1.

use std::collections::BTreeMap;

use gpu_share::invalid::Invalid;

/// Kinds of operators that multiply: they take time in proportion to their multiply-accumulates.
const MULTIPLYING: [(&str, Work); 6] = [
    ("conv", Work::Conv),
    ("pointwise", Work::Pointwise),
    ("depthwise", Work::Depthwise),
    ("grouped", Work::Grouped),
    ("linear", Work::Linear),
    ("matmul", Work::Linear),
];
/// Kinds of operators that only move data.
const MOVING: [&str; 9] =
    ["norm", "layernorm", "activation", "add", "multiply", "pool", "concat", "permute", "softmax"];

/// Ways of multiplying that reach different parts of the GPU's peak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// Convolution with a window, one group.
    Conv,
    /// Convolution with a window of 1.
    Pointwise,
    /// Convolution with a group for each channel.
    Depthwise,
    /// Convolution in groups of several channels.
    Grouped,
    /// Product of matrices.
    Linear,
}

/// Number of ways of multiplying.
pub(super) const WORKS: usize = 5;

/// A model without its weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Description {
    /// Architecture that it is a size of, such as `resnet`.
    pub family: String,
    /// 10⁹ multiply-accumulates of one item, by way of multiplying.
    pub(super) work: [f64; WORKS],
    /// 10⁶ elements of one item that operators read and write.
    pub(super) traffic: f64,
    /// 10⁶ weights.
    pub(super) weights: f64,
    /// Operators: each one is at least one launch.
    pub(super) operators: f64,
}

impl Description {
    /// Features that models are compared by, each in units of a typical distance: work, traffic and launches.
    pub(super) fn size(&self) -> [f64; 3] {
        let work: f64 = self.work.iter().sum();
        [work.ln() / 1.6, self.traffic.ln() / 1.2, self.operators.ln() / 0.9]
    }

    /// Parts of the work by way of multiplying, in units of a typical distance.
    pub(super) fn mix(&self) -> [f64; WORKS] {
        let work: f64 = self.work.iter().sum();
        self.work.map(|part| part / work / 0.6)
    }

    /// The architecture that its family is a variant of: `ResNeXt` and wide `ResNet` are `ResNets`, families that differ
    /// after `_` are variants.
    pub(super) fn kin(&self) -> &str {
        match self.family.split('_').next().unwrap_or_default() {
            "resnext" | "wide" => "resnet",
            kin => kin,
        }
    }

    /// Of operators, summed up by kind: how many, their multiply-accumulates and weights, and the elements that they read
    /// and write besides, all for one item.
    pub fn of<'a>(
        family: &str,
        operators: impl IntoIterator<Item = (&'a str, [f64; 5])>,
    ) -> Result<Self, Invalid> {
        let mut description = Self { family: family.into(), ..Self::default() };
        operators.into_iter().try_for_each(|(kind, counts)| description.add(kind, counts))?;
        description.check()?;
        Ok(description)
    }

    /// Work is what models are compared by.
    fn check(&self) -> Result<(), Invalid> {
        let works = self.work.iter().sum::<f64>() > 0.0;
        works.then_some(()).ok_or_else(|| Invalid::new("operators", "none that multiplies", "one or more"))
    }

    fn add(&mut self, kind: &str, counts: [f64; 5]) -> Result<(), Invalid> {
        let [count, macs, weights, reads, writes] = counts;
        match MULTIPLYING.iter().find(|(name, _)| *name == kind) {
            Some(&(_, work)) => self.work[work as usize] += macs / 1e9,
            None if MOVING.contains(&kind) => {}
            None => {
                let known: Vec<_> = MULTIPLYING.iter().map(|(name, _)| *name).chain(MOVING).collect();
                return Err(Invalid::new("operator", kind, known.join(", ")));
            }
        }
        self.operators += count;
        self.traffic += (reads + writes) / 1e6;
        self.weights += weights / 1e6;
        Ok(())
    }
}

/// First line of a file of descriptions.
const HEAD: &str = "model,family,operator,count,macs,weights,reads,writes";

/// Reads lines `model,family,operator,count,macs,weights,reads,writes` after a line with these names; lines that start
/// with `#` are skipped.
///
/// A line sums up the operators of one kind: how many, their multiply-accumulates and weights, and the elements that
/// they read and write besides, all for one item.
pub fn read(text: &str) -> Result<BTreeMap<String, Description>, Invalid> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.is_empty());
    match lines.next() {
        Some((_, HEAD)) => {}
        head => return Err(Invalid::new("first line", head.map_or("", |line| line.1), HEAD)),
    }
    let mut models: BTreeMap<String, Description> = BTreeMap::new();
    for (index, line) in lines {
        operators(line, &mut models).map_err(|error| error.within(&format!("line {}", index + 1)))?;
    }
    for (name, model) in &models {
        model.check().map_err(|error| error.within(&format!("model {name}")))?;
    }
    Ok(models)
}

fn operators(line: &str, models: &mut BTreeMap<String, Description>) -> Result<(), Invalid> {
    let columns: Vec<_> = line.split(',').collect();
    let [model, family, kind, numbers @ ..] = &columns[..] else {
        return Err(Invalid::new("columns", line, HEAD));
    };
    let number = |text: &&str| {
        let value = text.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0);
        value.ok_or_else(|| Invalid::new("count", text, "a number of 0 or more"))
    };
    let numbers = numbers.iter().map(number).collect::<Result<Vec<_>, _>>()?;
    let counts = <[f64; 5]>::try_from(numbers).map_err(|_| Invalid::new("columns", line, HEAD))?;
    if model.is_empty() || family.is_empty() {
        return Err(Invalid::new("model and family", line, "names"));
    }
    let description = models.entry((*model).into()).or_default();
    (*family).clone_into(&mut description.family);
    description.add(kind, counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_are_summed_up_by_what_they_cost() {
        let text = format!(
            "{HEAD}\nm,net,conv,2,3e9,5e6,1e6,1e6\nm,net,matmul,1,1e9,0,0,1e6\nm,net,add,4,0,0,2e6,1e6\n"
        );
        let models = read(&text).unwrap();
        let model = &models["m"];
        let expected = [3.0, 0.0, 0.0, 0.0, 1.0];
        assert!(model.work.iter().zip(expected).all(|(work, expected)| (work - expected).abs() < 1e-12));
        assert!((model.operators - 7.0).abs() < 1e-12);
        assert!((model.traffic - 6.0).abs() < 1e-12);
        assert!((model.weights - 5.0).abs() < 1e-12);
    }

    #[test]
    fn variants_of_an_architecture_are_kin() {
        let kin =
            |family: &str| Description { family: family.into(), ..Description::default() }.kin().to_string();
        assert_eq!(kin("resnext"), kin("resnet"));
        assert_eq!(kin("regnet_x"), kin("regnet_y"));
        assert_ne!(kin("vgg"), kin("resnet"));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let cases = [
            ("x\n", "first line is"),
            ("m,net,conv,1,2\n", "line 2, columns is"),
            ("m,net,teleport,1,2,3,4,5\n", "line 2, operator is \"teleport\""),
            ("m,net,conv,1,-2,3,4,5\n", "line 2, count is \"-2\""),
            (",net,conv,1,2,3,4,5\n", "line 2, model and family is"),
            ("m,net,add,1,0,0,1,1\n", "model m, operators is"),
        ];
        for (lines, start) in cases {
            let text = if lines == "x\n" { lines.into() } else { format!("{HEAD}\n{lines}") };
            let error = read(&text).unwrap_err().to_string();
            assert!(error.starts_with(start), "{lines:?}: {error}");
        }
    }
}
