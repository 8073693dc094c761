//! Requests of the Open Inference Protocol v2 that share their tensors' types and row shapes: merged into one request
//! along the first dimension, and the answer split again. Pure text work: numbers stay as they were written. It sends
//! nothing and waits for nothing.

use std::fmt::Write as _;

pub(crate) mod json;

use json::{elements, is_json, members, unbracketed};

/// A request whose inputs all have the same number of rows, and which can be merged with others of its [`Infer::kind`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Infer<'a> {
    id: Option<&'a str>,
    parameters: Option<&'a str>,
    outputs: Option<&'a str>,
    inputs: Vec<Tensor<'a>>,
    rows: u64,
}

/// A tensor whose first dimension can be cut. All texts are JSON as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tensor<'a> {
    rows: u64,
    row_shape: Vec<u64>,
    /// All members but `shape` and `data`.
    rest: Vec<(&'a str, &'a str)>,
    /// What is between the brackets.
    data: &'a str,
    /// Elements of `data` for each row: one where rows are arrays of their own.
    per_row: u64,
}

impl<'a> Tensor<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let (mut shape, mut data, mut rest) = (None, None, Vec::new());
        for (name, value) in members(text)? {
            match name {
                "\"shape\"" if shape.is_none() => shape = Some(dimensions(value)?),
                "\"data\"" if data.is_none() => data = Some(unbracketed(value)?),
                // Which of two equal names counts is for the function to say.
                _ if rest.iter().any(|(known, _)| *known == name) => return None,
                "\"shape\"" | "\"data\"" => return None,
                _ => rest.push((name, value)),
            }
        }
        let (mut shape, data) = (shape?, data?);
        let rows = if shape.is_empty() { return None } else { shape.remove(0) };
        let stride = shape.iter().try_fold(1_u64, |product, size| product.checked_mul(*size))?;
        let is_nested = data.starts_with('[');
        let per_row = if is_nested { 1 } else { stride };
        let count = elements(data).count() as u64;
        let is_whole = rows > 0 && stride > 0 && count == rows.checked_mul(per_row)?;
        is_whole.then_some(Self { rows, row_shape: shape, rest, data, per_row })
    }

    /// Writes the tensor with other rows and data.
    fn write(&self, rows: u64, data: impl FnOnce(&mut String), into: &mut String) {
        into.push('{');
        for (name, value) in &self.rest {
            let _ = write!(into, "{name}:{value},");
        }
        let _ = write!(into, "\"shape\":[{rows}");
        for size in &self.row_shape {
            let _ = write!(into, ",{size}");
        }
        into.push_str("],\"data\":[");
        data(into);
        into.push_str("]}");
    }

    /// The data of consecutive runs of rows, as long as `rows` says, which must sum up to all.
    fn cut(&self, rows: &[u64]) -> Option<Vec<&'a str>> {
        let mut all = elements(self.data);
        let mut pieces = Vec::with_capacity(rows.len());
        for count in rows {
            let count = usize::try_from(count.checked_mul(self.per_row)?).ok()?;
            let first = all.next()?;
            let last = if count == 1 { first.clone() } else { all.nth(count.checked_sub(2)?)? };
            pieces.push(self.data.get(first.start..last.end)?);
        }
        all.next().is_none().then_some(pieces)
    }
}

fn dimensions(text: &str) -> Option<Vec<u64>> {
    let text = unbracketed(text)?;
    elements(text).map(|span| text.get(span)?.parse().ok()).collect()
}

impl<'a> Infer<'a> {
    /// Reads a request's body. `None`: it is not a request that can be merged, or not a request at all, and the function
    /// should see it as it is.
    pub fn read(body: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(body).ok().filter(|text| is_json(text))?;
        let (mut id, mut parameters, mut outputs, mut inputs) = (None, None, None, None);
        for (name, value) in members(text)? {
            let slot = match name {
                "\"id\"" => &mut id,
                "\"parameters\"" => &mut parameters,
                "\"outputs\"" => &mut outputs,
                "\"inputs\"" => &mut inputs,
                _ => return None,
            };
            if slot.replace(value).is_some() {
                return None;
            }
        }
        let inputs = tensors(inputs?)?;
        let rows = inputs.first()?.rows;
        let is_even = inputs.iter().all(|tensor| tensor.rows == rows);
        is_even.then_some(Self { id, parameters, outputs, inputs, rows })
    }

