use std::fmt;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A literal value in a field that may contain a secret (`env[].value`, `headers[].value`).
///
/// Promises that neither formatting nor serialization reveals the value: both print `<redacted>`. Only
/// [`Literal::expose`] returns it, for use by the one server that it is declared for.
#[derive(Clone, PartialEq, Eq)]
pub struct Literal(Arc<str>);

const REDACTED_PLACEHOLDER: &str = "<redacted>";

impl Literal {
    /// Wraps a value.
    pub fn new(value: impl Into<Arc<str>>) -> Self {
        Self(value.into())
    }

    /// Returns true if this is the placeholder instead of a value: it was printed by evenkeel and read back, and the
    /// original value is lost.
    pub fn is_redacted(&self) -> bool {
        contains_redaction(&self.0)
    }

    /// Returns the value. Only for resolving the connection.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Returns true if a text contains the placeholder that is printed instead of a value.
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
