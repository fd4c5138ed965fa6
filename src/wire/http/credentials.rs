use http::{HeaderMap, HeaderValue};
use secrecy::ExposeSecret;

use super::super::error::ConnectionError;
use crate::resource::{HttpEndpoint, Reason};

/// What makes a request one that the server permits: the declared headers.
///
/// Asked for each request in the moment in which it is sent, so that what it gives may change under a live connection.
pub(super) struct Credentials(HeaderMap);

impl Credentials {
    /// Takes the headers that the declaration gives. Fails where a value cannot be a header's.
    pub(super) fn from_endpoint(endpoint: &HttpEndpoint) -> Result<Self, ConnectionError> {
        let mut headers = HeaderMap::new();
        for (name, value) in &endpoint.headers {
            let mut value = HeaderValue::from_str(value.expose_secret()).map_err(|_| {
                let message = format!("the value of header {name} holds characters that a header cannot");
                ConnectionError::new(Reason::InvalidSpec, message)
            })?;
            value.set_sensitive(true);
            headers.insert(name.clone(), value);
        }
        Ok(Self(headers))
    }

    /// Adds them to a request. None is a header that evenkeel itself sets (`is_own_header`).
    pub(super) fn authorize(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.0 {
            headers.insert(name.clone(), value.clone());
        }
    }

    /// True if a request is sent without any.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
