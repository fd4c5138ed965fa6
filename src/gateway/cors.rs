//! Cross-origin resource sharing (CORS), for web pages of the origins that `--allowed-origin` names.
//!
//! A browser shows a response to a page of another origin only if the response permits it. Never does so for an origin
//! that is not named: pages of loopback origins are served, but only those of evenkeel's own origin can read responses.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};

use super::body::{self, ResponseBody};
use crate::net::Authorization;

/// The request headers that any page may set, besides those that begin with `Mcp-`.
const ALLOWED_HEADERS: &str = "Accept, Authorization, Content-Type, Last-Event-ID, MCP-Protocol-Version, Mcp-Method, \
                               Mcp-Name, Mcp-Session-Id";
/// The maximum number of further request headers in a response.
const MAX_REQUESTED_HEADERS: usize = 64;
/// The response headers that a page can read.
const EXPOSED_HEADERS: &str = "Mcp-Session-Id, Retry-After, WWW-Authenticate";
const ALLOWED_METHODS: &str = "POST, GET, DELETE";
/// The time in seconds for which a browser does not ask again, the maximum of Chromium.
const MAX_AGE_SECONDS: &str = "7200";
/// The headers of Private Network Access: Chromium asks before a page of the internet sends a request to a local address.
const REQUEST_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");

/// The CORS headers of the response to one request.
#[derive(Debug)]
pub(super) enum CorsHeaders {
    /// No origin is named: there are no such headers at all.
    Disabled,
    /// The request is of no named origin. Caches must not show its response to a page of one.
    OtherOrigin,
    /// The request is of this named origin.
    Named(HeaderValue),
}

impl CorsHeaders {
    /// Determines the headers for a request.
    pub(super) fn for_request(authorization: &Authorization, headers: &HeaderMap) -> Self {
        if !authorization.names_origins() {
            return Self::Disabled;
        }
        authorization.named_origin(headers).map_or(Self::OtherOrigin, |origin| Self::Named(origin.clone()))
    }

    /// Returns the response to a preflight request of a named origin; `None` for any other request.
    pub(super) fn preflight_response(
        &self,
        method: &Method,
        request: &HeaderMap,
    ) -> Option<Response<ResponseBody>> {
        let is_preflight = *method == Method::OPTIONS && request.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        if !is_preflight || !matches!(self, Self::Named(_)) {
            return None;
        }
        let mut response = body::empty(StatusCode::NO_CONTENT);
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(ALLOWED_METHODS));
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, allowed_headers(request));
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE_SECONDS));
        if request.get(REQUEST_PRIVATE_NETWORK).is_some_and(|requested| requested == "true") {
            headers.insert(ALLOW_PRIVATE_NETWORK, HeaderValue::from_static("true"));
        }
        for name in [ACCESS_CONTROL_REQUEST_METHOD, ACCESS_CONTROL_REQUEST_HEADERS, REQUEST_PRIVATE_NETWORK] {
            headers.append(VARY, HeaderValue::from(name));
        }
        Some(response)
    }

    /// Adds the headers to a response.
    pub(super) fn add_to(self, headers: &mut HeaderMap) {
        if matches!(self, Self::Disabled) {
            return;
        }
        headers.append(VARY, HeaderValue::from(ORIGIN));
        if let Self::Named(origin) = self {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED_HEADERS));
        }
    }
}

/// Returns the allowed request headers: the fixed ones, and the requested ones that begin with `Mcp-`, such as
/// `Mcp-Param-Region`.
fn allowed_headers(request: &HeaderMap) -> HeaderValue {
    let requested = request.get_all(ACCESS_CONTROL_REQUEST_HEADERS).into_iter();
    let names = requested.filter_map(|names| names.to_str().ok()).flat_map(|names| names.split(','));
    let names = names.filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok());
    let names = names.filter(|name| name.as_str().starts_with("mcp-")).take(MAX_REQUESTED_HEADERS);
    let all = names.fold(ALLOWED_HEADERS.to_owned(), |all, name| format!("{all}, {name}"));
    HeaderValue::from_str(&all).unwrap_or_else(|_| HeaderValue::from_static(ALLOWED_HEADERS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::AllowedHosts;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn cors(origins: &[&str], request: &HeaderMap) -> CorsHeaders {
        let origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
        let authorization = Authorization::new(AllowedHosts { origins, ..AllowedHosts::default() });
        CorsHeaders::for_request(&authorization, request)
    }

    fn response_headers(cors: CorsHeaders) -> Vec<String> {
        let mut headers = HeaderMap::new();
        cors.add_to(&mut headers);
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
    }

    #[test]
    fn only_named_origins_can_read_responses() {
        let allow = |origin: &str| {
            vec![
                "vary: origin".to_owned(),
                format!("access-control-allow-origin: {origin}"),
                format!("access-control-expose-headers: {EXPOSED_HEADERS}"),
            ]
        };
        let page = "https://app.example.com";
        for (named, origin, expected) in [
            (&[][..], "http://localhost:5173", vec![]),
            (&[], page, vec![]),
            (&[page], page, allow(page)),
            (&["https://APP.example.com/"], page, allow(page)),
            (&[page], "http://localhost:5173", vec!["vary: origin".to_owned()]),
            (&[page], "https://evil.example.com", vec!["vary: origin".to_owned()]),
            (&[page, "http://localhost:5173"], "http://localhost:5173", allow("http://localhost:5173")),
        ] {
            let found = response_headers(cors(named, &headers(&[("origin", origin)])));
            assert_eq!(found, expected, "{named:?} {origin}");
        }
        assert_eq!(response_headers(cors(&[page], &HeaderMap::new())), ["vary: origin"]);
    }

    #[test]
    fn preflight_allows_the_headers_of_mcp() {
        let request = headers(&[
            ("origin", "https://a.example"),
            ("access-control-request-method", "POST"),
            (
                "access-control-request-headers",
                "content-type, mcp-param-region,x-other, mcp- bad,Mcp-Param-B",
            ),
        ]);
        let named = cors(&["https://a.example"], &request);
        let response = named.preflight_response(&Method::OPTIONS, &request).unwrap();
        assert_eq!(response.status(), 204);
        let allowed = response.headers()[ACCESS_CONTROL_ALLOW_HEADERS].to_str().unwrap();
        assert_eq!(allowed, format!("{ALLOWED_HEADERS}, mcp-param-region, mcp-param-b"));
        assert!(!response.headers().contains_key(ALLOW_PRIVATE_NETWORK));

        assert!(named.preflight_response(&Method::POST, &request).is_none());
        assert!(named.preflight_response(&Method::OPTIONS, &HeaderMap::new()).is_none());
        assert!(
            cors(&["https://b.example"], &request).preflight_response(&Method::OPTIONS, &request).is_none()
        );
        let mut local = request;
        local.insert(REQUEST_PRIVATE_NETWORK, HeaderValue::from_static("true"));
        let response = named.preflight_response(&Method::OPTIONS, &local).unwrap();
        assert_eq!(response.headers()[ALLOW_PRIVATE_NETWORK], "true");
    }

    #[test]
    fn requested_headers_are_bounded() {
        let many = (0..10_000).map(|number| format!("mcp-param-{number}")).collect::<Vec<_>>().join(",");
        let request =
            HeaderMap::from_iter([(ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue::from_str(&many).unwrap())]);
        assert!(allowed_headers(&request).len() < 2_000);
    }
}
