//! Leader election among replicas with a Lease.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::request::{FIELD_MANAGER, REQUEST_TIMEOUT};
use crate::net::api_server::describe_error;

/// The time after which a Lease that is not renewed expires.
const LEASE_DURATION: Duration = Duration::from_secs(15);
/// The time between two reads or renewals, whether they succeed or not. There is no backoff, because the holder has to
/// renew the Lease several times within [`RENEW_DEADLINE`], and the others have to notice a missed renewal.
const RENEW_INTERVAL: Duration = Duration::from_secs(2);
/// The time after the last renewal at which the holder stops writing. It ends well before another replica may acquire
/// the Lease.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);

/// Acquires, renews and releases a Lease.
pub struct Leadership {
    api: Api<Lease>,
    name: String,
    identity: String,
    /// The latest resource version, and the local time at which it was first seen. Clocks of other replicas are not
    /// trusted.
    last_seen: Option<(Option<String>, Instant)>,
    renewed_at: Option<Instant>,
}

/// The next action on a Lease.
#[derive(Debug, PartialEq, Eq)]
enum LeaseAction {
    /// There is no Lease.
    Create,
    /// The Lease has no holder or has expired.
    Acquire,
    /// This replica holds the Lease.
    Renew,
    /// Another replica holds the Lease.
    Wait,
}

/// Decides the action of the replica `me` on a Lease that has been unchanged for a time.
fn next_action(lease: Option<&LeaseSpec>, identity: &str, unchanged: Duration) -> LeaseAction {
    let Some(lease) = lease else { return LeaseAction::Create };
    let holder = lease.holder_identity.as_deref().unwrap_or_default();
    let seconds = lease.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    if holder == identity {
        LeaseAction::Renew
    } else if holder.is_empty() || unchanged > seconds.map_or(LEASE_DURATION, Duration::from_secs) {
        LeaseAction::Acquire
    } else {
        LeaseAction::Wait
    }
}

