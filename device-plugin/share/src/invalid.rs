//! What every input from outside is refused with: one line that names the field, the value and what is allowed.

/// A value from outside that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value:?}, allowed is {allowed}")]
pub struct Invalid {
    field: String,
    value: String,
    allowed: String,
}

impl Invalid {
    /// `field` is `value`, but only `allowed` is.
    #[allow(clippy::needless_pass_by_value)] // Callers hand over what they format on the spot.
    pub fn new(field: impl Into<String>, value: impl ToString, allowed: impl Into<String>) -> Self {
        // A value from outside may be long; the line stays readable.
        let value = value.to_string().chars().take(80).collect();
        Self { field: field.into(), value, allowed: allowed.into() }
    }

    /// The same complaint about `field`, for callers that know the field by another name.
    #[must_use]
    pub fn in_field(self, field: &str) -> Self {
        Self { field: field.into(), ..self }
    }

    /// The same complaint, with the place that the field is in before it.
    #[must_use]
    pub fn within(self, place: &str) -> Self {
        Self { field: format!("{place}, {}", self.field), ..self }
    }
}
