//! TLS settings from the bytes of PEM files, for doors and for those who dial. Files are the caller's.

use std::fmt;
use std::sync::Arc;

use tokio_rustls::rustls::client::danger::HandshakeSignatureValid;
use tokio_rustls::rustls::crypto::{
    CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::{
    self, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme, SupportedProtocolVersion,
};

use super::certificate::common_name;

/// The oldest version of TLS that is spoken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MinVersion {
    /// 1.2 and 1.3.
    #[default]
    Tls12,
    /// Only 1.3.
    Tls13,
}

/// What clients must show.
#[derive(Debug, Clone)]
pub enum ClientCertificates {
    /// Nothing.
    None,
    /// Any certificate, whoever signed it.
    Any,
    /// One that these have signed.
    SignedBy(Arc<RootCertStore>),
}

/// What is wrong with a file.
#[derive(Debug)]
pub enum TlsFault {
    /// There is no certificate in it.
    NoCertificate,
    /// There is no private key in it.
    NoKey,
    /// It is no PEM, or what it holds cannot be used.
    Unusable(String),
    /// Key and certificate do not belong together.
    Mismatch,
}

impl fmt::Display for TlsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCertificate => f.write_str("holds no certificate in PEM"),
            Self::NoKey => f.write_str("holds no private key in PEM"),
            Self::Unusable(why) => write!(f, "cannot be used: {why}"),
            Self::Mismatch => f.write_str("does not belong to the certificate"),
        }
    }
}

impl std::error::Error for TlsFault {}

static TLS13_ONLY: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

impl MinVersion {
    fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        match self {
            Self::Tls12 => rustls::ALL_VERSIONS,
            Self::Tls13 => TLS13_ONLY,
        }
    }
}

/// Certificates, the server's or client's own first.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsFault> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = read.map_err(|fault| TlsFault::Unusable(fault.to_string()))?;
    if certificates.is_empty() {
        return Err(TlsFault::NoCertificate);
    }
    Ok(certificates)
}

/// A private key: PKCS #8, PKCS #1 or SEC 1.
pub fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsFault> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|fault| match fault {
        rustls::pki_types::pem::Error::NoItemsFound => TlsFault::NoKey,
        other => TlsFault::Unusable(other.to_string()),
    })
}

/// Those whose signature is trusted.
pub fn roots(pem: &[u8]) -> Result<RootCertStore, TlsFault> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots
            .add(certificate)
            .map_err(|fault| TlsFault::Unusable(fault.to_string()))?;
    }
    Ok(roots)
}

/// Settings of a door.
pub fn server(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    clients: ClientCertificates,
    min: MinVersion,
) -> Result<Arc<ServerConfig>, TlsFault> {
    let provider = Arc::new(ring::default_provider());
    let unusable = |fault: &dyn fmt::Display| TlsFault::Unusable(fault.to_string());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(min.versions())
        .map_err(|fault| unusable(&fault))?;
    let builder = match clients {
        ClientCertificates::None => builder.with_no_client_auth(),
        ClientCertificates::Any => {
            builder.with_client_cert_verifier(Arc::new(AnyCertificate(provider)))
        }
        ClientCertificates::SignedBy(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                .build()
                .map_err(|fault| unusable(&fault))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let config = builder.with_single_cert(chain, key);
    config.map(Arc::new).map_err(|fault| match fault {
        rustls::Error::InconsistentKeys(_) => TlsFault::Mismatch,
        other => unusable(&other),
    })
}

/// Settings for dialling: `roots` are those who may sign the server's certificate.
pub fn client(roots: RootCertStore, min: MinVersion) -> Result<Arc<ClientConfig>, TlsFault> {
    client_as(roots, min, None)
}

/// The same, showing a certificate of our own to a server that asks for one.
pub fn client_as(
    roots: RootCertStore,
    min: MinVersion,
    own: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<Arc<ClientConfig>, TlsFault> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(min.versions())
        .map_err(|fault| TlsFault::Unusable(fault.to_string()))?;
    let config = builder.with_root_certificates(roots);
    let Some((chain, key)) = own else {
        return Ok(Arc::new(config.with_no_client_auth()));
    };
    let config = config.with_client_auth_cert(chain, key);
    config.map(Arc::new).map_err(|fault| match fault {
        rustls::Error::InconsistentKeys(_) => TlsFault::Mismatch,
        other => TlsFault::Unusable(other.to_string()),
    })
}

/// What is known of the other side of a connection in TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// Of the subject of its certificate; empty if it showed none.
    pub common_name: String,
    /// As nsqd names it: `TLS1.2`.
    pub version: &'static str,
    /// As nsqd names it, where it has a name.
    pub cipher_suite: String,
}

impl Peer {
    /// Of a connection whose handshake is complete.
    pub fn of(connection: &rustls::CommonState) -> Self {
        let certificate = connection.peer_certificates().and_then(<[_]>::first);
        let suite = connection.negotiated_cipher_suite();
        Self {
            common_name: certificate.and_then(|c| common_name(c)).unwrap_or_default(),
            version: match connection.protocol_version() {
                Some(rustls::ProtocolVersion::TLSv1_2) => "TLS1.2",
                Some(rustls::ProtocolVersion::TLSv1_3) => "TLS1.3",
                _ => "",
            },
            cipher_suite: suite.map(cipher_suite).unwrap_or_default(),
        }
    }
}

/// nsqd knows a few names, all of TLS 1.2, and gives the number of the others.
fn cipher_suite(suite: rustls::SupportedCipherSuite) -> String {
    use rustls::CipherSuite as Suite;
    match suite.suite() {
        known @ (Suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        | Suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256) => format!("{known:?}"),
        other => format!("Unknown {}", u16::from(other)),
    }
}

/// Takes every certificate, but only from who has its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyCertificate {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.0.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (String, String) {
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (own.cert.pem(), own.signing_key.serialize_pem())
    }

    fn made(chain: &str, key: &str) -> Result<Arc<ServerConfig>, TlsFault> {
        server(
            certificates(chain.as_bytes())?,
            private_key(key.as_bytes())?,
            ClientCertificates::None,
            MinVersion::Tls12,
        )
    }

    #[test]
    fn a_key_is_held_against_its_certificate() {
        let ((chain, key), (_, other)) = (pair(), pair());
        made(&chain, &key).unwrap();
        assert!(matches!(made(&chain, &other), Err(TlsFault::Mismatch)));
    }

    #[test]
    fn files_that_are_no_pem_are_told_apart() {
        let (chain, key) = pair();
        assert!(matches!(made("", &key), Err(TlsFault::NoCertificate)));
        assert!(matches!(made(&key, &key), Err(TlsFault::NoCertificate)));
        assert!(matches!(made(&chain, &chain), Err(TlsFault::NoKey)));
        let cut = chain.replace("-----END", "");
        assert!(matches!(made(&cut, &key), Err(TlsFault::Unusable(_))));
    }
}
