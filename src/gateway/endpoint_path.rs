//! The paths of the endpoint, and the ids in them.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use rmcp::model::ErrorCode;

use super::response::ResponseError;
use crate::upstream::ViewName;

/// The header that tells the windows of one agent apart, which share a path.
const WINDOW_HEADER: HeaderName = HeaderName::from_static("evenkeel-window");
/// The maximum length of the id in a path, and of that of a window.
const MAX_ID_BYTES: usize = 64;

/// The meaning of a path of the endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EndpointPath {
    pub(super) view: ViewName,
    /// The id in `/as/ID/…`, which tells one agent from others.
    pub(super) path_id: Option<Arc<str>>,
}

impl EndpointPath {
    /// Returns the meaning of a path; `None` if it is not an MCP endpoint. The path may end with a slash.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let path = path.strip_suffix('/').unwrap_or(path);
        let (path_id, path) = match path.strip_prefix("/as/") {
            None => (None, path),
            Some(rest) => {
                let (id, path) = rest.split_at_checked(rest.find('/')?)?;
                (Some(Arc::from(Some(id).filter(|id| is_path_id(id))?)), path)
            }
        };
        if path == "/mcp" {
            return Some(Self { view: ViewName::All, path_id });
        }
        let namespace = path.strip_prefix("/ns/")?.strip_suffix("/mcp")?;
        let is_one_segment = !namespace.is_empty() && !namespace.contains('/');
        is_one_segment.then(|| Self { view: ViewName::Namespace(namespace.into()), path_id })
    }
}

/// Returns what tells a modern agent from others: the id in its path, and that of its window if it sends one. Without an id
/// in the path nothing does.
///
/// # Errors
///
/// Fails if the id of the window is not 1 to 64 of `[A-Za-z0-9._-]`.
pub(super) fn window_id(
    path_id: Option<&Arc<str>>,
    headers: &HeaderMap,
) -> Result<Option<Arc<str>>, ResponseError> {
    let (Some(path_id), Some(window)) = (path_id, headers.get(WINDOW_HEADER)) else {
        return Ok(path_id.cloned());
    };
    match HeaderValue::to_str(window).ok().filter(|id| is_path_id(id)) {
        Some(window) => Ok(Some(format!("{path_id}/{window}").into())),
        None => Err(ResponseError::bad_request(
            ErrorCode::INVALID_REQUEST,
            format!(
                "Invalid request: the header Evenkeel-Window must be 1 to {MAX_ID_BYTES} of [A-Za-z0-9._-]"
            ),
        )),
    }
}

/// True if a text can be the id in a path. Clients resolve the segments `.` and `..`.
fn is_path_id(id: &str) -> bool {
    let is_id_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_ID_BYTES).contains(&id.len()) && id.bytes().all(is_id_byte) && id != "." && id != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_selects_the_view_and_the_caller() {
        let longest = "x".repeat(MAX_ID_BYTES);
        let longest_path = format!("/as/{longest}/mcp");
        let team = || ViewName::Namespace("team-a".into());
        for (path, view, id) in [
            ("/mcp", ViewName::All, None),
            ("/ns/team-a/mcp", team(), None),
            ("/mcp/", ViewName::All, None),
            ("/ns/team-a/mcp/", team(), None),
            ("/as/a/mcp", ViewName::All, Some("a")),
            ("/as/Claude.1_x-y/mcp/", ViewName::All, Some("Claude.1_x-y")),
            ("/as/mcp/mcp", ViewName::All, Some("mcp")),
            ("/as/a/ns/team-a/mcp", team(), Some("a")),
            ("/as/ns/ns/team-a/mcp/", team(), Some("ns")),
            (&longest_path, ViewName::All, Some(&longest)),
        ] {
            let expected = EndpointPath { view, path_id: id.map(Into::into) };
            assert_eq!(EndpointPath::parse(path), Some(expected), "{path}");
        }
        let too_long = format!("/as/{longest}x/mcp");
        for path in [
            "",
            "/",
            "/mcp//",
            "//mcp",
            "/ns//mcp",
            "/ns//mcp/",
            "/ns/a/b/mcp",
            "/ns/mcp",
            "/sse",
            "/as/mcp",
            "/as//mcp",
            "/as/a",
            "/as/a/",
            "/as/a/sse",
            "/as/a/b/mcp",
            "/as/a%20b/mcp",
            "/as/ü/mcp",
            "/as/./mcp",
            "/as/../mcp",
            "/as/a/as/b/mcp",
            "/ns/x/as/a/mcp",
            &too_long,
        ] {
            assert_eq!(EndpointPath::parse(path), None, "{path}");
        }
    }

    #[test]
    fn window_is_told_apart_only_on_a_path_with_an_id() {
        for (path_id, window, expected) in [
            (None, None, Ok(None)),
            (None, Some("1"), Ok(None)),
            (Some("a"), None, Ok(Some("a"))),
            (Some("a"), Some("4711"), Ok(Some("a/4711"))),
            (Some("a"), Some(""), Err(())),
            (Some("a"), Some("1/2"), Err(())),
        ] {
            let window = window.map(|window| (WINDOW_HEADER, window.parse().unwrap()));
            let found = window_id(path_id.map(Into::into).as_ref(), &window.into_iter().collect());
            assert_eq!(found.map_err(drop), expected.map(|id| id.map(Into::into)), "{path_id:?}");
        }
    }
}
