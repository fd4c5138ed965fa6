//! Which of several replicas writes: the one that holds a Lease.

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

/// How long a Lease that is not renewed holds.
const LEASE_DURATION: Duration = Duration::from_secs(15);
/// The time between two looks at it, or two renewals of it, whether they succeed or not: no backoff, for its holder has
/// to renew it several times within [`DEADLINE`], and the others have to see that it did not.
const RENEW_INTERVAL: Duration = Duration::from_secs(2);
/// So long after its last renewal its holder stops writing: well before another may begin.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);

/// A Lease that is sought, held, and given back.
pub struct Leadership {
    api: Api<Lease>,
    name: String,
    identity: String,
    /// The newest version, and since when it has been the newest: clocks of others are not believed.
    last_seen: Option<(Option<String>, Instant)>,
    renewed_at: Option<Instant>,
}

/// What to do about a Lease.
#[derive(Debug, PartialEq, Eq)]
enum LeaseAction {
    /// There is none.
    Create,
    /// It is nobody's, or its holder is silent.
    Acquire,
    /// It is ours.
    Renew,
    /// It is another's.
    Wait,
}

/// Decides for `me` about a Lease that has not changed for a time.
fn next_action(lease: Option<&LeaseSpec>, me: &str, unchanged: Duration) -> LeaseAction {
    let Some(lease) = lease else { return LeaseAction::Create };
    let holder = lease.holder_identity.as_deref().unwrap_or_default();
    let seconds = lease.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    if holder == me {
        LeaseAction::Renew
    } else if holder.is_empty() || unchanged > seconds.map_or(LEASE_DURATION, Duration::from_secs) {
        LeaseAction::Acquire
    } else {
        LeaseAction::Wait
    }
}

impl Leadership {
    /// The Lease of this name; `identity` must be another for every replica.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        let api = Api::namespaced(client, namespace);
        Self { api, name: name.to_owned(), identity: identity.to_owned(), last_seen: None, renewed_at: None }
    }

    /// Seeks the Lease and says whether it is held, until it is stopped; then gives it back. The first answer of the API
    /// server wakes those who wait for `leading` even if another replica holds the Lease.
    pub async fn run(mut self, leading: watch::Sender<bool>, stop: CancellationToken) {
        let (mut trouble, mut answered) = (false, false);
        loop {
            let outcome = timeout(REQUEST_TIMEOUT, self.try_acquire_or_renew()).await;
            let first = matches!(outcome, Ok(Ok(()))) && !std::mem::replace(&mut answered, true);
            match outcome {
                Ok(Ok(())) if trouble => {
                    trouble = false;
                    tracing::info!(lease = self.name, "can be sought and renewed again");
                }
                Ok(Ok(())) => {}
                // Somebody else was faster.
                Ok(Err(kube::Error::Api(status))) if status.is_conflict() => {}
                failed if !trouble => {
                    trouble = true;
                    let why = match failed {
                        Ok(Err(error)) => describe_error(&error),
                        _ => format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()),
                    };
                    tracing::warn!(
                        lease = self.name,
                        "cannot be sought or renewed: {why}; it is tried again"
                    );
                }
                _ => {}
            }
            let held = self.renewed_at.is_some_and(|renewed| renewed.elapsed() < RENEW_DEADLINE);
            let news = *leading.borrow() != held;
            if news || first {
                leading.send_replace(held);
            }
            match (news, held) {
                (true, true) => tracing::info!(
                    lease = self.name,
                    identity = self.identity,
                    "holds the lease and writes statuses"
                ),
                (true, false) => {
                    tracing::warn!(lease = self.name, "lost the lease; another replica may write statuses");
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
            tracing::debug!(lease = self.name, "could not be given back; it runs out");
        }
    }

    /// One look, and one step.
    async fn try_acquire_or_renew(&mut self) -> kube::Result<()> {
        let lease = self.api.get_opt(&self.name).await?;
        let version = lease.as_ref().and_then(|lease| lease.metadata.resource_version.clone());
        let since = match &self.last_seen {
            Some((seen, since)) if *seen == version => *since,
            _ => Instant::now(),
        };
        self.last_seen = Some((version, since));
        let spec = lease.as_ref().map(|lease| lease.spec.clone().unwrap_or_default());
        let asked = Instant::now();
        let written = match (next_action(spec.as_ref(), &self.identity, since.elapsed()), lease) {
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
        self.renewed_at = Some(asked);
        Ok(())
    }

    /// The version in it makes sure that nobody else was faster.
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
