//! The settings of TLS and compression. Reads the files that they name, so that a start never gets past
//! a certificate that cannot be used.

use std::sync::Arc;

use crate::config::reader::Reader;
use crate::ingest::{TlsRequired, Transports};
use crate::transport::tls::{self, ClientCertificates, MinVersion, TlsFault};

/// What a client must show, as it is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Policy {
    #[default]
    None,
    Require,
    RequireVerify,
}

/// Reads what connections may be carried in.
pub(super) fn transports(reader: &mut Reader<'_>) -> Transports {
    let policy = reader.parsed(
        "tls_client_auth_policy",
        "must be require, require-verify or empty",
        |text| match text {
            "" => Some(Policy::None),
            "require" => Some(Policy::Require),
            "require-verify" => Some(Policy::RequireVerify),
            _ => None,
        },
    );
    let required =
        reader.parsed(
            "tls_required",
            "must be true, false or tcp-https",
            |text| match text {
                "false" => Some(TlsRequired::Nobody),
                "tcp-https" => Some(TlsRequired::Tcp),
                "true" => Some(TlsRequired::Everybody),
                _ => None,
            },
        );
    // As in nsqd, asking for certificates makes TLS required.
    let tls_required = match (required, policy) {
        (TlsRequired::Nobody, Policy::Require | Policy::RequireVerify) => TlsRequired::Everybody,
        (required, _) => required,
    };
    let min = min_version(reader);
    let tls = server(reader, policy, min);
    if tls.is_none() && tls_required != TlsRequired::Nobody && reader.sound() {
        let culprit = if required == TlsRequired::Nobody {
            "tls_client_auth_policy"
        } else {
            "tls_required"
        };
        let remedy = "cannot be without a certificate; set tls_cert and tls_key, or leave it out";
        reader.fault(culprit, remedy);
    }
    Transports {
        tls,
        tls_required,
        snappy: reader.switch("snappy"),
        deflate: reader.switch("deflate"),
        max_deflate_level: reader.number("max_deflate_level", 1..=9),
    }
}

fn min_version(reader: &mut Reader<'_>) -> MinVersion {
    reader.parsed(
        "tls_min_version",
        "must be tls1.2 or tls1.3 (tls1.0 and tls1.1 are taken for tls1.2)",
        |text| match text {
            "tls1.0" | "tls1.1" | "tls1.2" => Some(MinVersion::Tls12),
            "tls1.3" => Some(MinVersion::Tls13),
            _ => None,
        },
    )
}

fn server(
    reader: &mut Reader<'_>,
    policy: Policy,
    min: MinVersion,
) -> Option<Arc<tokio_rustls::rustls::ServerConfig>> {
    let roots = reader.file("tls_root_ca_file").and_then(|pem| {
        let read = tls::roots(&pem);
        sound(
            reader,
            "tls_root_ca_file",
            "certificates of a CA in PEM",
            read,
        )
    });
    let (chain, key) = (reader.file("tls_cert"), reader.file("tls_key"));
    if !reader.sound() {
        return None;
    }
    let (chain, key) = match (chain, key) {
        (Some(chain), Some(key)) => (chain, key),
        (None, None) => return None,
        (Some(_), None) => {
            reader.fault(
                "tls_key",
                "is missing; name the file with the key of tls_cert",
            );
            return None;
        }
        (None, Some(_)) => {
            reader.fault(
                "tls_cert",
                "is missing; name the file with the certificate of tls_key",
            );
            return None;
        }
    };
    let chain = tls::certificates(&chain);
    let chain = sound(reader, "tls_cert", "a certificate in PEM", chain)?;
    let key = tls::private_key(&key);
    let key = sound(reader, "tls_key", "the private key of tls_cert in PEM", key)?;
    let clients = match (policy, roots) {
        (Policy::None, _) => ClientCertificates::None,
        (Policy::Require, _) => ClientCertificates::Any,
        (Policy::RequireVerify, Some(roots)) => ClientCertificates::SignedBy(Arc::new(roots)),
        (Policy::RequireVerify, None) => {
            let remedy = "is needed by tls_client_auth_policy = require-verify; name the file with the \
                          roots of the clients' certificates";
            reader.fault("tls_root_ca_file", remedy);
            return None;
        }
    };
    let made = tls::server(chain, key, clients, min);
    let culprit = match &made {
        Err(TlsFault::Mismatch) => "tls_key",
        _ => "tls_cert",
    };
    sound(
        reader,
        culprit,
        "a certificate and its key, both in PEM",
        made,
    )
}

/// The value, or a fault that says what the file should hold.
pub(super) fn sound<T>(
    reader: &mut Reader<'_>,
    name: &'static str,
    wanted: &str,
    made: Result<T, TlsFault>,
) -> Option<T> {
    made.map_err(|fault| reader.fault(name, format!("{fault}; name a file with {wanted}")))
        .ok()
}
