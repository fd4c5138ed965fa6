//! Event streams that end before their response, and that another stream continues (2025-11-25, Transports,
//! Resumability and Redelivery; SEP-1699). Servers also use them for polling: they end a stream on purpose and name the
//! delay before the next.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use tokio::time::sleep;

use super::super::Era;
use super::super::error::{ConnectionError, FailureSource};
use super::super::sse::StreamPosition;
use super::client::HttpClient;
use super::media_type::MediaType;
use super::response::{MessageEvents, ResponseKind};
use super::session::{SessionState, session_state};
use crate::net::{Backoff, Delays, jitter};
use crate::resource::Reason;

pub(super) const LAST_EVENT_ID_HEADER: HeaderName = HeaderName::from_static("last-event-id");

/// The delays before a stream is continued if the server names none.
const RESUME_DELAYS: Delays = Delays { initial: Duration::from_secs(1), max: Duration::from_secs(30) };
/// The shortest and longest delay that a server can ask for.
const RETRY_RANGE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_mins(5));
/// The attempts in a row to continue a stream.
const MAX_ATTEMPTS: u32 = 5;

impl StreamPosition {
    /// Returns the delay that the server asked for, within bounds.
    pub(super) fn retry_delay(&self) -> Option<Duration> {
        let (shortest, longest) = RETRY_RANGE;
        self.retry.map(|delay| delay.clamp(shortest, longest))
    }
}

impl HttpClient {
    /// True if a stream that ended at this position can be continued. Since 2026-07-28 none can.
    pub(super) fn is_resumable(&self, position: &StreamPosition) -> bool {
        position.last_event_id.is_some() && self.0.template.load().era != Some(Era::Modern)
    }

    /// Returns the headers of a GET for an event stream.
    pub(super) fn event_stream_headers(&self, last_event_id: Option<&HeaderValue>) -> HeaderMap {
        let mut headers = self.request_headers("", None);
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        headers.remove(CONTENT_TYPE);
        headers.extend(last_event_id.map(|id| (LAST_EVENT_ID_HEADER, id.clone())));
        headers
    }

    /// Continues the stream of a request after its delay, in several attempts if need be.
    ///
    /// # Errors
    ///
    /// Fails if the server does not continue it. The request counts as sent, since the server began to respond.
    pub(super) async fn resume_stream(
        &self,
        position: StreamPosition,
    ) -> Result<ResponseKind, ConnectionError> {
        let mut backoff = Backoff::default();
        loop {
            let failures = backoff.failures();
            let computed = backoff.record_failure(RESUME_DELAYS, jitter(), position.retry_delay());
            sleep(position.retry_delay().filter(|_| failures == 0).unwrap_or(computed)).await;
            self.retry_after().wait_until_over().await;
            match self.continue_stream(&position).await {
                Ok(stream) => return Ok(stream),
                Err(error) if is_final(&error) || backoff.failures() >= MAX_ATTEMPTS => {
                    let message = format!(
                        "the server ended the stream before the response and does not continue it: {}",
                        error.problem.message
                    );
                    return Err(ConnectionError::new(Reason::ConnectFailed, message).into_dispatched());
                }
                Err(error) => tracing::debug!(%error, "an event stream could not be continued"),
            }
        }
    }

    async fn continue_stream(&self, position: &StreamPosition) -> Result<ResponseKind, ConnectionError> {
        let headers = self.event_stream_headers(position.last_event_id.as_ref());
        let response = self.send(&Method::GET, headers, &Bytes::new(), true).await?;
        let (head, body) = response.into_parts();
        if head.status.is_success() && MediaType::from_headers(&head.headers) == MediaType::EventStream {
            return Ok(ResponseKind::Stream(body, MessageEvents::continued_at(position.clone())));
        }
        if session_state(head.status, self.has_session(), None) != SessionState::Valid {
            self.0.notifications.request_health_check();
        }
        let failure_source = FailureSource::Status(head.status);
        let message = format!("HTTP {}", head.status);
        Err(ConnectionError { failure_source, ..ConnectionError::new(Reason::ConnectFailed, message) })
    }
}

/// True for a response that another attempt would get too.
fn is_final(error: &ConnectionError) -> bool {
    let FailureSource::Status(status) = error.failure_source else { return false };
    let is_temporary = status.is_server_error()
        || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
    !is_temporary || status == StatusCode::NOT_IMPLEMENTED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delay_of_the_server_is_bounded() {
        let delay = |millis: u64| {
            let retry = Some(Duration::from_millis(millis));
            StreamPosition { retry, ..StreamPosition::default() }.retry_delay().map(|delay| delay.as_millis())
        };
        assert_eq!([delay(0), delay(1500), delay(u64::MAX)], [Some(100), Some(1500), Some(300_000)]);
        assert_eq!(StreamPosition::default().retry_delay(), None);
    }

    #[test]
    fn temporary_failures_are_tried_again() {
        let error = |failure_source| ConnectionError {
            failure_source,
            ..ConnectionError::new(Reason::ConnectFailed, "why")
        };
        let status = |code| is_final(&error(FailureSource::Status(StatusCode::from_u16(code).unwrap())));
        assert_eq!([200, 204, 400, 404, 405, 501].map(status), [true; 6]);
        assert_eq!([408, 429, 500, 502, 503].map(status), [false; 5]);
        assert!(!is_final(&error(FailureSource::Connection)));
    }
}
