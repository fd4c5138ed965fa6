//! Deserializes YAML documents as an API server would. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_yaml::{DuplicateKeyPolicy, NonFiniteFloatPolicy, Options};

use super::documents::YamlDocument;
use super::excerpt::{ParseError, describe_yaml_error, error_position};
use super::positions::parse_nodes;

/// The strictness with which a document is parsed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// Only the API group and the name; documents of other groups may contain anything.
    Lenient,
    /// Every field, strictly.
    Strict,
}

/// Deserializes a document.
///
/// Errors: with the position and the path of the field, and without values.
pub fn deserialize_yaml<T: DeserializeOwned>(
    yaml: &YamlDocument<'_>,
    strictness: Strictness,
) -> Result<T, ParseError> {
    serde_yaml::from_str_with_options(yaml.text, parser_options(strictness))
        .map_err(|error| describe_yaml_error(&error, yaml.text, yaml.first_line, &path_at(yaml, &error)))
}

/// Returns the path of the field that an error is about; empty if it is about the whole document.
fn path_at(yaml: &YamlDocument<'_>, error: &serde_yaml::Error) -> String {
    let position = error_position(error, yaml.first_line);
    let nodes = parse_nodes(yaml.text, yaml.first_line);
    let before = nodes
        .into_iter()
        .take_while(|node| (node.position.line, node.position.column) <= (position.line, position.column));
    let Some(node) = before.last() else { return String::new() };
    // A missing field is reported at the first field beside it.
    let is_beside = matches!(error.without_snippet(), serde_yaml::Error::SerdeMissingField { .. })
        && node.position == position
        && !node.path.ends_with(']');
    let outer = node.path.rfind('.').and_then(|end| node.path.get(..end));
    if is_beside { outer.unwrap_or_default().to_owned() } else { node.path }
}

/// Parses as an API server would: `yes` is not a boolean, and a bare number is not a string. The budget is bounded,
/// because a small file can describe a huge document.
fn parser_options(strictness: Strictness) -> Options {
    serde_yaml::options! {
        budget: serde_yaml::budget! {
            max_depth: 96,
            max_nodes: 100_000,
            max_events: 300_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_recorded_anchor_events: 20_000,
            max_merge_keys: 1_000,
        },
        alias_limits: serde_yaml::alias_limits! {
            max_total_replayed_events: 20_000,
            max_replay_stack_depth: 16,
        },
        duplicate_keys: match strictness {
            Strictness::Lenient => DuplicateKeyPolicy::FirstWins,
            Strictness::Strict => DuplicateKeyPolicy::Error,
        },
        emit_comments: false,
        no_schema: true,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        reject_unsupported_tags: strictness == Strictness::Strict,
        strict_booleans: true,
        with_snippet: false,
    }
}

/// A complete manifest, parsed strictly.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "these fields are accepted and ignored")]
pub struct Manifest<S> {
    api_version: Option<IgnoredAny>,
    kind: Option<IgnoredAny>,
    pub metadata: Metadata,
    pub spec: S,
    status: Option<IgnoredAny>,
}

/// The fields that people write in `metadata`, and those that `kubectl get -o yaml` adds.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "these fields are accepted and ignored")]
pub struct Metadata {
    name: Option<IgnoredAny>,
    namespace: Option<IgnoredAny>,
    pub labels: Option<BTreeMap<String, String>>,
    pub annotations: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<IgnoredAny>,
    deletion_grace_period_seconds: Option<IgnoredAny>,
    deletion_timestamp: Option<IgnoredAny>,
    finalizers: Option<IgnoredAny>,
    generate_name: Option<IgnoredAny>,
    generation: Option<IgnoredAny>,
    managed_fields: Option<IgnoredAny>,
    owner_references: Option<IgnoredAny>,
    resource_version: Option<IgnoredAny>,
    self_link: Option<IgnoredAny>,
    uid: Option<IgnoredAny>,
}

/// The fields that identify the object of a document, whatever else the document contains.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectOutline {
    pub api_version: Option<String>,
    pub kind: Option<String>,
    pub metadata: Option<ObjectNames>,
}

#[derive(Default, Deserialize)]
pub struct ObjectNames {
    pub name: Option<String>,
    pub namespace: Option<String>,
}

/// The one field that shows the API group of a document.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiVersionField {
    pub api_version: Option<String>,
}
