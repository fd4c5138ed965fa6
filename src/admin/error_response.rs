use axum::Json;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Status, StatusDetails};

use crate::net::AuthorizationError;
use crate::resource::{ObjectKey, RECONCILE_REQUESTED_AT, REQUEST_ANNOTATIONS};

/// An error response with a Kubernetes `Status` as its body.
#[derive(Debug)]
pub(super) struct ErrorResponse {
    code: StatusCode,
    pub status: Box<Status>,
}

impl ErrorResponse {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        let status = Status {
            code: Some(i32::from(code.as_u16())),
            message: Some(message.into()),
            reason: Some(reason.into()),
            status: Some("Failure".into()),
            ..Status::default()
        };
        Self { code, status: Box::new(status) }
    }

    /// 404: no object of that name exists.
    pub fn object_not_found(group: &str, plural: &str, name: &str) -> Self {
        let group_suffix = if group.is_empty() { String::new() } else { format!(".{group}") };
        let message = format!("{plural}{group_suffix} {name:?} not found");
        let mut error = Self::new(StatusCode::NOT_FOUND, "NotFound", message);
        error.status.details = Some(StatusDetails {
            group: Some(group.into()),
            kind: Some(plural.into()),
            name: Some(name.into()),
            ..StatusDetails::default()
        });
        error
    }

    /// 404: no resource is served at that path.
    pub fn path_not_found(path: &str) -> Self {
        // Clients accept /openapi/v2 only as protobuf, which is not served.
        let hint =
            if path == "/openapi/v2" { "; use /openapi/v3, which kubectl reads since 1.27" } else { "" };
        Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            format!("the server could not find the requested resource {path}{hint}"),
        )
    }

    /// 400: the request is invalid.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// 400: `part` of a selector cannot be parsed.
    pub fn invalid_selector(selector: &str, part: &str) -> Self {
        Self::bad_request(format!("unable to parse {part:?} in the selector {selector:?}"))
    }

    /// 410: the resource version is no longer in the history.
    pub fn expired() -> Self {
        let message =
            "the resource version is too old; list again and watch from the version of the new list";
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// 504: the resource version is newer than the newest one; it is of an earlier run or of another instance.
    pub fn resource_version_too_large(newest: u64) -> Self {
        let message = format!("Too large resource version: the newest is {newest}");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message)
    }

    /// 409: a precondition of the patch does not hold for the object's `field`.
    pub fn conflict(name: &str, field: &str, expected: &str, actual: &str) -> Self {
        let message = format!(
            "{name:?} was replaced or modified: its {field} is {actual:?}, not {expected:?}; read it again"
        );
        Self::new(StatusCode::CONFLICT, "Conflict", message)
    }

    /// 405: declarations are not changed through the status API.
    pub fn read_only(method: &Method, edit_hint: &str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            format!(
                "{method} is not allowed: the status API is read-only; to change a declaration, {edit_hint}"
            ),
        )
    }

    /// 405: the patch changes more than the annotations that request work.
    pub fn annotations_only(edit_hint: &str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            format!(
                "the status API changes only the annotations {} of an McpServer; to change a declaration, {edit_hint}",
                REQUEST_ANNOTATIONS.join(" and ")
            ),
        )
    }

    /// 405: the object is in a cluster, where it must be annotated.
    pub fn annotate_in_cluster(key: &ObjectKey) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            format!(
                "the object is in a cluster; annotate it there: kubectl annotate mcpserver {} -n {} --overwrite \
                 {RECONCILE_REQUESTED_AT}=\"$(date -Is)\"",
                key.name, key.namespace
            ),
        )
    }
}

impl From<AuthorizationError> for ErrorResponse {
    fn from(denied: AuthorizationError) -> Self {
        let code = denied.status();
        let reason = match code {
            StatusCode::UNAUTHORIZED => "Unauthorized",
            StatusCode::BAD_REQUEST => "BadRequest",
            _ => "Forbidden",
        };
        Self::new(code, reason, denied.to_string())
    }
}

impl IntoResponse for ErrorResponse {
    fn into_response(self) -> Response {
        (self.code, Json(self.status)).into_response()
    }
}
