//! The rules for entries of a server's lists: which are offered to agents, and in which form. Pure.
//!
//! Agents read a whole list at once: one entry that their parser refuses costs them all servers. The rules come from
//! what the official SDKs in TypeScript and Python accept, 1.x and 2.x, of 2025-11-25 and of 2026-07-28
//! (`tests/behaviour/sdk_lists.rs` runs them). A well-formed entry is kept byte for byte.

mod entry_members;
mod json_limits;
mod output_schema;
mod plain_pattern;
mod shape;

#[cfg(test)]
mod tests;

use serde_json::value::RawValue;

use super::item::Item;
use crate::wire::{JsonEdit, ListKind, Members, parse_members};
use entry_members::{entry_shape, schema_members};

/// An entry of a server's list that agents get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedItem {
    /// The item.
    pub item: Item,
    /// True if optional members were null and are left out.
    pub had_nulls: bool,
    /// True if its `outputSchema` describes no object, which only 2026-07-28 permits.
    pub has_modern_output_schema: bool,
}

/// An entry of a server's list that no agent gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOutItem {
    /// The name, URI or URI template; `None` if it has none.
    pub name: Option<String>,
    /// The reason, for a person.
    pub why: String,
}

/// Applies the rules to one entry of a server's list.
///
/// # Errors
///
/// Fails with the name and the reason if a parser of agents would refuse the entry.
pub fn read_item(list: ListKind, entry: &str) -> Result<AcceptedItem, LeftOutItem> {
    let members = parse_members(entry).ok();
    let name = members.as_ref().and_then(|members| members.get_string(list.item_key())).map(Into::into);
    accept(list, entry, members.as_ref()).map_err(|why| LeftOutItem { name, why })
}

fn accept(list: ListKind, entry: &str, members: Option<&Members<'_>>) -> Result<AcceptedItem, String> {
    json_limits::check(entry)?;
    let members = members.ok_or_else(|| "it is not an object".to_owned())?;
    let mended = shape::check_members(members, entry_shape(list)).map_err(|fault| fault.to_string())?;
    let had_nulls = mended.is_some();
    let entry = mended.as_deref().unwrap_or(entry);
    let item = Item::parse(list, entry).map_err(str::to_owned)?;
    if list != ListKind::Tools {
        return Ok(AcceptedItem { item, had_nulls, has_modern_output_schema: false });
    }
    let mended_members = if had_nulls { parse_members(entry).ok() } else { None };
    let members = mended_members.as_ref().unwrap_or(members);
    let input = members.get("inputSchema").and_then(without_boolean_properties);
    let output = members.get("outputSchema").map_or(LegacySchema::Same, legacy_output_schema);
    let has_modern_output_schema = matches!(output, LegacySchema::Modern);
    let input_edit = input.as_deref().map(|schema| JsonEdit::Set("inputSchema", schema));
    let output_edit = match &output {
        LegacySchema::Same => None,
        LegacySchema::Rewritten(schema) => Some(JsonEdit::Set("outputSchema", schema)),
        LegacySchema::Modern | LegacySchema::Uncertain => Some(JsonEdit::Remove("outputSchema")),
    };
    let edits: Vec<_> = input_edit.into_iter().chain(output_edit).collect();
    let item = if edits.is_empty() { item } else { item.with_legacy_form(list, &members.rewrite(&edits))? };
    Ok(AcceptedItem { item, had_nulls, has_modern_output_schema })
}

/// The form of an output schema that agents of the legacy era get.
enum LegacySchema {
    Same,
    Rewritten(String),
    /// None: the legacy era cannot express it.
    Modern,
    /// None: an SDK may refuse it.
    Uncertain,
}

/// Until 2025-11-25 an output schema describes an object. An SDK compiles it when it lists the tools, and loses the list
/// if that fails.
fn legacy_output_schema(schema: &RawValue) -> LegacySchema {
    let members = parse_members(schema.get()).ok();
    if members.is_none_or(|members| shape::check_members(&members, schema_members()).is_err()) {
        return LegacySchema::Modern;
    }
    if !output_schema::is_surely_compiled(schema.get()) {
        return LegacySchema::Uncertain;
    }
    without_boolean_properties(schema).map_or(LegacySchema::Same, LegacySchema::Rewritten)
}

/// Returns an equivalent schema whose properties are objects, as the legacy era requires: `true` is `{}`, and `false` is
/// `{"not":{}}`. Returns `None` if they are objects already.
fn without_boolean_properties(schema: &RawValue) -> Option<String> {
    let schema = parse_members(schema.get()).ok()?;
    let properties = parse_members(schema.get("properties")?.get()).ok()?;
    let object_for = |value: &RawValue| match value.get() {
        "true" => Some("{}"),
        "false" => Some(r#"{"not":{}}"#),
        _ => None,
    };
    let edits: Vec<_> =
        properties.iter().filter_map(|(name, value)| Some(JsonEdit::Set(name, object_for(value)?))).collect();
    let rewritten = (!edits.is_empty()).then(|| properties.rewrite(&edits))?;
    Some(schema.rewrite(&[JsonEdit::Set("properties", &rewritten)]))
}
