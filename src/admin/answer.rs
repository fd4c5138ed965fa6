use axum::Json;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Status, StatusDetails};

use crate::report::Kind;
use crate::resource::GROUP;

/// Why a request was not answered, as the Kubernetes API says it: a `Status`.
#[derive(Debug)]
pub(super) struct Refusal {
    code: StatusCode,
    status: Box<Status>,
}

impl Refusal {
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
    pub fn no_object(kind: Kind, name: &str) -> Self {
        let message = format!("{}.{GROUP} {name:?} not found", kind.plural());
        let mut refusal = Self::new(StatusCode::NOT_FOUND, "NotFound", message);
        refusal.status.details = Some(StatusDetails {
            group: Some(GROUP.into()),
            kind: Some(kind.plural().into()),
            name: Some(name.into()),
            ..StatusDetails::default()
        });
        refusal
    }

    /// There is no such path.
    pub fn no_path(path: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            format!("the server could not find the requested resource {path}"),
        )
    }

    /// A parameter that would change the answer, and is not understood.
    pub fn parameter(name: &str) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "BadRequest",
            format!("{name} is not served yet; leave it out and choose from the whole list"),
        )
    }

    /// Changes are made elsewhere.
    pub fn read_only(method: &Method, directory: &str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            format!(
                "{method} is not allowed: this API only tells; to change what is declared, edit the files in {directory}"
            ),
        )
    }

    /// Not asked from this machine.
    pub fn host(host: &str) -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "Forbidden",
            format!("the host {host:?} is not allowed; ask localhost, or allow it with --allowed-host"),
        )
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.code, Json(self.status)).into_response()
    }
}
