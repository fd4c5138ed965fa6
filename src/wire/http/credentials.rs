use http::{HeaderMap, HeaderValue};
use secrecy::ExposeSecret;

use super::super::error::ConnectionError;
use crate::resource::{HttpEndpoint, Reason};

/// The credentials for a server: the declared headers.
///
/// They are added to each request when it is sent, so that they can change during a live connection.
pub(super) struct Credentials(HeaderMap);

impl Credentials {
    /// Reads the declared headers. Fails if a value is not valid in a header.
    pub(super) fn from_endpoint(endpoint: &HttpEndpoint) -> Result<Self, ConnectionError> {
        let mut headers = HeaderMap::new();
        for (name, value) in &endpoint.headers {
            let mut value = HeaderValue::from_str(value.expose_secret()).map_err(|_| {
                let message = format!(
                    "the value of header {name} contains characters that are not allowed in a header"
                );
                ConnectionError::new(Reason::InvalidSpec, message)
            })?;
            value.set_sensitive(true);
            headers.insert(name.clone(), value);
        }
        Ok(Self(headers))
    }

    /// Adds the headers to a request. None of them is a header that evenkeel itself sets (`is_reserved_header`).
    pub(super) fn authorize(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.0 {
            headers.insert(name.clone(), value.clone());
        }
    }

    /// True if there are no credentials.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
