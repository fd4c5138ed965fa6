use axum::http::Uri;
use url::form_urlencoded;

use crate::admin::error_response::ErrorResponse;

/// The longest query that is looked at, in bytes.
const MAX_QUERY_BYTES: usize = 16 << 10;

/// What the query of a request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parameters {
    pub watch: bool,
    pub allow_bookmarks: bool,
    pub send_initial_events: Option<bool>,
    pub timeout_seconds: Option<u64>,
    pub limit: usize,
    pub continue_token: String,
    /// The version asked for; none is the same as empty.
    pub resource_version: Option<u64>,
    /// `Exact` or `NotOlderThan`.
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
        let mut asked = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let number = || {
                let wrong = |_| ErrorResponse::bad_request(format!("{name}={value} is not a number"));
                if value.is_empty() { Ok(None) } else { value.parse::<u64>().map(Some).map_err(wrong) }
            };
            match &*name {
                "watch" => asked.watch = is_true(&value),
                "allowWatchBookmarks" => asked.allow_bookmarks = is_true(&value),
                "sendInitialEvents" => asked.send_initial_events = Some(is_true(&value)),
                "timeoutSeconds" => asked.timeout_seconds = number()?,
                "limit" => asked.limit = number()?.unwrap_or(0).try_into().unwrap_or(usize::MAX),
                "continue" => asked.continue_token = value.into_owned(),
                "resourceVersion" => asked.resource_version = number()?,
                "resourceVersionMatch" => asked.resource_version_match = value.into_owned(),
                "labelSelector" => asked.label_selector = value.into_owned(),
                "fieldSelector" => asked.field_selector = value.into_owned(),
                "includeObject" => asked.include_object = value.into_owned(),
                "dryRun" => asked.dry_run = value == "All",
                "pretty" => asked.pretty = Some(is_true(&value)),
                _ => {}
            }
        }
        Ok(asked)
    }
}

fn is_true(value: &str) -> bool {
    !matches!(value, "false" | "0")
}
