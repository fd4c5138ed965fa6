use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::error::OAuthError;
use super::grant::StoredGrant;
use super::renewal_time::renewal_delay;
use crate::net::{Backoff, Delays};

/// The delays between attempts to renew a token.
const RETRY_DELAYS: Delays = Delays { initial: Duration::from_secs(1), max: Duration::from_mins(1) };

/// The time for which a token is not renewed although the server rejects it.
const MIN_RENEWAL_INTERVAL: Duration = Duration::from_secs(10);

/// A grant, and when it is renewed.
#[derive(Default)]
pub(super) struct GrantEntry {
    /// The grant; `None` for a client that has no token yet.
    pub(super) grant: Option<StoredGrant>,
    /// The number of the access token.
    pub(super) number: u64,
    /// When the token is renewed; `None` if it is not, or if a renewal is running.
    pub(super) renew_at: Option<Instant>,
    /// The reason why the last renewal failed.
    pub(super) problem: Option<OAuthError>,
    /// When the access token was received from the authorization server in this run.
    received_at: Option<Instant>,
    backoff: Backoff,
}

impl GrantEntry {
    /// Returns the entry of a client whose first token is due.
    pub(super) fn due() -> Self {
        Self { renew_at: Some(Instant::now()), ..Self::default() }
    }

    /// Takes a grant whose access token has this number.
    pub(super) fn set(&mut self, grant: StoredGrant, number: u64) {
        let now = Instant::now();
        self.received_at = self.grant.is_some().then_some(now);
        let delay = grant
            .lifetime()
            .map(|lifetime| renewal_delay(lifetime).saturating_sub(grant.age(Timestamp::now())));
        self.renew_at = match delay {
            // The new tokens may have been lost with the process: the authorization server tells.
            _ if grant.is_renewing => Some(now),
            Some(delay) if grant.is_renewable() => Some(now + delay),
            _ => None,
        };
        if grant.refused.is_some() {
            self.renew_at = None;
        }
        self.problem = grant.refused.clone().map(OAuthError::Refused);
        self.backoff.reset();
        (self.number, self.grant) = (number, Some(grant));
    }

    /// Sets when the token of a client without a login is obtained next.
    pub(super) fn set_client_token(&mut self, grant: StoredGrant, number: u64) {
        let now = Instant::now();
        self.received_at = Some(now);
        self.renew_at = grant.lifetime().map(|lifetime| now + renewal_delay(lifetime));
        self.problem = None;
        self.backoff.reset();
        (self.number, self.grant) = (number, Some(grant));
    }

    /// Records that a renewal failed. After a refusal there is no token, and none is requested before a login or a change.
    pub(super) fn record_failure(&mut self, error: OAuthError, jitter: f64) {
        let is_final = !matches!(error, OAuthError::Failed(_));
        self.renew_at =
            (!is_final).then(|| Instant::now() + self.backoff.record_failure(RETRY_DELAYS, jitter, None));
        self.problem = Some(error);
    }

    /// Returns true if the access token was received less than [`MIN_RENEWAL_INTERVAL`] ago.
    pub(super) fn is_fresh(&self) -> bool {
        self.received_at.is_some_and(|received_at| received_at.elapsed() < MIN_RENEWAL_INTERVAL)
    }

    /// Returns true if the grant can no longer be used.
    pub(super) fn is_refused(&self) -> bool {
        matches!(self.problem, Some(OAuthError::Refused(_) | OAuthError::InvalidSpec(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::grant::tests::grant;
    use super::*;

    fn received(ago: i64) -> StoredGrant {
        let received_at = u64::try_from(Timestamp::now().as_second() - ago).unwrap();
        grant("https://mcp.example.com/mcp", None, received_at)
    }

    #[tokio::test(start_paused = true)]
    async fn grant_is_renewed_in_time_and_at_once_if_its_tokens_may_be_lost() {
        let now = Instant::now();
        let renews_in = |grant: StoredGrant| {
            let mut entry = GrantEntry::default();
            entry.set(grant, 1);
            entry.renew_at.map(|at| at.saturating_duration_since(now).as_secs().next_multiple_of(100))
        };
        assert_eq!(renews_in(received(0)), Some(3300));
        assert_eq!(renews_in(received(1000)), Some(2300));
        assert_eq!(renews_in(received(10_000)), Some(0));
        // The clock was set back.
        assert_eq!(renews_in(received(-10_000)), Some(3300));
        assert_eq!(renews_in(StoredGrant { is_renewing: true, ..received(0) }), Some(0));
        assert_eq!(renews_in(StoredGrant { refused: Some("why".into()), ..received(0) }), None);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_tried_again_and_refusals_are_not() {
        let mut entry = GrantEntry::default();
        entry.set(received(0), 1);
        for seconds in [1, 2, 4] {
            entry.record_failure(OAuthError::Failed("no answer".into()), 0.0);
            assert_eq!(entry.renew_at, Some(Instant::now() + Duration::from_secs(seconds)));
            assert!(!entry.is_refused());
        }
        entry.record_failure(OAuthError::Refused("invalid_grant".into()), 0.0);
        assert!(entry.renew_at.is_none() && entry.is_refused());
        entry.set(received(0), 2);
        assert!(entry.renew_at.is_some() && !entry.is_refused());
    }
}
