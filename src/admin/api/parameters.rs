use axum::http::Uri;
use url::form_urlencoded;

use crate::admin::answer::ErrorResponse;

/// The longest query that is looked at, in bytes.
const LONGEST: usize = 16 << 10;

/// What the query of a request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parameters {
    pub watch: bool,
    pub bookmarks: bool,
    pub initial_events: Option<bool>,
    pub timeout: Option<u64>,
    pub limit: usize,
    pub next: String,
    /// The version asked for; none is the same as empty.
    pub version: Option<u64>,
    /// `Exact` or `NotOlderThan`.
    pub version_match: String,
    pub labels: String,
    pub fields: String,
    pub include_object: String,
    pub dry_run: bool,
    pub pretty: Option<bool>,
}

impl Parameters {
    pub fn of(uri: &Uri) -> Result<Self, ErrorResponse> {
        let query = uri.query().unwrap_or_default();
        if query.len() > LONGEST {
            return Err(ErrorResponse::bad_request("the query is too long"));
        }
        let mut asked = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let number = || {
                let wrong = |_| ErrorResponse::bad_request(format!("{name}={value} is not a number"));
                if value.is_empty() { Ok(None) } else { value.parse::<u64>().map(Some).map_err(wrong) }
            };
            match &*name {
                "watch" => asked.watch = is_on(&value),
                "allowWatchBookmarks" => asked.bookmarks = is_on(&value),
                "sendInitialEvents" => asked.initial_events = Some(is_on(&value)),
                "timeoutSeconds" => asked.timeout = number()?,
                "limit" => asked.limit = number()?.unwrap_or(0).try_into().unwrap_or(usize::MAX),
                "continue" => asked.next = value.into_owned(),
                "resourceVersion" => asked.version = number()?,
                "resourceVersionMatch" => asked.version_match = value.into_owned(),
                "labelSelector" => asked.labels = value.into_owned(),
                "fieldSelector" => asked.fields = value.into_owned(),
                "includeObject" => asked.include_object = value.into_owned(),
                "dryRun" => asked.dry_run = value == "All",
                "pretty" => asked.pretty = Some(is_on(&value)),
                _ => {}
            }
        }
        Ok(asked)
    }
}

fn is_on(value: &str) -> bool {
    !matches!(value, "false" | "0")
}
