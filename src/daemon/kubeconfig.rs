use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;

use crate::admin::Certificate;
use crate::net::BearerToken;
use crate::state_dir::{StateDir, StateError};

/// The name of the kubeconfig in the state directory.
pub const KUBECONFIG_FILE: &str = "kubeconfig";

/// Returns the path of the kubeconfig.
pub(super) fn path(state: &StateDir) -> PathBuf {
    state.path().join(KUBECONFIG_FILE)
}

/// Returns the bearer token that encodes a key.
pub(super) fn token_from_key(key: &[u8; 32]) -> BearerToken {
    BearerToken::new(URL_SAFE_NO_PAD.encode(key).into())
}

/// Returns the URL by which clients on this machine reach a listen address.
fn client_url(mut address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    format!("https://{address}")
}

/// Writes the kubeconfig to the state directory, readable by its owner only.
pub(super) fn write(
    state: &StateDir,
    address: SocketAddr,
    certificate: &Certificate,
    token: &BearerToken,
) -> Result<(), StateError> {
    let name = "evenkeel";
    let trusted = STANDARD.encode(certificate.pem());
    let cluster = json!({ "server": client_url(address), "certificate-authority-data": trusted });
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": name, "cluster": cluster }],
        "users": [{ "name": name, "user": { "token": token.expose() } }],
        "contexts": [{ "name": name, "context": { "cluster": name, "user": name } }],
        "current-context": name,
    });
    // JSON is valid YAML.
    state.write(KUBECONFIG_FILE, format!("{config:#}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_url_uses_loopback_for_unspecified_addresses() {
        for (listen_address, expected) in [
            ("127.0.0.1:7718", "https://127.0.0.1:7718"),
            ("0.0.0.0:1", "https://127.0.0.1:1"),
            ("[::]:1", "https://[::1]:1"),
            ("10.1.2.3:1", "https://10.1.2.3:1"),
        ] {
            assert_eq!(client_url(listen_address.parse().unwrap()), expected);
        }
    }
}
