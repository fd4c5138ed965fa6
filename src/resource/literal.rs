use std::fmt;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A value written literally where a secret may stand (`env[].value`, `headers[].value`).
///
/// Promises that no formatting and no serialization shows it: both print `<redacted>`. Only
/// [`Literal::expose`] gives the value, to the one server it is for.
#[derive(Clone, PartialEq, Eq)]
pub struct Literal(Arc<str>);

const REDACTED_PLACEHOLDER: &str = "<redacted>";

impl Literal {
    /// Wraps a value.
    pub fn new(value: impl Into<Arc<str>>) -> Self {
        Self(value.into())
    }

    /// Tells whether this is what is printed in the place of a value: it was read back, and the value is lost.
    pub fn is_redacted(&self) -> bool {
        contains_redaction(&self.0)
    }

    /// The value itself; for resolving the connection only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Tells whether a text holds what is printed in the place of a value.
pub(super) fn contains_redaction(text: &str) -> bool {
    text.contains(REDACTED_PLACEHOLDER)
}

impl fmt::Debug for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED_PLACEHOLDER)
    }
}

impl Serialize for Literal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED_PLACEHOLDER)
    }
}

impl<'de> Deserialize<'de> for Literal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

impl JsonSchema for Literal {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Literal".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "maxLength": 32768 })
    }
}
