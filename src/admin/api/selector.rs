use std::collections::BTreeMap;

use super::object_version::{AnyObject, ObjectVersion};
use super::parameters::Parameters;
use super::resource::Resource;
use crate::admin::error_response::ErrorResponse;
use crate::report::Regarding;
use crate::resource::API_VERSION;

/// Selects objects of a resource by namespace, name, labels and fields.
#[derive(Debug)]
pub(super) struct Selector {
    pub resource: Resource,
    pub namespace: Option<String>,
    pub name: Option<String>,
    labels: Vec<(String, LabelRequirement)>,
    fields: Vec<(String, bool, String)>,
}

/// A requirement on the value of a label.
#[derive(Debug, PartialEq, Eq)]
enum LabelRequirement {
    Exists,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
}

impl Selector {
    pub fn new(
        resource: Resource,
        namespace: Option<String>,
        name: Option<String>,
        parameters: &Parameters,
    ) -> Result<Self, ErrorResponse> {
        let (labels, fields) =
            (parse_labels(&parameters.label_selector)?, parse_fields(&parameters.field_selector)?);
        for (field, _, _) in &fields {
            let events = matches!(resource, Resource::Events | Resource::CoreEvents);
            let supported = match field.as_str() {
                "metadata.name" | "metadata.namespace" => true,
                field => events && EVENT_FIELDS.contains(&strip_object_prefix(field)),
            };
            if !supported {
                return Err(ErrorResponse::bad_request(format!(
                    "field label not supported: {field}; supported: metadata.name, metadata.namespace"
                )));
            }
        }
        Ok(Self { resource, namespace, name, labels, fields })
    }

    /// True if an object is selected.
    pub fn matches(&self, item: &ObjectVersion) -> bool {
        let none = BTreeMap::new();
        let labels = item.labels().unwrap_or(&none);
        self.namespace.as_ref().is_none_or(|namespace| **namespace == *item.key.namespace)
            && self.name.as_ref().is_none_or(|name| **name == *item.key.name)
            && self.labels.iter().all(|(key, requirement)| requirement.matches(labels.get(key)))
            && self.fields.iter().all(|(field, equal, value)| (field_value(item, field) == *value) == *equal)
    }
}

/// The fields that select events. Those of the regarded object are without their prefix.
const EVENT_FIELDS: [&str; 10] = [
    "kind",
    "namespace",
    "name",
    "uid",
    "apiVersion",
    "fieldPath",
    "reason",
    "type",
    "source",
    "reportingController",
];

fn strip_object_prefix(field: &str) -> &str {
    ["involvedObject.", "regarding."].iter().find_map(|prefix| field.strip_prefix(prefix)).unwrap_or(field)
}

fn field_value(item: &ObjectVersion, field: &str) -> String {
    match field {
        "metadata.name" => return item.key.name.to_string(),
        "metadata.namespace" => return item.key.namespace.to_string(),
        _ => {}
    }
    let AnyObject::Event(event) = &item.object else { return String::new() };
    let Regarding { kind, key, uid, .. } = &event.latest.regarding;
    match strip_object_prefix(field) {
        "kind" => kind.name().into(),
        "namespace" => key.namespace.to_string(),
        "name" => key.name.to_string(),
        "uid" => uid.to_string(),
        "apiVersion" => API_VERSION.into(),
        "reason" => event.latest.reason.to_string(),
        "type" => if event.latest.warning { "Warning" } else { "Normal" }.into(),
        "source" | "reportingController" => "evenkeel".into(),
        _ => String::new(),
    }
}

impl LabelRequirement {
    fn matches(&self, value: Option<&String>) -> bool {
        match self {
            Self::Exists => value.is_some(),
            Self::Absent => value.is_none(),
            Self::In(values) => value.is_some_and(|value| values.contains(value)),
            Self::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
        }
    }
}

/// Parses `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
fn parse_labels(selector: &str) -> Result<Vec<(String, LabelRequirement)>, ErrorResponse> {
    split_terms(selector)
        .into_iter()
        .map(|part| {
            parse_label_requirement(part).ok_or_else(|| ErrorResponse::invalid_selector(selector, part))
        })
        .collect()
}

