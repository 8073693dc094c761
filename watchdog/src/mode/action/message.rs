//! What `OpenWhisk` sends to `/init` and `/run`, and what it takes for a result (apache/openwhisk, docs/actions-new.md).
//! Pure: it reads bytes, and gives back values that a process can be started with.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Map, Value};

/// Largest message to `/init`, in bytes: 48 MB of code, as the platform allows, in base64, and the rest.
pub(crate) const MOST_INIT: usize = 66 << 20;

/// What a client is told instead of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The answer's status.
    pub status: StatusCode,
    /// The value of `error` in the answer.
    pub words: String,
}

impl Refusal {
    /// `words` with `status`.
    pub(crate) fn new(status: StatusCode, words: impl Into<String>) -> Self {
        Self { status, words: words.into() }
    }

    /// The answer's body.
    pub(crate) fn body(&self) -> String {
        format!("{}\n", serde_json::json!({ "error": self.words }))
    }

    /// `is` bytes of `what` are more than may be.
    pub(crate) fn too_large(what: &str, is: usize, most: usize) -> Self {
        let words = format!("{what} larger than allowed: {is} > {most} bytes.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, words)
    }
}

/// An action that is made ready.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Init {
    /// Its code; `None` or empty if the image has it.
    pub code: Option<String>,
    /// Whether the code is base64 of a program or an archive.
    pub is_binary: bool,
    /// Which function of it is called.
    pub main: Option<String>,
    /// Variables that it finds.
    pub environment: Vec<(String, String)>,
}

/// An activation.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The parameters: an object or an array.
    pub value: Value,
    /// Variables that tell what the activation is.
    pub context: Vec<(String, String)>,
    /// Milliseconds since 1970 at which its time is over.
    pub deadline: Option<u64>,
}

fn object(bytes: &[u8]) -> Result<Map<String, Value>, Refusal> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    serde_json::from_slice(bytes).map_err(|error| {
        Refusal::new(StatusCode::BAD_REQUEST, format!("Error unmarshaling request: {error}"))
    })
}

impl Init {
    /// Reads the body of `/init`.
    pub fn read(bytes: &[u8]) -> Result<Self, Refusal> {
        let mut message = object(bytes)?;
        match message.remove("value") {
            None | Some(Value::Null) => Ok(Self::default()),
            Some(Value::Object(value)) => Self::of(value),
            Some(_) => Err(wrong("value", "an object")),
        }
    }

    /// Reads the object that says what the action is.
    pub(crate) fn of(mut value: Map<String, Value>) -> Result<Self, Refusal> {
        let mut text = |name: &str| match value.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
            Some(_) => Err(wrong(name, "a string")),
        };
        let (code, main) = (text("code")?, text("main")?);
        let is_binary = match value.remove("binary") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(flag)) => flag,
            Some(_) => return Err(wrong("binary", "true or false")),
        };
        let environment = match value.remove("env") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Object(variables)) => {
                variables.into_iter().filter_map(|(name, value)| variable(name, value)).collect()
            }
            Some(_) => return Err(wrong("env", "an object")),
        };
        Ok(Self { code, is_binary, main, environment })
    }
}

impl Run {
    /// Reads the body of `/run`; the parameters may have `most` bytes.
    pub fn read(bytes: &[u8], most: usize) -> Result<Self, Refusal> {
        let mut message = object(bytes)?;
        let value = message.remove("value").unwrap_or_else(|| Value::Object(Map::new()));
        Self::of(value, message, most)
    }

    /// An activation with the parameters `value` in `context`.
    pub(crate) fn of(value: Value, context: Map<String, Value>, most: usize) -> Result<Self, Refusal> {
        if !value.is_object() && !value.is_array() {
            let words = "The action did not receive a dictionary or array as an argument.";
            return Err(Refusal::new(StatusCode::NOT_FOUND, words));
        }
        let size = value.to_string().len();
        if size > most {
            return Err(Refusal::too_large("Request", size, most));
        }
        let deadline = context.get("deadline").and_then(|deadline| match deadline {
            Value::String(text) => text.parse().ok(),
            number => number.as_u64(),
        });
        let context = context
            .into_iter()
            .filter_map(|(name, value)| variable(format!("__OW_{}", name.to_uppercase()), value))
            .collect();
        Ok(Self { value, context, deadline })
    }

    /// Time that is left at `now`, since 1970, of at most `limit`.
    pub(crate) fn time_left(&self, limit: Option<Duration>, now: Duration) -> Option<Duration> {
        let left = self.deadline.map(|deadline| Duration::from_millis(deadline).saturating_sub(now));
        // The platform sends 0 where there is no deadline.
        let left = left.filter(|_| self.deadline != Some(0));
        left.into_iter().chain(limit).min()
    }
}

fn wrong(name: &str, allowed: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, format!("Error unmarshaling request: {name} is not {allowed}"))
}

/// A variable that a process can have; a value that is no text as JSON.
fn variable(name: String, value: Value) -> Option<(String, String)> {
    let value = match value {
        Value::Null => return None,
        Value::String(text) => text,
        value => value.to_string(),
    };
    let is_sound = !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
    is_sound.then_some((name, value))
}

