use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::manifest::set_fields;
use super::object_version::{ObjectVersion, objects};
use super::parameters::Parameters;
use super::representation::Representation;
use super::selector::Selector;
use crate::admin::app::App;
use crate::admin::error_response::ErrorResponse;

/// Where the next page begins, and of which version the list is.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct ContinueToken {
    version: u64,
    namespace: String,
    name: String,
}

/// A list, or a page of one: all pages are of the version of the first.
pub(super) fn list(
    app: &App,
    scope: &Selector,
    shape: Representation,
    asked: &Parameters,
) -> Result<Value, ErrorResponse> {
    let newest = app.snapshot();
    let next = (!asked.continue_token.is_empty())
        .then(|| ContinueToken::decode(&asked.continue_token))
        .transpose()?;
    let exact = match &next {
        Some(next) => Some(next.version),
        None => asked.resource_version.filter(|_| asked.resource_version_match == "Exact"),
    };
    let snapshot = match exact {
        Some(version) if version == newest.resource_version => newest,
        Some(version) => {
            let shown = app.history.at_or_before(version);
            shown.filter(|shown| shown.resource_version == version).ok_or_else(ErrorResponse::expired)?
        }
        None => {
            if asked.resource_version.is_some_and(|least| least > newest.resource_version) {
                return Err(ErrorResponse::resource_version_too_large(newest.resource_version));
            }
            newest
        }
    };
    app.history.record(&snapshot);

    let after = |item: &ObjectVersion| {
        let begin = next.as_ref().map(|next| (&*next.namespace, &*next.name));
        begin.is_none_or(|last| (&*item.key.namespace, &*item.key.name) > last)
    };
    let mut chosen = objects(&snapshot, scope.resource).filter(after).filter(|item| scope.matches(item));
    let limit = if asked.limit == 0 { usize::MAX } else { asked.limit };
    let page: Vec<ObjectVersion> = chosen.by_ref().take(limit).collect();
    let left = chosen.count();
    let mut metadata = json!({ "resourceVersion": snapshot.resource_version.to_string() });
    if let Some(last) = page.last().filter(|_| left > 0) {
        let next = ContinueToken {
            version: snapshot.resource_version,
            namespace: last.key.namespace.to_string(),
            name: last.key.name.to_string(),
        };
        set_fields(&mut metadata, [("continue", json!(next.encode())), ("remainingItemCount", json!(left))]);
    }
    Ok(shape.render_list(scope.resource, &page, metadata))
}

impl ContinueToken {
    fn decode(token: &str) -> Result<Self, ErrorResponse> {
        let decoded = URL_SAFE_NO_PAD.decode(token).ok();
        let next = decoded.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        next.ok_or_else(|| ErrorResponse::bad_request("continue key is not valid"))
    }

    fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(json!(self).to_string())
    }
}
