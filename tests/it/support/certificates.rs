//! A CA of the test's own, and what it has signed, as files and as settings of a client.

use std::path::PathBuf;
use std::sync::Arc;

use nsqdelayd::transport::tls::{
    ClientCertificates, MinVersion, certificates, private_key, roots, server,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use tempfile::TempDir;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::{ClientConfig, ServerConfig, SupportedProtocolVersion, version};

/// Files in a directory that goes away with this.
#[derive(Debug)]
pub(crate) struct Certificates {
    dir: TempDir,
}

/// Whose certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// Signed by the CA, for 127.0.0.1 and localhost.
    Server,
    /// Signed by the CA, with the common name `producer`.
    Client,
    /// Signed by nobody that anybody knows.
    Stranger,
}

impl Whose {
    fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
            Self::Stranger => "stranger",
        }
    }
}

fn params(name: &str, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages.push(usage);
    params
}

impl Certificates {
    pub(crate) fn make() -> Self {
        let made = Self {
            dir: TempDir::new().unwrap(),
        };
        let issuer = |name: &str| {
            let mut ca = CertificateParams::new(Vec::<String>::new()).unwrap();
            ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            ca.distinguished_name.push(DnType::CommonName, name);
            CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap()
        };
        let (ca, unknown) = (issuer("test CA"), issuer("unknown CA"));
        std::fs::write(made.ca(), ca.pem()).unwrap();
        for (whose, name, usage, ca) in [
            (
                Whose::Server,
                "server",
                ExtendedKeyUsagePurpose::ServerAuth,
                &ca,
            ),
            (
                Whose::Client,
                "producer",
                ExtendedKeyUsagePurpose::ClientAuth,
                &ca,
            ),
            (
                Whose::Stranger,
                "stranger",
                ExtendedKeyUsagePurpose::ClientAuth,
                &unknown,
            ),
        ] {
            let key = KeyPair::generate().unwrap();
            let certificate = params(name, usage).signed_by(&key, ca).unwrap();
            std::fs::write(made.certificate(whose), certificate.pem()).unwrap();
            std::fs::write(made.key(whose), key.serialize_pem()).unwrap();
        }
        made
    }

    /// The file of the CA's certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A certificate's file.
    pub(crate) fn certificate(&self, whose: Whose) -> PathBuf {
        self.dir.path().join(format!("{}.pem", whose.name()))
    }

    /// The file of its key.
    pub(crate) fn key(&self, whose: Whose) -> PathBuf {
        self.dir.path().join(format!("{}-key.pem", whose.name()))
    }

    /// Flags of nsqd and of ours.
    pub(crate) fn flags(&self) -> Vec<String> {
        vec![
            format!("--tls-cert={}", self.certificate(Whose::Server).display()),
            format!("--tls-key={}", self.key(Whose::Server).display()),
            format!("--tls-root-ca-file={}", self.ca().display()),
            "--https-address=127.0.0.1:0".to_owned(),
        ]
    }

    /// Settings of a door, as the flags would make them.
    pub(crate) fn door(&self, policy: &str) -> Arc<ServerConfig> {
        let read = |path: PathBuf| std::fs::read(path).unwrap();
        let clients = match policy {
            "" => ClientCertificates::None,
            "require" => ClientCertificates::Any,
            _ => ClientCertificates::SignedBy(Arc::new(roots(&read(self.ca())).unwrap())),
        };
        server(
            certificates(&read(self.certificate(Whose::Server))).unwrap(),
            private_key(&read(self.key(Whose::Server))).unwrap(),
            clients,
            MinVersion::Tls12,
        )
        .unwrap()
    }

    /// Settings of a client that trusts the CA and shows a certificate, or none.
    pub(crate) fn client(&self, shows: Option<Whose>) -> Arc<ClientConfig> {
        self.client_of(shows, &[&version::TLS12, &version::TLS13])
    }

    /// The same with these versions of TLS.
    pub(crate) fn client_of(
        &self,
        shows: Option<Whose>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let read = |path: PathBuf| std::fs::read(path).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots(&read(self.ca())).unwrap());
        Arc::new(match shows {
            None => builder.with_no_client_auth(),
            Some(whose) => builder
                .with_client_auth_cert(
                    certificates(&read(self.certificate(whose))).unwrap(),
                    private_key(&read(self.key(whose))).unwrap(),
                )
                .unwrap(),
        })
    }
}
