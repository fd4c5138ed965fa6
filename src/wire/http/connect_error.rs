//! Describes why a connection could not be opened, and what to do about it. Pure.

use std::io;

use rustls::{AlertDescription, CertificateError, Error as TlsError};

/// Describes an error of a TCP connection.
pub(super) fn describe_tcp_error(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "connection refused; no process listens on this port: check spec.http.url, and whether the server runs".into()
        }
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            format!("{error}; check the network of this machine, and the host in spec.http.url")
        }
        _ => error.to_string(),
    }
}

/// Describes an error of a TLS handshake. `has_ca` is true if the declaration has a CA of its own.
pub(super) fn describe_tls_error(error: &io::Error, has_ca: bool) -> String {
    let tls_error = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
    let advice = match tls_error {
        Some(TlsError::InvalidCertificate(certificate)) => certificate_advice(certificate, has_ca),
        Some(TlsError::InvalidMessage(_)) => {
            "the server does not speak TLS on this port; check scheme and port of spec.http.url"
        }
        Some(TlsError::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::BadCertificate,
        )) => "the server requires a certificate of its clients, which evenkeel does not have",
        _ if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the server closed the connection during the handshake; check scheme and port of spec.http.url"
        }
        _ => return format!("TLS: {error}"),
    };
    format!("TLS: {advice} ({error})")
}

fn certificate_advice(error: &CertificateError, has_ca: bool) -> &'static str {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate has expired; renew it at the server, and check the clock of this machine"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet; check the clock of this machine"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "the server's certificate is for another host; check the host in spec.http.url"
        }
        CertificateError::Revoked => "the server's certificate was revoked; renew it at the server",
        // Also the error for a certificate that is its own CA, and is not trusted.
        _ if has_ca => {
            "the server's certificate is not signed by the CA in spec.http.tls.caSecretRef; correct that secret"
        }
        _ => {
            "this machine does not trust the CA of the server's certificate; set spec.http.tls.caSecretRef to a secret with \
             the certificate of that CA"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_message_says_what_to_do() {
        let certificate =
            |error| io::Error::new(io::ErrorKind::InvalidData, TlsError::InvalidCertificate(error));
        for (error, has_ca, expected) in [
            (certificate(CertificateError::Expired), false, "renew it"),
            (certificate(CertificateError::NotValidYet), false, "clock"),
            (certificate(CertificateError::NotValidForName), false, "host in spec.http.url"),
            (certificate(CertificateError::UnknownIssuer), false, "set spec.http.tls.caSecretRef"),
            (
                certificate(CertificateError::UnknownIssuer),
                true,
                "not signed by the CA in spec.http.tls.caSecretRef",
            ),
            (
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    TlsError::InvalidMessage(rustls::InvalidMessage::InvalidContentType),
                ),
                false,
                "does not speak TLS",
            ),
            (
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    TlsError::AlertReceived(AlertDescription::CertificateRequired),
                ),
                false,
                "requires a certificate of its clients",
            ),
            (io::Error::from(io::ErrorKind::UnexpectedEof), false, "scheme and port"),
            (io::Error::from(io::ErrorKind::ConnectionReset), false, "TLS: connection reset"),
        ] {
            let message = describe_tls_error(&error, has_ca);
            assert!(message.starts_with("TLS: ") && message.contains(expected), "{message}");
        }
    }
}
