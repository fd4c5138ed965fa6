use axum::Json;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Status, StatusDetails};

use crate::net::AuthorizationError;
use crate::resource::{ObjectKey, RECONCILE_REQUESTED_AT, REQUEST_ANNOTATIONS};

/// Why a request was not answered, as the Kubernetes API says it: a `Status`.
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

    /// There is no such object.
    pub fn object_not_found(group: &str, plural: &str, name: &str) -> Self {
        let of_group = if group.is_empty() { String::new() } else { format!(".{group}") };
        let message = format!("{plural}{of_group} {name:?} not found");
        let mut refusal = Self::new(StatusCode::NOT_FOUND, "NotFound", message);
        refusal.status.details = Some(StatusDetails {
            group: Some(group.into()),
            kind: Some(plural.into()),
            name: Some(name.into()),
            ..StatusDetails::default()
        });
        refusal
    }

    /// There is no such path.
    pub fn path_not_found(path: &str) -> Self {
        // Clients read it as protobuf and as nothing else.
        let instead =
            if path == "/openapi/v2" { "; /openapi/v3 is here, which kubectl reads since 1.27" } else { "" };
        Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            format!("the server could not find the requested resource {path}{instead}"),
        )
    }

    /// The request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// A part of a selector is not understood.
    pub fn invalid_selector(selector: &str, part: &str) -> Self {
        Self::bad_request(format!("unable to parse {part:?} in the selector {selector:?}"))
    }

    /// A version that is no longer known.
    pub fn expired() -> Self {
        let message = "this version is too old; list again and go on from there";
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// A version that is not there yet: of an earlier run, or of another evenkeel.
    pub fn resource_version_too_large(newest: u64) -> Self {
        let message = format!("Too large resource version: the newest is {newest}");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message)
    }

    /// Meant for another object, or for an earlier version of it.
    pub fn conflict(name: &str, key: &str, said: &str, is: &str) -> Self {
        let message = format!(
            "{name:?} is another one, or was changed meanwhile: its {key} is {is:?} and not {said:?}; read it again"
        );
        Self::new(StatusCode::CONFLICT, "Conflict", message)
    }

    /// Changes are made elsewhere.
    pub fn read_only(method: &Method, to_change: &str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            format!("{method} is not allowed: this API only tells; to change what is declared, {to_change}"),
        )
    }

    /// A change of more than what asks for work.
    pub fn annotations_only(to_change: &str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            format!(
                "of a server, only the annotations {} may be set here; to change what is declared, {to_change}",
                REQUEST_ANNOTATIONS.join(" and ")
            ),
        )
    }

    /// Work that is to be asked for at the object in the cluster.
    pub fn annotate_in_cluster(key: &ObjectKey) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            format!(
                "in a cluster the object itself is asked: kubectl annotate mcpserver {} -n {} --overwrite \
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