impl Leadership {
    /// Creates a candidate for the Lease of this name. `identity` must be unique among replicas.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        let api = Api::namespaced(client, namespace);
        Self { api, name: name.to_owned(), identity: identity.to_owned(), last_seen: None, renewed_at: None }
    }

    /// Acquires and renews the Lease and publishes whether it is held, until it is stopped; then releases it. The first
    /// response of the API server marks `leading` as changed even if another replica holds the Lease.
    pub async fn run(mut self, leading: watch::Sender<bool>, stop: CancellationToken) {
        let (mut is_failing, mut has_response) = (false, false);
        loop {
            let outcome = timeout(REQUEST_TIMEOUT, self.try_acquire_or_renew()).await;
            let is_first = matches!(outcome, Ok(Ok(()))) && !std::mem::replace(&mut has_response, true);
            match outcome {
                Ok(Ok(())) if is_failing => {
                    is_failing = false;
                    tracing::info!(lease = self.name, "the Lease can be acquired and renewed again");
                }
                Ok(Ok(())) => {}
                // Another replica was faster.
                Ok(Err(kube::Error::Api(status))) if status.is_conflict() => {}
                failure if !is_failing => {
                    is_failing = true;
                    let reason = match failure {
                        Ok(Err(error)) => describe_error(&error),
                        _ => format!("no response within {} s", REQUEST_TIMEOUT.as_secs()),
                    };
                    tracing::warn!(
                        lease = self.name,
                        "the Lease cannot be acquired or renewed: {reason}; retrying"
                    );
                }
                _ => {}
            }
            let held = self.renewed_at.is_some_and(|renewed| renewed.elapsed() < RENEW_DEADLINE);
            let is_changed = *leading.borrow() != held;
            if is_changed || is_first {
                leading.send_replace(held);
            }
            match (is_changed, held) {
                (true, true) => tracing::info!(
                    lease = self.name,
                    identity = self.identity,
                    "holds the Lease; this replica writes statuses"
                ),
                (true, false) => {
                    tracing::warn!(lease = self.name, "lost the Lease; another replica may write statuses");
                }
                _ => {}
            }
            if stop.run_until_cancelled(sleep(RENEW_INTERVAL)).await.is_none() {
                break;
            }
        }
        leading.send_replace(false);
        if self.renewed_at.is_some() && !matches!(timeout(REQUEST_TIMEOUT, self.release()).await, Ok(Ok(())))
        {
            tracing::debug!(lease = self.name, "the Lease could not be released; it will expire");
        }
    }

    /// Reads the Lease once and takes the next action.
    async fn try_acquire_or_renew(&mut self) -> kube::Result<()> {
        let lease = self.api.get_opt(&self.name).await?;
        let version = lease.as_ref().and_then(|lease| lease.metadata.resource_version.clone());
        let unchanged_since = match &self.last_seen {
            Some((seen_version, unchanged_since)) if *seen_version == version => *unchanged_since,
            _ => Instant::now(),
        };
        self.last_seen = Some((version, unchanged_since));
        let spec = lease.as_ref().map(|lease| lease.spec.clone().unwrap_or_default());
        let requested_at = Instant::now();
        let written = match (next_action(spec.as_ref(), &self.identity, unchanged_since.elapsed()), lease) {
            (LeaseAction::Wait, _) => {
                self.renewed_at = None;
                return Ok(());
            }
            (LeaseAction::Renew, Some(mut lease)) => {
                let spec = lease.spec.get_or_insert_default();
                spec.renew_time = Some(MicroTime(Timestamp::now()));
                self.replace(&lease).await?
            }
            (LeaseAction::Acquire, Some(mut lease)) => {
                let transitions = spec.and_then(|spec| spec.lease_transitions).unwrap_or_default();
                lease.spec = Some(self.acquired_spec(transitions.saturating_add(1)));
                self.replace(&lease).await?
            }
            (_, _) => {
                let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
                let lease = Lease { metadata, spec: Some(self.acquired_spec(0)) };
                self.api.create(&post_params(), &lease).await?
            }
        };
        self.last_seen = Some((written.metadata.resource_version, Instant::now()));
        self.renewed_at = Some(requested_at);
        Ok(())
    }

    /// Replaces the Lease. Its resource version makes the write fail with a conflict if another replica was faster.
    async fn replace(&self, lease: &Lease) -> kube::Result<Lease> {
        self.api.replace(&self.name, &post_params(), lease).await
    }

    async fn release(&self) -> kube::Result<()> {
        let lease = self.api.get_opt(&self.name).await?;
        if let Some(mut lease) = lease
            && let Some(spec) = &mut lease.spec
            && spec.holder_identity.as_deref() == Some(self.identity.as_str())
        {
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
            self.replace(&lease).await?;
        }
        Ok(())
    }

    fn acquired_spec(&self, transitions: i32) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }
}

fn post_params() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_is_acquired_when_free_or_expired() {
        let lease = |holder: &str, seconds| LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: seconds,
            ..LeaseSpec::default()
        };
        for (lease, unchanged, expected) in [
            (None, 0, LeaseAction::Create),
            (Some(LeaseSpec::default()), 0, LeaseAction::Acquire),
            (Some(lease("", Some(1))), 0, LeaseAction::Acquire),
            (Some(lease("me", Some(15))), 100, LeaseAction::Renew),
            (Some(lease("other", Some(15))), 15, LeaseAction::Wait),
            (Some(lease("other", Some(15))), 16, LeaseAction::Acquire),
            (Some(lease("other", None)), 16, LeaseAction::Acquire),
            (Some(lease("other", Some(60))), 16, LeaseAction::Wait),
        ] {
            assert_eq!(
                next_action(lease.as_ref(), "me", Duration::from_secs(unchanged)),
                expected,
                "{lease:?} {unchanged}"
            );
        }
    }
}
