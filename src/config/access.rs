//! The settings of who may do what. Reads the tokens file, whose secrets never appear in a fault.

use std::sync::Arc;

use tokio_rustls::rustls::ClientConfig;

use crate::config::reader::Reader;
use crate::ingest::access::{Access, AuthServer, Authd, Hosts, Tokens};
use crate::transport::tls::{self, MinVersion};

/// Reads whom to ask. `None`: nobody, everybody may do everything.
pub(super) fn access(reader: &mut Reader<'_>) -> Option<Arc<Access>> {
    let servers = reader.texts("auth_http_address");
    let read: Result<Vec<AuthServer>, _> = servers.iter().map(|s| AuthServer::parse(s)).collect();
    let servers = read.unwrap_or_else(|_bad| {
        let remedy = "must be host:port, or a URL such as http://10.0.0.9:4181/auth; repeat the flag for \
                      several";
        reader.fault("auth_http_address", remedy);
        Vec::new()
    });
    let client = client(reader);
    if client.is_none() && servers.iter().any(AuthServer::is_https) {
        let remedy = "is https, which needs tls_root_ca_file: the root of its certificate";
        reader.fault("auth_http_address", remedy);
    }
    let tokens = match reader.file("tokens_file").map(String::from_utf8) {
        None => Tokens::default(),
        Some(Err(_not_utf8)) => {
            reader.fault("tokens_file", "is not TOML; write it in UTF-8");
            Tokens::default()
        }
        Some(Ok(toml)) => Tokens::parse(&toml).unwrap_or_else(|bad| {
            reader.fault("tokens_file", format!("{bad}; mend the file"));
            Tokens::default()
        }),
    };
    let asked = !servers.is_empty();
    let authd = asked.then(|| Authd::new(servers, client.as_ref()));
    let authd = authd.transpose().unwrap_or_else(|error| {
        reader.fault("auth_http_address", format!("cannot be asked: {error}"));
        None
    });
    Access::new(authd, tokens).map(Arc::new)
}

/// Reads whose certificates are good when we are the one that dials.
pub(super) fn client(reader: &mut Reader<'_>) -> Option<Arc<ClientConfig>> {
    reader
        .file("tls_root_ca_file")
        .and_then(|pem| trusting(&pem))
}

/// Trusts the certificates of a file; `None`: they are none.
pub(super) fn trusting(pem: &[u8]) -> Option<Arc<ClientConfig>> {
    let roots = tls::roots(pem).ok().filter(|roots| !roots.is_empty())?;
    tls::client(roots, MinVersion::default()).ok()
}

/// Reads the names for browsers; the machine's own is one.
pub(super) fn hosts(reader: &mut Reader<'_>) -> Hosts {
    let own = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    Hosts::new(reader.texts("allowed_hosts").into_iter().chain([own]))
}
