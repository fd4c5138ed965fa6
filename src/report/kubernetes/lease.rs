//! Leader election among replicas with a Lease.

use std::pin::pin;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::request::{FIELD_MANAGER, REQUEST_TIMEOUT};
use crate::net::api_server::describe_error;

/// The time after which a Lease that is not renewed expires.
const LEASE_DURATION: Duration = Duration::from_secs(15);
/// The time between two reads or renewals, whether they succeed or not. There is no backoff, because the holder has to
/// renew the Lease several times within [`RENEW_DEADLINE`], and the others have to notice a missed renewal.
const RENEW_INTERVAL: Duration = Duration::from_secs(2);
/// The time after the last renewal at which the holder stops to begin writes, whatever it waits for. A write that is in
/// flight then ends within [`REQUEST_TIMEOUT`], before another replica may acquire the Lease.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
const _: () = assert!(RENEW_DEADLINE.as_secs() + REQUEST_TIMEOUT.as_secs() <= LEASE_DURATION.as_secs());

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
    /// response of the API server marks `leading` as changed even if another replica holds the Lease. Publishes the
    /// loss of the Lease in time even while a request gets no response.
    pub async fn run(mut self, leading: watch::Sender<bool>, stop: CancellationToken) {
        let publisher =
            LeadingPublisher { leading, lease: self.name.clone(), identity: self.identity.clone() };
        let (mut is_failing, mut has_response) = (false, false);
        loop {
            let held_until = self.held_until();
            let request = timeout(REQUEST_TIMEOUT, self.try_acquire_or_renew());
            let outcome = publisher.while_held(held_until, request).await;
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
            let held_until = self.held_until();
            publisher.publish(held_until.is_some_and(|until| Instant::now() < until), is_first);
            let pause = stop.run_until_cancelled(sleep(RENEW_INTERVAL));
            if publisher.while_held(held_until, pause).await.is_none() {
                break;
            }
        }
        publisher.leading.send_replace(false);
        if self.renewed_at.is_some() && !matches!(timeout(REQUEST_TIMEOUT, self.release()).await, Ok(Ok(())))
        {
            tracing::debug!(lease = self.name, "the Lease could not be released; it will expire");
        }
    }

    /// Returns the time at which this replica stops writing unless it renews the Lease. `None` if it does not hold the
    /// Lease.
    fn held_until(&self) -> Option<Instant> {
        self.renewed_at.map(|renewed_at| renewed_at + RENEW_DEADLINE)
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

/// Publishes whether this replica holds the Lease.
struct LeadingPublisher {
    leading: watch::Sender<bool>,
    lease: String,
    identity: String,
}

impl LeadingPublisher {
    /// Completes a task, and publishes the loss of the Lease if its time passes meanwhile.
    async fn while_held<T>(&self, held_until: Option<Instant>, task: impl Future<Output = T>) -> T {
        let mut task = pin!(task);
        if let Some(held_until) = held_until {
            if let Ok(done) = timeout_at(held_until, &mut task).await {
                return done;
            }
            self.publish(false, false);
        }
        task.await
    }

    /// Publishes and logs a change. `is_first` marks the value as changed in any case.
    fn publish(&self, held: bool, is_first: bool) {
        let is_changed = *self.leading.borrow() != held;
        if is_changed || is_first {
            self.leading.send_replace(held);
        }
        let Self { lease, identity, .. } = self;
        match (is_changed, held) {
            (true, true) => {
                tracing::info!(lease, identity, "holds the Lease; this replica writes statuses");
            }
            (true, false) => tracing::warn!(lease, "lost the Lease; another replica may write statuses"),
            _ => {}
        }
    }
}

fn post_params() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;

    use http::{Request, Response};
    use http_body_util::BodyExt;
    use kube::client::Body;
    use parking_lot::Mutex;
    use tower::service_fn;

    use super::*;

    /// An API server with one Lease, or none.
    #[derive(Default)]
    struct FakeApiServer {
        lease: Mutex<Option<Vec<u8>>>,
        /// The time at which the Lease was last written.
        written_at: Mutex<Option<Instant>>,
        /// The time after which a request gets no response. The connection stays open.
        hangs_after: Mutex<Option<Instant>>,
    }

    impl FakeApiServer {
        async fn respond(&self, request: Request<Body>) -> Response<Body> {
            if self.hangs_after.lock().is_some_and(|after| Instant::now() >= after) {
                return std::future::pending().await;
            }
            let body = request.into_body().collect().await.unwrap().to_bytes();
            if !body.is_empty() {
                *self.lease.lock() = Some(body.to_vec());
                *self.written_at.lock() = Some(Instant::now());
            }
            let lease = self.lease.lock().clone();
            let status = if lease.is_some() { 200 } else { 404 };
            let not_found =
                br#"{"kind":"Status","status":"Failure","reason":"NotFound","message":"","code":404}"#;
            let text = lease.unwrap_or_else(|| not_found.to_vec());
            Response::builder().status(status).body(Body::from(text)).unwrap()
        }

        fn leadership(self: &Arc<Self>) -> Leadership {
            let server = self.clone();
            let service = service_fn(move |request| {
                let server = server.clone();
                async move { Ok::<_, Infallible>(server.respond(request).await) }
            });
            Leadership::new(Client::new(service, "default"), "default", "lease", "me")
        }
    }

    #[tokio::test(start_paused = true)]
    async fn holder_stops_in_time_while_a_request_hangs() {
        for millis in [0, 500, 1_500, 2_500, 3_999] {
            let server = Arc::new(FakeApiServer::default());
            let (sender, mut leading) = watch::channel(false);
            let stop = CancellationToken::new();
            let task = tokio::spawn(server.leadership().run(sender, stop.clone()));
            leading.wait_for(|leading| *leading).await.unwrap();
            *server.hangs_after.lock() = Some(Instant::now() + Duration::from_millis(millis));

            leading.wait_for(|leading| !*leading).await.unwrap();
            let held_for = server.written_at.lock().unwrap().elapsed();
            // The timer has a resolution of one millisecond.
            let limit = RENEW_DEADLINE + Duration::from_millis(2);
            assert!(held_for <= limit && held_for >= RENEW_DEADLINE, "{millis} ms: {held_for:?}");

            // It leads again as soon as it can renew.
            *server.hangs_after.lock() = None;
            leading.wait_for(|leading| *leading).await.unwrap();
            stop.cancel();
            task.await.unwrap();
            assert!(!*leading.borrow());
        }
    }

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
