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

/// The content of `continue`: the version of the list, and the last object of the page before.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct ContinueToken {
    version: u64,
    namespace: String,
    name: String,
}

/// Returns a list, or one page of it. All pages are of the resource version of the first page.
pub(super) fn list(
    app: &App,
    selector: &Selector,
    representation: Representation,
    parameters: &Parameters,
) -> Result<Value, ErrorResponse> {
    let newest = app.snapshot();
    let next = (!parameters.continue_token.is_empty())
        .then(|| ContinueToken::decode(&parameters.continue_token))
        .transpose()?;
    let exact = match &next {
        Some(next) => Some(next.version),
        None => parameters.resource_version.filter(|_| parameters.resource_version_match == "Exact"),
    };
    let snapshot = match exact {
        Some(version) if version == newest.resource_version => newest,
        Some(version) => {
            let snapshot = app.history.at_or_before(version);
            snapshot
                .filter(|snapshot| snapshot.resource_version == version)
                .ok_or_else(ErrorResponse::expired)?
        }
        None => {
            if parameters.resource_version.is_some_and(|least| least > newest.resource_version) {
                return Err(ErrorResponse::resource_version_too_large(newest.resource_version));
            }
            newest
        }
    };
    app.history.record(&snapshot);

    let after = |item: &ObjectVersion| {
        let start = next.as_ref().map(|next| (&*next.namespace, &*next.name));
        start.is_none_or(|last| (&*item.key.namespace, &*item.key.name) > last)
    };
    let mut matching =
        objects(&snapshot, selector.resource).filter(after).filter(|item| selector.matches(item));
    let limit = if parameters.limit == 0 { usize::MAX } else { parameters.limit };
    let page: Vec<ObjectVersion> = matching.by_ref().take(limit).collect();
    let remaining = matching.count();
    let mut metadata = json!({ "resourceVersion": snapshot.resource_version.to_string() });
    if let Some(last) = page.last().filter(|_| remaining > 0) {
        let next = ContinueToken {
            version: snapshot.resource_version,
            namespace: last.key.namespace.to_string(),
            name: last.key.name.to_string(),
        };
        set_fields(
            &mut metadata,
            [("continue", json!(next.encode())), ("remainingItemCount", json!(remaining))],
        );
    }
    Ok(representation.render_list(selector.resource, &page, metadata))
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