    /// Its size along the first dimension.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Its own name for itself, as JSON.
    pub fn id(&self) -> Option<&'a str> {
        self.id
    }

    /// Equal for requests that can be merged.
    pub fn kind(&self) -> String {
        let mut kind = format!("{:?}{:?}", self.parameters, self.outputs);
        for tensor in &self.inputs {
            let is_nested = tensor.data.starts_with('[');
            let _ = write!(kind, "{:?}{:?}{is_nested}", tensor.rest, tensor.row_shape);
        }
        kind
    }
}

fn tensors(text: &str) -> Option<Vec<Tensor<'_>>> {
    let text = unbracketed(text)?;
    elements(text).map(|span| Tensor::read(text.get(span)?)).collect()
}

/// One request with the rows of all `requests`, which must be of one kind.
pub fn merge(requests: &[Infer<'_>]) -> String {
    let Some(first) = requests.first() else { return "{\"inputs\":[]}".to_string() };
    let rows = requests.iter().map(|request| request.rows).sum();
    let mut merged = String::from("{");
    for (name, value) in [("parameters", first.parameters), ("outputs", first.outputs)] {
        if let Some(value) = value {
            let _ = write!(merged, "\"{name}\":{value},");
        }
    }
    merged.push_str("\"inputs\":[");
    for (at, tensor) in first.inputs.iter().enumerate() {
        let pieces = requests.iter().filter_map(|request| request.inputs.get(at)).map(|tensor| tensor.data);
        let join = |into: &mut String| join(pieces, into);
        separate(at, &mut merged);
        tensor.write(rows, join, &mut merged);
    }
    merged.push_str("]}");
    merged
}

fn join<'a>(pieces: impl Iterator<Item = &'a str>, into: &mut String) {
    for (number, piece) in pieces.enumerate() {
        separate(number, into);
        into.push_str(piece);
    }
}

fn separate(number: usize, into: &mut String) {
    if number > 0 {
        into.push(',');
    }
}

/// The answers to requests with these `rows` and ids, out of the one to their merged request. `None`: it can't be told
/// which rows belong to whom.
pub fn split(answer: &[u8], requests: &[(u64, Option<&str>)]) -> Option<Vec<String>> {
    let text = std::str::from_utf8(answer).ok().filter(|text| is_json(text))?;
    let members: Vec<_> = members(text)?.collect();
    let mut outputs = members.iter().filter(|(name, _)| *name == "\"outputs\"");
    let (outputs, None) = (tensors(outputs.next()?.1)?, outputs.next()) else { return None };
    let rows: Vec<u64> = requests.iter().map(|(rows, _)| *rows).collect();
    let cuts: Vec<_> = outputs.iter().map(|tensor| tensor.cut(&rows)).collect::<Option<_>>()?;
    let answers = requests.iter().enumerate().map(|(number, (rows, id))| {
        let mut answer = String::from("{");
        for (name, value) in members.iter().filter(|(name, _)| !matches!(*name, "\"id\"" | "\"outputs\"")) {
            let _ = write!(answer, "{name}:{value},");
        }
        if let Some(id) = id {
            let _ = write!(answer, "\"id\":{id},");
        }
        answer.push_str("\"outputs\":[");
        for (at, (tensor, cut)) in outputs.iter().zip(&cuts).enumerate() {
            separate(at, &mut answer);
            tensor.write(*rows, |into| into.push_str(cut[number]), &mut answer);
        }
        answer.push_str("]}");
        answer
    });
    Some(answers.collect())
}

#[cfg(test)]
mod tests;
