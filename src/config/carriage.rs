//! The settings of what connections to nsqd are carried in. Reads the files that they name, so that a
//! start never gets past a certificate that cannot be used.

use std::sync::Arc;

use tokio_rustls::rustls::ClientConfig;

use crate::config::reader::Reader;
use crate::config::tls::sound;
use crate::nsqd::{Carriage, Secret};
use crate::transport::Compression;
use crate::transport::tls::{self, MinVersion, TlsFault};

/// nsqd's own default, and the highest that it takes unless it is told otherwise.
const DEFLATE_LEVEL: u32 = 6;

/// Reads how nsqd is to be spoken to.
pub(super) fn carriage(reader: &mut Reader<'_>) -> Carriage {
    let secret = reader.text("nsqd_auth_secret");
    Carriage {
        tls: client(reader),
        compression: compression(reader),
        auth_secret: (!secret.is_empty()).then_some(Secret(secret)),
    }
}

fn compression(reader: &mut Reader<'_>) -> Option<Compression> {
    let (snappy, deflate) = (reader.switch("nsqd_snappy"), reader.switch("nsqd_deflate"));
    match (snappy, deflate) {
        (false, false) => None,
        (true, false) => Some(Compression::Snappy),
        (false, true) => Some(Compression::Deflate(DEFLATE_LEVEL)),
        (true, true) => {
            let remedy = "cannot go with nsqd_snappy: nsqd takes one of them; leave one out";
            reader.fault("nsqd_deflate", remedy);
            None
        }
    }
}

fn client(reader: &mut Reader<'_>) -> Option<Arc<ClientConfig>> {
    let wanted = reader.switch("nsqd_tls");
    let roots = reader.file("nsqd_tls_root_ca_file");
    let (chain, key) = (reader.file("nsqd_tls_cert"), reader.file("nsqd_tls_key"));
    if !reader.sound() {
        return None;
    }
    if !wanted {
        let given = [
            ("nsqd_tls_root_ca_file", roots.is_some()),
            ("nsqd_tls_cert", chain.is_some()),
            ("nsqd_tls_key", key.is_some()),
        ];
        if let Some((name, _)) = given.into_iter().find(|(_, given)| *given) {
            reader.fault(
                name,
                "is of no use without nsqd_tls; set that, or leave it out",
            );
        }
        return None;
    }
    let Some(roots) = roots else {
        let remedy = "is needed by nsqd_tls; name the file with the roots of nsqd's certificates";
        reader.fault("nsqd_tls_root_ca_file", remedy);
        return None;
    };
    let roots = tls::roots(&roots);
    let wanted = "certificates of a CA in PEM";
    let roots = sound(reader, "nsqd_tls_root_ca_file", wanted, roots)?;
    let own = match (chain, key) {
        (None, None) => None,
        (Some(chain), Some(key)) => {
            let chain = tls::certificates(&chain);
            let chain = sound(reader, "nsqd_tls_cert", "a certificate in PEM", chain)?;
            let wanted = "the private key of nsqd_tls_cert in PEM";
            let key = sound(reader, "nsqd_tls_key", wanted, tls::private_key(&key))?;
            Some((chain, key))
        }
        (Some(_), None) => {
            reader.fault("nsqd_tls_key", "is missing; name the key of nsqd_tls_cert");
            return None;
        }
        (None, Some(_)) => {
            reader.fault("nsqd_tls_cert", "is missing; name that of nsqd_tls_key");
            return None;
        }
    };
    let made = tls::client_as(roots, MinVersion::default(), own);
    let culprit = match &made {
        Err(TlsFault::Mismatch) => "nsqd_tls_key",
        _ => "nsqd_tls_cert",
    };
    sound(reader, culprit, "a certificate and its key in PEM", made)
}
