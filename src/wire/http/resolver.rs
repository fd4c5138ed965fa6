//! Resolves host names with the system's resolver, apart from the threads that read the directory: a name server that
//! does not respond delays nothing else.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{io, thread, vec};

use hyper_util::client::legacy::connect::dns::Name;
use tokio::sync::{Semaphore, oneshot};
use tower::Service;

/// The timeout of one lookup.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// The lookups at a time, each of which takes a thread. The system's resolver cannot be interrupted.
const MAX_LOOKUPS: usize = 16;

/// The reason why a name has no usable address.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResolveError {
    /// Every address is link-local or that of a metadata service.
    #[error("{0} is a link-local or metadata address, which is not allowed")]
    Denied(IpAddr),
    /// The system's resolver failed.
    #[error("cannot resolve the name: {0}; check the host in spec.http.url")]
    Failed(io::Error),
    /// The system's resolver did not respond.
    #[error("the system's resolver has not resolved the name within {} s", LOOKUP_TIMEOUT.as_secs())]
    TimedOut,
}

/// The resolver of all connections. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct SystemResolver {
    lookups: Arc<Semaphore>,
}

impl SystemResolver {
    pub(super) fn new() -> Self {
        Self { lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)) }
    }

    async fn resolve(self, name: Name) -> Result<vec::IntoIter<SocketAddr>, ResolveError> {
        let lookup = async {
            let failed = |_| io::Error::other("the lookup was not completed");
            let permit = self.lookups.acquire_owned().await.map_err(|_| io::ErrorKind::Other)?;
            let (sender, receiver) = oneshot::channel();
            thread::Builder::new().name("resolver".into()).spawn(move || {
                let addresses = (name.as_str(), 0).to_socket_addrs();
                drop(permit);
                // The attempt may have been ended meanwhile.
                let _ = sender.send(addresses);
            })?;
            receiver.await.map_err(failed)?
        };
        let resolved = tokio::time::timeout(LOOKUP_TIMEOUT, lookup).await;
        let addresses: Vec<_> =
            resolved.map_err(|_| ResolveError::TimedOut)?.map_err(ResolveError::Failed)?.collect();
        let (denied, allowed): (Vec<_>, Vec<_>) =
            addresses.into_iter().partition(|address| is_link_local_or_metadata(address.ip()));
        match denied.first() {
            Some(address) if allowed.is_empty() => Err(ResolveError::Denied(address.ip())),
            _ => Ok(allowed.into_iter()),
        }
    }
}

impl Service<Name> for SystemResolver {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = ResolveError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ResolveError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ResolveError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(self.clone().resolve(name))
    }
}

/// True for link-local, unspecified and broadcast addresses, and for those of cloud metadata services.
pub(super) fn is_link_local_or_metadata(address: IpAddr) -> bool {
    /// The IPv6 address of EC2's metadata service.
    const EC2_METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_link_local() || address.is_unspecified() || address.is_broadcast(),
        IpAddr::V6(address) => {
            address.is_unicast_link_local() || address.is_unspecified() || address == EC2_METADATA
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_and_link_local_addresses_are_recognized() {
        for (address, refused) in [
            ("169.254.169.254", true),
            ("::ffff:169.254.169.254", true),
            ("fe80::1", true),
            ("fd00:ec2::254", true),
            ("0.0.0.0", true),
            ("127.0.0.1", false),
            ("10.0.0.1", false),
            ("::1", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(is_link_local_or_metadata(address.parse().unwrap()), refused, "{address}");
        }
    }

    #[tokio::test]
    async fn names_are_resolved_and_denied_addresses_are_named() {
        let resolve = |name: &str| SystemResolver::new().resolve(name.parse().unwrap());
        let addresses: Vec<_> = resolve("localhost").await.unwrap().collect();
        assert!(!addresses.is_empty() && addresses.iter().all(|address| address.ip().is_loopback()));
        let error = resolve("169.254.169.254").await.unwrap_err();
        assert!(error.to_string().starts_with("169.254.169.254 is a link-local"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn resolver_that_does_not_respond_is_waited_for_in_vain_for_a_bounded_time() {
        let resolver = SystemResolver::new();
        let all = u32::try_from(MAX_LOOKUPS).unwrap();
        let _all = resolver.lookups.clone().acquire_many_owned(all).await.unwrap();
        let error = resolver.resolve("localhost".parse().unwrap()).await.unwrap_err();
        assert!(matches!(error, ResolveError::TimedOut), "{error}");
    }
}