/// The result of an activation: the bytes of an object or an array, of at most `most` bytes.
pub fn result(bytes: &[u8], most: usize) -> Result<Value, Refusal> {
    if bytes.len() > most {
        return Err(long(bytes.len(), most));
    }
    match serde_json::from_slice::<Value>(bytes) {
        Ok(value) if value.is_object() || value.is_array() => Ok(value),
        _ => {
            let words = "The action did not return a dictionary or array.";
            Err(Refusal::new(StatusCode::BAD_GATEWAY, words))
        }
    }
}

/// A result of `is` bytes is too long.
pub(crate) fn long(is: usize, most: usize) -> Refusal {
    let words =
        format!("The action produced a response that exceeded the allowed length: {is} > {most} bytes.");
    Refusal::new(StatusCode::BAD_GATEWAY, words)
}

/// The activation's, or the start's, time is over.
pub(crate) fn late(limit: Duration, is_init: bool) -> Refusal {
    let when = if is_init { " during initialization." } else { "." };
    let words = format!("The action exceeded its time limits of {} milliseconds{when}", limit.as_millis());
    Refusal::new(StatusCode::GATEWAY_TIMEOUT, words)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const MOST: usize = 1 << 20;

    #[test]
    fn an_action_is_read_with_its_variables() {
        let bytes = json!({"value": {"name": "f", "main": "main", "code": "x", "binary": true,
            "env": {"A": "1", "B": 2, "C": {"d": true}, "": "x", "E=": "x", "N": null}}});
        let init = Init::read(bytes.to_string().as_bytes()).unwrap();
        assert_eq!(
            (init.code.as_deref(), init.is_binary, init.main.as_deref()),
            (Some("x"), true, Some("main"))
        );
        let wanted = [("A", "1"), ("B", "2"), ("C", "{\"d\":true}")];
        let wanted = wanted.map(|(name, value)| (name.to_string(), value.to_string()));
        assert_eq!(init.environment, wanted);
        assert_eq!(Init::read(b"").unwrap(), Init::default());
        assert_eq!(Init::read(b"{\"value\":{\"code\":\"\"}}").unwrap().code, None);
    }

    #[test]
    fn what_is_no_message_is_refused_in_the_platforms_words() {
        for bytes in
            ["{", "[]", "1", "{\"value\":1}", "{\"value\":{\"code\":1}}", "{\"value\":{\"binary\":1}}"]
        {
            let refusal = Init::read(bytes.as_bytes()).unwrap_err();
            assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
            assert!(refusal.words.starts_with("Error unmarshaling request: "), "{refusal:?}");
        }
        let refusal = Run::read(b"{\"value\":\"x\"}", MOST).unwrap_err();
        assert_eq!(refusal.words, "The action did not receive a dictionary or array as an argument.");
        let refusal = Run::read(b"{\"value\":{\"a\":\"bcd\"}}", 10).unwrap_err();
        assert_eq!(refusal.words, "Request larger than allowed: 11 > 10 bytes.");
        assert_eq!(refusal.status, StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[test]
    fn all_but_the_parameters_is_context() {
        let run = json!({"value": {"a": 1}, "namespace": "guest", "deadline": 5000, "activation_id": "x"});
        let run = Run::read(run.to_string().as_bytes(), MOST).unwrap();
        assert_eq!(run.value, json!({"a": 1}));
        for (name, value) in
            [("__OW_NAMESPACE", "guest"), ("__OW_DEADLINE", "5000"), ("__OW_ACTIVATION_ID", "x")]
        {
            assert!(run.context.contains(&(name.to_string(), value.to_string())), "{name}");
        }
        let limit = Some(Duration::from_mins(1));
        assert_eq!(run.time_left(limit, Duration::from_secs(3)), Some(Duration::from_secs(2)));
        assert_eq!(run.time_left(limit, Duration::from_secs(9)), Some(Duration::ZERO));
        assert_eq!(Run::read(b"{}", MOST).unwrap().time_left(limit, Duration::ZERO), limit);
        let text = Run::read(b"{\"deadline\":\"5000\"}", MOST).unwrap();
        assert_eq!(text.deadline, Some(5000));
    }

    #[test]
    fn only_an_object_or_an_array_is_a_result() {
        assert_eq!(result(b" {\"a\":1}\n", MOST).unwrap(), json!({"a": 1}));
        assert!(result(b"[1]", MOST).is_ok());
        for bytes in ["", "1", "\"x\"", "null", "{", "{} {}"] {
            let words = result(bytes.as_bytes(), MOST).unwrap_err().words;
            assert_eq!(words, "The action did not return a dictionary or array.");
        }
        let words = result(b"{\"a\":1}", 3).unwrap_err().words;
        assert_eq!(words, "The action produced a response that exceeded the allowed length: 7 > 3 bytes.");
    }

    proptest! {
        #[test]
        fn a_variable_can_always_be_given_to_a_process(name in "\\PC{0,5}|[=\0a]{0,3}", value in "\\PC{0,5}|\0") {
            let message = json!({"value": {"env": {name: value}}}).to_string();
            for (name, value) in Init::read(message.as_bytes()).unwrap().environment {
                prop_assert!(!name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0'));
            }
        }

        #[test]
        fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = (Init::read(&bytes), Run::read(&bytes, 10), result(&bytes, 10));
        }
    }
}
