use axum::http::Uri;
use url::form_urlencoded;

use crate::admin::error_response::ErrorResponse;

/// The longest query string that is accepted, in bytes.
const MAX_QUERY_BYTES: usize = 16 << 10;

/// The query parameters of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parameters {
    pub watch: bool,
    pub allow_bookmarks: bool,
    pub send_initial_events: Option<bool>,
    pub timeout_seconds: Option<u64>,
    pub limit: usize,
    pub continue_token: String,
    /// `resourceVersion`; absent and empty are the same.
    pub resource_version: Option<u64>,
    /// `resourceVersionMatch`: `Exact` or `NotOlderThan`.
    pub resource_version_match: String,
    pub label_selector: String,
    pub field_selector: String,
    pub include_object: String,
    pub dry_run: bool,
    pub pretty: Option<bool>,
}

impl Parameters {
    pub fn from_uri(uri: &Uri) -> Result<Self, ErrorResponse> {
        let query = uri.query().unwrap_or_default();
        if query.len() > MAX_QUERY_BYTES {
            return Err(ErrorResponse::bad_request("the query is too long"));
        }
        let mut parameters = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let number = || {
                let invalid = |_| ErrorResponse::bad_request(format!("{name}={value} is not a number"));
                if value.is_empty() { Ok(None) } else { value.parse::<u64>().map(Some).map_err(invalid) }
            };
            match &*name {
                "watch" => parameters.watch = is_true(&value),
                "allowWatchBookmarks" => parameters.allow_bookmarks = is_true(&value),
                "sendInitialEvents" => parameters.send_initial_events = Some(is_true(&value)),
                "timeoutSeconds" => parameters.timeout_seconds = number()?,
                "limit" => parameters.limit = number()?.unwrap_or(0).try_into().unwrap_or(usize::MAX),
                "continue" => parameters.continue_token = value.into_owned(),
                "resourceVersion" => parameters.resource_version = number()?,
                "resourceVersionMatch" => parameters.resource_version_match = value.into_owned(),
                "labelSelector" => parameters.label_selector = value.into_owned(),
                "fieldSelector" => parameters.field_selector = value.into_owned(),
                "includeObject" => parameters.include_object = value.into_owned(),
                "dryRun" => parameters.dry_run = value == "All",
                "pretty" => parameters.pretty = Some(is_true(&value)),
                _ => {}
            }
        }
        Ok(parameters)
    }
}

fn is_true(value: &str) -> bool {
    !matches!(value, "false" | "0")
}
