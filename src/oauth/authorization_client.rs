use std::sync::Arc;

use http::header::LOCATION;
use http::{HeaderValue, Request, Response, Uri};
use rmcp::transport::auth::{
    OAuthHttpClient, OAuthHttpClientError, OAuthHttpClientFuture, OAuthHttpRedirectPolicy, OAuthHttpRequest,
};
use secrecy::SecretString;
use url::Url;

use super::error::OAuthError;
use crate::wire::{AddressScope, address_scope, fetch};

/// The maximum number of redirects of one request.
const MAX_REDIRECTS: usize = 3;

/// Sends the requests of a login or a renewal, with the rules of evenkeel.
///
/// The URLs come from the server and its authorization server. They may lead to an address of a private network or of this
/// machine only if the server itself has such an address, or if the declaration names the issuer.
#[derive(Clone)]
pub(super) struct AuthorizationClient(Arc<Inner>);

struct Inner {
    server: Url,
    server_scope: AddressScope,
    /// The certificates that the declaration trusts for the server.
    ca: Option<SecretString>,
    declared_issuer: Option<Url>,
}

impl AuthorizationClient {
    /// Creates the client for the authorization of a server.
    ///
    /// # Errors
    ///
    /// Fails if the server cannot be reached.
    pub(super) async fn connect(
        server: &Url,
        ca: Option<SecretString>,
        declared_issuer: Option<&str>,
    ) -> Result<Self, OAuthError> {
        let server_scope = address_scope(server, ca.as_ref())
            .await
            .map_err(|error| OAuthError::Failed(error.problem.message))?;
        let declared_issuer = declared_issuer.and_then(|issuer| Url::parse(issuer).ok());
        Ok(Self(Arc::new(Inner { server: server.clone(), server_scope, ca, declared_issuer })))
    }

    async fn send(&self, request: OAuthHttpRequest) -> Result<Response<Vec<u8>>, OAuthHttpClientError> {
        let OAuthHttpRequest { request, redirect_policy, .. } = request;
        let (mut head, body) = request.into_parts();
        let mut redirects = 0;
        loop {
            let url = Url::parse(&head.uri.to_string())?;
            let origin = url.origin();
            let Inner { server, server_scope, ca, declared_issuer } = &*self.0;
            let is_declared = declared_issuer.as_ref().is_some_and(|issuer| issuer.origin() == origin);
            let narrowest = if is_declared { AddressScope::Loopback } else { *server_scope };
            let ca = ca.as_ref().filter(|_| origin == server.origin() || is_declared);
            let response = fetch(Request::from_parts(head.clone(), body.clone()), ca, narrowest).await?;
            let follows =
                matches!(redirect_policy, OAuthHttpRedirectPolicy::Follow) && redirects < MAX_REDIRECTS;
            let target = response.headers().get(LOCATION).filter(|_| response.status().is_redirection());
            let Some(next) = target.filter(|_| follows).and_then(|to| same_origin_target(&url, to)) else {
                return Ok(response);
            };
            head.uri = next;
            redirects += 1;
        }
    }
}

/// Returns the target of a redirect that stays within the origin.
fn same_origin_target(from: &Url, location: &HeaderValue) -> Option<Uri> {
    let to = from.join(location.to_str().ok()?).ok()?;
    (to.origin() == from.origin()).then(|| to.as_str().parse().ok()).flatten()
}

impl OAuthHttpClient for AuthorizationClient {
    fn execute(&self, request: OAuthHttpRequest) -> OAuthHttpClientFuture<'_> {
        Box::pin(self.send(request))
    }
}
