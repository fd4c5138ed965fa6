use jiff::Timestamp;
use serde_json::{Value, json};

use super::manifest::{partial_metadata, set_fields};
use super::object_version::{AnyObject, ObjectVersion};
use super::resource::Resource;
use crate::report::Occurrence;

/// The part of its object that a table row includes (`includeObject`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IncludeObject {
    None,
    Metadata,
    Object,
}

/// Returns a `Table` as the API server sends it to kubectl.
pub(super) fn table(resource: Resource, rows: Vec<Value>, list_metadata: Value) -> Value {
    let mut table = json!({ "apiVersion": "meta.k8s.io/v1", "kind": "Table" });
    let columns = Value::Array(columns(resource));
    let parts = [("metadata", list_metadata), ("columnDefinitions", columns), ("rows", Value::Array(rows))];
    set_fields(&mut table, parts);
    table
}

/// Returns the table row of one object.
pub(super) fn row(
    resource: Resource,
    item: &ObjectVersion,
    manifest: Value,
    include: IncludeObject,
    now: Timestamp,
) -> Value {
    let cells = match &item.object {
        AnyObject::Event(event) => {
            let Occurrence { at, regarding, warning, reason, note, .. } = &*event.latest;
            let object = format!("{}/{}", regarding.kind.name().to_lowercase(), regarding.key.name);
            vec![
                json!(age(*at, now)),
                json!(if *warning { "Warning" } else { "Normal" }),
                json!(reason),
                json!(object),
                json!(note),
                json!(age(event.first_at, now)),
                json!(event.count),
                json!(item.key.name),
            ]
        }
        AnyObject::Namespace => vec![json!(item.key.name), json!("Active")],
        _ => {
            let declared = resource.columns().iter().map(|column| {
                let found = value_at_json_path(&manifest, &column.json_path);
                match (column.type_.as_str(), found) {
                    ("date", Some(Value::String(time))) => {
                        time.parse().map_or(json!("<unknown>"), |time| json!(age(time, now)))
                    }
                    (_, found) => found.cloned().unwrap_or_default(),
                }
            });
            std::iter::once(json!(item.key.name)).chain(declared).collect()
        }
    };
    let object = match include {
        IncludeObject::None => Value::Null,
        IncludeObject::Metadata => partial_metadata(&manifest),
        IncludeObject::Object => manifest,
    };
    let mut row = json!({});
    set_fields(&mut row, [("cells", Value::Array(cells)), ("object", object)]);
    row
}

fn columns(resource: Resource) -> Vec<Value> {
    let column = |name: &str, kind: &str, format: &str, description: &str, priority: i32| {
        json!({
            "name": name, "type": kind, "format": format, "description": description, "priority": priority,
        })
    };
    let name = column("Name", "string", "name", "The name of the object.", 0);
    match resource {
        Resource::Events | Resource::CoreEvents => vec![
            column("Last Seen", "string", "", "The time since the last occurrence.", 0),
            column("Type", "string", "", "Normal, or Warning if something needs attention.", 0),
            column("Reason", "string", "", "The machine-readable reason of the event.", 0),
            column("Object", "string", "", "The object that the event is about.", 0),
            column("Message", "string", "", "The description of the event.", 0),
            column("First Seen", "string", "", "The time since the first occurrence.", 1),
            column("Count", "integer", "", "The number of occurrences.", 1),
            column("Name", "string", "name", "The name of the event.", 1),
        ],
        Resource::Namespaces => {
            vec![name, column("Status", "string", "", "The phase of the namespace; always Active.", 0)]
        }
        Resource::McpServers | Resource::Skills | Resource::Sources => {
            let declared = resource.columns().iter().map(|declared| {
                let description = declared.description.as_deref().unwrap_or_default();
                column(&declared.name, &declared.type_, "", description, declared.priority.unwrap_or(0))
            });
            std::iter::once(name).chain(declared).collect()
        }
    }
}

/// Returns the value at the JSON path of a printer column. Supports fields, and list filters by one field, such as
/// `.status.conditions[?(@.type=="Ready")].reason`.
fn value_at_json_path<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    let path = path.strip_prefix('.')?;
    let (field, remaining_path) = path.split_at(path.find(['.', '[']).unwrap_or(path.len()));
    let value = value.get(field)?;
    if let Some(filter) = remaining_path.strip_prefix("[?(@.") {
        let (filter, remaining_path) = filter.split_once(")]")?;
        let (field, expected) = filter.split_once("==")?;
        let expected = expected.trim_matches('"');
        let entry_found = value.as_array()?.iter().find(|entry| entry[field] == expected)?;
        return if remaining_path.is_empty() {
            Some(entry_found)
        } else {
            value_at_json_path(entry_found, remaining_path)
        };
    }
    if remaining_path.is_empty() { Some(value) } else { value_at_json_path(value, remaining_path) }
}

/// Formats the time since `since` as kubectl does.
fn age(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(since).as_secs().max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two_units = |big: i64, unit: char, small: i64, part: char| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{part}") }
    };
    if seconds < 120 {
        format!("{seconds}s")
    } else if minutes < 10 {
        two_units(minutes, 'm', seconds % 60, 's')
    } else if minutes < 180 {
        format!("{minutes}m")
    } else if hours < 8 {
        two_units(hours, 'h', minutes % 60, 'm')
    } else if hours < 48 {
        format!("{hours}h")
    } else if days < 8 {
        two_units(days, 'd', hours % 24, 'h')
    } else if days < 730 {
        format!("{days}d")
    } else if days < 8 * 365 {
        two_units(days / 365, 'y', days % 365, 'd')
    } else {
        format!("{}y", days / 365)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::testing::at;

    #[test]
    fn age_is_formatted_like_kubectl() {
        for (seconds, expected) in [
            (-9, "0s"),
            (119, "119s"),
            (120, "2m"),
            (599, "9m59s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (10_860, "3h1m"),
            (172_799, "47h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (86_400 * 729, "729d"),
            (86_400 * 731, "2y1d"),
            (86_400 * 365 * 9, "9y"),
        ] {
            assert_eq!(age(at(0), at(seconds)), expected);
        }
    }

    #[test]
    fn every_printer_column_resolves_to_a_value() {
        let manifest = json!({
            "spec": { "directory": "/d" },
            "metadata": { "creationTimestamp": "1970-01-01T00:00:00Z" },
            "status": {
                "conditions": [{ "type": "Other" }, { "type": "Ready", "status": "1", "reason": "2", "message": "3" }],
                "transport": "stdio", "tools": 3, "protocolVersion": "x", "restarts": 0,
                "revision": "r", "watching": "Events", "source": "path", "files": 1, "description": "x",
                "servers": 1, "attached": 1,
            },
        });
        for resource in Resource::ALL {
            for column in resource.columns() {
                let found = value_at_json_path(&manifest, &column.json_path);
                assert!(found.is_some(), "{resource:?} {}", column.json_path);
            }
        }
        assert_eq!(value_at_json_path(&manifest, ".status.conditions[?(@.type==\"Absent\")].reason"), None);
    }
}
