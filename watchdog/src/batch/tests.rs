//! Tests of merging and splitting, against `serde_json`'s own view of the same texts.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// A request with `rows` rows of `width` numbers in each of two tensors; numbers that a float would not keep.
fn request(id: usize, rows: u64, width: u64, nested: bool) -> String {
    let number = |n: u64| format!("{id}.{n:019}1e-7");
    let row = |r: u64| (0..width).map(|n| number(r * width + n)).collect::<Vec<_>>().join(" , ");
    let data = (0..rows).map(|r| if nested { format!("[{}]", row(r)) } else { row(r) });
    let data = data.collect::<Vec<_>>().join(",");
    let words = (0..rows).map(|r| format!("\"{id}:{r},]\\\"\"")).collect::<Vec<_>>().join(",");
    format!(
        r#"{{ "id" : "r{id}", "inputs": [
            {{"name":"x","datatype":"FP64","shape":[{rows}, {width}],"data":[{data}]}},
            {{"name":"w","shape":[{rows}],"datatype":"BYTES","data":[ {words} ]}} ] }}"#
    )
}

/// What a function answers that gives its inputs back.
fn echo(request: &str) -> String {
    let inputs = members(request).unwrap().find(|(name, _)| *name == "\"inputs\"").unwrap().1;
    format!(r#"{{"model_name":"m","id":"whose?","outputs":{inputs},"model_version":"1"}}"#)
}

fn texts(tensor: &str) -> Vec<&str> {
    elements(tensor).map(|span| &tensor[span]).collect()
}

proptest! {
    #[test]
    fn merged_and_split_again_every_request_gets_its_own_rows_unchanged(
        rows in prop::collection::vec(1_u64..5, 1..6), width in 1_u64..4, nested in any::<bool>(),
    ) {
        let bodies: Vec<_> =
            rows.iter().enumerate().map(|(id, rows)| request(id, *rows, width, nested)).collect();
        let requests: Vec<_> = bodies.iter().map(|body| Infer::read(body.as_bytes()).unwrap()).collect();
        prop_assert!(requests.iter().all(|request| request.kind() == requests[0].kind()));
        let merged = merge(&requests);
        let total = rows.iter().sum::<u64>();
        prop_assert_eq!(Infer::read(merged.as_bytes()).unwrap().rows(), total);
        let wanted: Vec<_> = requests.iter().map(|request| (request.rows(), request.id())).collect();
        let answers = split(echo(&merged).as_bytes(), &wanted).unwrap();
        for ((answer, request), id) in answers.iter().zip(&requests).zip(0..) {
            let value: Value = serde_json::from_str(answer).unwrap();
            prop_assert_eq!(&value["id"], &json!(format!("r{id}")));
            prop_assert_eq!(&value["model_version"], "1");
            prop_assert_eq!(&value["outputs"][0]["shape"], &json!([request.rows(), width]));
            let outputs = members(answer).unwrap().find(|(name, _)| *name == "\"outputs\"").unwrap().1;
            let outputs = tensors(outputs).unwrap();
            for (output, input) in outputs.iter().zip(&request.inputs) {
                prop_assert_eq!(texts(output.data), texts(input.data));
            }
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in ".{0,200}") {
        let _ = Infer::read(text.as_bytes());
        let _ = split(text.as_bytes(), &[(1, None), (2, Some("1"))]);
        for span in elements(&text) {
            prop_assert!(text.get(span).is_some());
        }
    }

    #[test]
    fn json_that_is_nearly_a_request_is_read_or_refused(
        parts in prop::collection::vec(prop::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"inputs\"", "\"shape\"", "\"data\"", "\"id\"", "1", "2", "-1", "1e9",
            "\"\\\"\"", "null", "[1]", "[[1,2]]", "{\"inputs\":[{\"shape\":[1],\"data\":[1]}]}",
        ]), 0..20),
    ) {
        let text = parts.concat();
        if let Some(request) = Infer::read(text.as_bytes()) {
            prop_assert!(is_json(&merge(&[request.clone(), request])));
        }
    }
}

#[test]
fn what_cannot_be_merged_is_left_alone() {
    let tensor = r#"{"name":"x","datatype":"FP32","shape":[2,2],"data":[1,2,3,4]}"#;
    assert!(Infer::read(format!(r#"{{"inputs":[{tensor}]}}"#).as_bytes()).is_some());
    for body in [
        "",
        "[]",
        "{}",
        r#"{"inputs":[]}"#,
        r#"{"inputs":[{"shape":[2,2],"data":[1,2,3]}]}"#,
        r#"{"inputs":[{"shape":[0,2],"data":[]}]}"#,
        r#"{"inputs":[{"shape":[],"data":[1]}]}"#,
        r#"{"inputs":[{"shape":[-1],"data":[1]}]}"#,
        r#"{"inputs":[{"shape":[18446744073709551615,2],"data":[1]}]}"#,
        r#"{"inputs":[{"shape":[1],"data":[1],"data":[2]}]}"#,
        r#"{"inputs":[{"shape":[1],"data":[1],"n\u0061me":"x"}]}"#,
        r#"{"inputs":[{"shape":[1],"data":[1]},{"shape":[2],"data":[1,2]}]}"#,
        r#"{"inputs":[{"shape":[1],"data":[1]}],"unknown":1}"#,
        r#"{"inputs":[{"shape":[1],"data":[1]}],"id":"a","id":"b"}"#,
        r#"{"inputs":[{"shape":[1],"data":[1]}]} x"#,
    ] {
        assert_eq!(Infer::read(body.as_bytes()), None, "{body}");
    }
}

#[test]
fn requests_with_other_types_shapes_or_parameters_are_of_another_kind() {
    let kind = |inputs: &str, rest: &str| {
        Infer::read(format!(r#"{{"inputs":[{inputs}]{rest}}}"#).as_bytes()).unwrap().kind()
    };
    let same = kind(r#"{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2]}"#, "");
    assert_eq!(
        kind(r#"{"name":"x","datatype":"FP32","shape":[2,2],"data":[1,2,3,4]}"#, r#","id":"7""#),
        same
    );
    for (inputs, rest) in [
        (r#"{"name":"y","datatype":"FP32","shape":[1,2],"data":[1,2]}"#, ""),
        (r#"{"name":"x","datatype":"INT8","shape":[1,2],"data":[1,2]}"#, ""),
        (r#"{"name":"x","datatype":"FP32","shape":[1,3],"data":[1,2,3]}"#, ""),
        (r#"{"name":"x","datatype":"FP32","shape":[1,2],"data":[[1,2]]}"#, ""),
        (r#"{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2]}"#, r#","parameters":{"t":1}"#),
        (r#"{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2]}"#, r#","outputs":[{"name":"a"}]"#),
    ] {
        assert_ne!(kind(inputs, rest), same, "{inputs} {rest}");
    }
}

#[test]
fn an_answer_with_other_rows_is_not_split() {
    let answer = |rows: u64, data: &str| {
        let outputs = format!(r#"[{{"name":"y","datatype":"FP32","shape":[{rows}],"data":[{data}]}}]"#);
        split(format!(r#"{{"outputs":{outputs}}}"#).as_bytes(), &[(1, None), (2, None)])
    };
    assert_eq!(answer(3, "1,2,3").unwrap().len(), 2);
    assert_eq!(answer(2, "1,2"), None);
    assert_eq!(answer(4, "1,2,3,4"), None);
    assert_eq!(answer(3, "1,2"), None);
    assert_eq!(split(b"{}", &[(1, None)]), None);
    assert_eq!(split(br#"{"error":"no"}"#, &[(1, None)]), None);
}
