//! The API server's question about a pod, and the answer: a patch, or why not.

use kube::core::DynamicObject;
use kube::core::admission::{
    AdmissionRequest, AdmissionResponse, AdmissionReview, ConvertAdmissionReviewError,
};

use super::{Settings, admit};

/// What came of a review.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The pod stays as it is.
    Unchanged,
    /// It is given something.
    Patched,
    /// It is refused, and why.
    Refused(String),
    /// What came is no review that can be answered, and why.
    Unreadable(String),
}

/// Answers a review. One that can't be read is answered too, so that the API server can say why it was refused.
pub fn answer(body: &[u8], settings: &Settings) -> (AdmissionReview<DynamicObject>, Outcome) {
    let request = serde_json::from_slice::<AdmissionReview<DynamicObject>>(body)
        .map_err(|error| error.to_string())
        .and_then(|review| review.try_into().map_err(|error: ConvertAdmissionReviewError| error.to_string()));
    let decided = request.and_then(|request| decide(&request, settings));
    let (response, outcome) = decided.unwrap_or_else(|why| {
        let response = AdmissionResponse::invalid(format!("the review can't be answered: {why}"));
        (response, Outcome::Unreadable(why))
    });
    (response.into_review(), outcome)
}

fn decide(
    request: &AdmissionRequest<DynamicObject>,
    settings: &Settings,
) -> Result<(AdmissionResponse, Outcome), String> {
    let response = AdmissionResponse::from(request);
    let Some(object) = request.object.as_ref().filter(|_| request.kind.kind == "Pod") else {
        return Ok((response, Outcome::Unchanged));
    };
    let pod = serde_json::to_value(object).map_err(|error| error.to_string())?;
    let admitted = match admit(&pod, settings) {
        Ok(admitted) => admitted,
        Err(denied) => return Ok((response.deny(&denied), Outcome::Refused(denied.to_string()))),
    };
    let patch = json_patch::diff(&pod, &admitted);
    if patch.is_empty() {
        return Ok((response, Outcome::Unchanged));
    }
    let response = response.with_patch(patch).map_err(|error| error.to_string())?;
    Ok((response, Outcome::Patched))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::webhook::settings;

    fn asked(pod: &Value) -> Value {
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "u-1", "operation": "CREATE", "userInfo": {}, "dryRun": false, "object": pod,
                "kind": {"group": "", "version": "v1", "kind": "Pod"},
                "resource": {"group": "", "version": "v1", "resource": "pods"},
            },
        });
        serde_json::to_value(answer(review.to_string().as_bytes(), &settings()).0).unwrap()["response"]
            .clone()
    }

    fn pod(quota: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "f", "labels": {"gpufn.dev/enabled": "true"}, "annotations": {"gpufn.dev/quota": quota}},
            "spec": {"containers": [{"name": "main", "image": "f"}], "fieldOfTomorrow": [1]},
        })
    }

    #[test]
    fn a_pod_is_patched_in_what_it_is_given_and_nothing_else() {
        let response = asked(&pod("20"));
        assert_eq!((&response["uid"], &response["allowed"]), (&json!("u-1"), &json!(true)));
        assert_eq!(response["patchType"], "JSONPatch");
        let text: Vec<u8> = serde_json::from_value(response["patch"].clone()).unwrap();
        let patch: json_patch::Patch = serde_json::from_slice(&text).unwrap();
        let paths: Vec<_> = patch.iter().map(|operation| operation.path().to_string()).collect();
        let expected = [
            "/spec/affinity",
            "/spec/containers/0/env",
            "/spec/containers/0/resources",
            "/spec/runtimeClassName",
            "/spec/terminationGracePeriodSeconds",
        ];
        assert_eq!(paths, expected);
    }

    #[test]
    fn a_refusal_says_why() {
        let response = asked(&pod("200"));
        assert_eq!(response["allowed"], false);
        let why = "gpufn.dev/quota is \"200\", allowed is a whole number from 1 to 100 (percent)";
        assert_eq!(response["status"]["message"], why);
    }

    #[test]
    fn what_is_no_review_is_refused() {
        for wrong in [&b"{"[..], b"{}", br#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#] {
            let (review, outcome) = answer(wrong, &settings());
            let review = serde_json::to_value(review).unwrap();
            assert_eq!(review["response"]["allowed"], false, "{review}");
            assert!(matches!(outcome, Outcome::Unreadable(_)), "{outcome:?}");
        }
    }
}
