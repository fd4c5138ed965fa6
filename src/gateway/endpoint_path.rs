//! The paths of the endpoint.

use std::sync::Arc;

use crate::upstream::ViewName;

/// The maximum length of the id in a path.
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
}