fn parse_label_requirement(part: &str) -> Option<(String, LabelRequirement)> {
    let one_value = |value: &str| vec![value.trim().to_owned()];
    let (key, requirement) = if let Some((key, value)) = part.split_once("!=") {
        (key, LabelRequirement::NotIn(one_value(value)))
    } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        (key, LabelRequirement::In(one_value(value)))
    } else if let Some(without_paren) = part.strip_suffix(')') {
        let (head, values) = without_paren.split_once('(')?;
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        let (key, operator) = head.trim().rsplit_once(char::is_whitespace)?;
        match operator {
            "in" => (key, LabelRequirement::In(values)),
            "notin" => (key, LabelRequirement::NotIn(values)),
            _ => return None,
        }
    } else if let Some(key) = part.strip_prefix('!') {
        (key, LabelRequirement::Absent)
    } else {
        (part, LabelRequirement::Exists)
    };
    let key = key.trim();
    let is_name = |char: char| char.is_ascii_alphanumeric() || "-_./".contains(char);
    (!key.is_empty() && key.chars().all(is_name)).then(|| (key.to_owned(), requirement))
}

/// Parses `a=b,c!=d`. A backslash escapes a comma or equals sign in a value.
fn parse_fields(selector: &str) -> Result<Vec<(String, bool, String)>, ErrorResponse> {
    let field = |part: &str| {
        let (key, equal, value) = if let Some((key, value)) = part.split_once("!=") {
            (key, false, value)
        } else {
            let (key, value) = part.split_once("==").or_else(|| part.split_once('='))?;
            (key, true, value)
        };
        Some((key.trim().to_owned(), equal, value.replace('\\', "")))
    };
    split_terms(selector)
        .into_iter()
        .map(|part| field(part).ok_or_else(|| ErrorResponse::invalid_selector(selector, part)))
        .collect()
}

/// Splits at commas that are neither in parentheses nor escaped with a backslash.
fn split_terms(selector: &str) -> Vec<&str> {
    let (mut inside, mut escaped) = (false, false);
    selector
        .split(|char| {
            let is_separator = char == ',' && !inside && !escaped;
            escaped = char == '\\' && !escaped;
            inside = char == '(' || inside && char != ')';
            is_separator
        })
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::report::StatusObject;
    use crate::resource::McpServerStatus;
    use crate::resource::testing::declared_server;

    fn test_server(name: &str) -> ObjectVersion {
        let mut declared = declared_server(name, 1);
        declared.meta.labels = [("area".to_owned(), "code".to_owned())].into();
        let status = McpServerStatus::default();
        ObjectVersion::from_server(&Arc::new(StatusObject {
            declared: Arc::new(declared),
            status,
            resource_version: 1,
        }))
    }

    fn selector(labels: &str, fields: &str) -> Result<Selector, ErrorResponse> {
        let parameters = Parameters {
            label_selector: labels.into(),
            field_selector: fields.into(),
            ..Parameters::default()
        };
        Selector::new(Resource::McpServers, None, None, &parameters)
    }

    #[test]
    fn selector_matches_labels_and_fields() {
        for (labels, fields, expected) in [
            ("", "", true),
            ("area=code", "", true),
            ("area==code, area", "", true),
            ("area!=code", "", false),
            ("team!=x,!team", "", true),
            ("!area", "", false),
            ("area in (docs, code)", "", true),
            ("area notin (docs,code)", "", false),
            ("area in (docs),area", "", false),
            ("", "metadata.name=a,metadata.namespace==default", true),
            ("", "metadata.name!=a", false),
            ("area=code", "metadata.namespace=other", false),
        ] {
            let parsed = selector(labels, fields).unwrap();
            assert_eq!(parsed.matches(&test_server("a")), expected, "{labels} {fields}");
        }
        for (labels, fields) in
            [("a b", ""), ("area in code", ""), ("=x", ""), ("", "name"), ("", "status.tools=1")]
        {
            assert!(selector(labels, fields).is_err(), "{labels} {fields}");
        }
    }
}
