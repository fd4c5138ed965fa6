//! The error for a resource that a server does not know, with the code that the agent's era has for it. Pure.

use std::borrow::Cow;

use rmcp::model::ErrorCode;

use super::unknown_item::is_unknown_item_error;
use crate::wire::{Era, JsonEdit, ListKind, parse_members};

/// Returns a server's error for `resources/read` with the code of the agent's era if it says that the resource is
/// unknown: -32002 in the legacy era, -32602 in the modern one (SEP-2164). Other errors are unchanged, and so are those
/// of a server of the agent's own era, except for the code that the modern era does not have.
///
/// `uri` is the server's own URI of the resource. `server_era` is `None` if evenkeel itself responds.
pub(super) fn with_not_found_code<'e>(
    error: &'e str,
    uri: &str,
    server_era: Option<Era>,
    agent_era: Era,
) -> Cow<'e, str> {
    let Ok(members) = parse_members(error) else { return Cow::Borrowed(error) };
    let has_code =
        |code: ErrorCode| members.get("code").is_some_and(|found| found.get() == code.0.to_string());
    let expected = match agent_era {
        Era::Legacy => ErrorCode::RESOURCE_NOT_FOUND,
        Era::Modern => ErrorCode::INVALID_PARAMS,
    };
    let names_uri = || {
        let data = parse_members(members.get("data")?.get()).ok()?;
        Some(data.get_string("uri")? == uri)
    };
    let is_of_other_era = server_era.is_some_and(|era| era != agent_era);
    let is_not_found = has_code(ErrorCode::RESOURCE_NOT_FOUND)
        || is_of_other_era
            && (is_unknown_item_error(error.as_bytes(), ListKind::Resources)
                || has_code(ErrorCode::INVALID_PARAMS) && names_uri() == Some(true));
    if !is_not_found || has_code(expected) {
        return Cow::Borrowed(error);
    }
    Cow::Owned(members.rewrite(&[JsonEdit::Set("code", &expected.0.to_string())]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_resource_has_the_code_of_the_agents_era() {
        let [legacy, modern] = [Some(Era::Legacy), Some(Era::Modern)];
        for (error, server_era, for_legacy, for_modern) in [
            // The specified errors, and a server that uses the code of the other era.
            (r#"{"code":-32002,"message":"m"}"#, legacy, -32002, -32602),
            (r#"{"code":-32002,"message":"m"}"#, modern, -32002, -32602),
            (r#"{"code":-32002,"message":"m"}"#, None, -32002, -32602),
            (r#"{"code":-32602,"message":"Resource not found"}"#, modern, -32002, -32602),
            (r#"{"code":-32602,"message":"no","data":{"uri":"x:1"}}"#, modern, -32002, -32602),
            // SDKs of the legacy era with other codes.
            (r#"{"code":0,"message":"Unknown resource: x:1"}"#, legacy, 0, -32602),
            (r#"{"code":-32602,"message":"Resource x:1 not found"}"#, legacy, -32602, -32602),
            (r#"{"code":-32603,"message":"Resource not found: x:1"}"#, legacy, -32603, -32602),
            // Errors about something else.
            (r#"{"code":-32602,"message":"Invalid cursor"}"#, modern, -32602, -32602),
            (r#"{"code":-32602,"message":"day must be a number"}"#, modern, -32602, -32602),
            (r#"{"code":-32602,"message":"no","data":{"uri":"x:2"}}"#, modern, -32602, -32602),
            (r#"{"code":-32603,"message":"no","data":{"uri":"x:1"}}"#, modern, -32603, -32603),
            (r#"{"code":-32602,"message":"Resource not found"}"#, None, -32602, -32602),
        ] {
            for (agent_era, code) in [(Era::Legacy, for_legacy), (Era::Modern, for_modern)] {
                let adapted = with_not_found_code(error, "x:1", server_era, agent_era);
                let rest = error.split_once(',').unwrap().1;
                assert_eq!(adapted, format!(r#"{{"code":{code},{rest}"#), "{server_era:?} {agent_era:?}");
            }
        }
        for error in ["null", "[]", r#"{"message":"m"}"#, r#"{"code":"-32002","message":"m"}"#] {
            assert_eq!(with_not_found_code(error, "x:1", modern, Era::Legacy), error);
        }
    }
}
