//! The settings: compiled-in file, file, environment and flags become one validated [`Config`], or a
//! list of faults that name the key and what to change. Fills the modules' own structs; starts
//! nothing.

mod access;
mod carriage;
pub mod keys;
pub mod layers;
mod reader;
mod rules;
mod tls;
pub mod units;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::ClientConfig;

use crate::config::keys::Shape;
use crate::config::layers::{Entry, Layers, Origin, Sources};
use crate::config::reader::Reader;
use crate::dispatch;
use crate::forward;
use crate::ingest;
use crate::store;
use crate::telemetry;

/// Everything that is set, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where producers connect.
    pub tcp_address: String,
    /// Where HTTP is served.
    pub http_address: String,
    /// Where HTTPS is served, if there is a certificate.
    pub https_address: Option<String>,
    /// Where to write the bound addresses.
    pub address_file: Option<PathBuf>,
    /// How long a stop may take.
    pub drain_timeout: Duration,
    /// What is logged, and how.
    pub log: telemetry::LogConfig,
    /// Of the store.
    pub store: store::Config,
    /// Of dispatch.
    pub dispatch: dispatch::Config,
    /// Of the connections to nsqd.
    pub forward: forward::Config,
    /// Whether what has no delay is handed to nsqd at once.
    pub passthrough: bool,
    /// Of the doors.
    pub ingest: ingest::Config,
    /// Of the inbox, if there is one.
    pub inbox: Option<ingest::inbox::Config>,
}

/// A checked configuration and what it was made from.
#[derive(Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// Their texts, for printing.
    pub layers: Layers,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The key and its value, or the file.
    pub subject: String,
    /// What is wrong, and what to change.
    pub problem: String,
}

impl Fault {
    fn new(name: &str, entry: &Entry, problem: impl Into<String>) -> Self {
        let value = entry.texts.join(",");
        let shown = if is_secret(name) && !value.is_empty() {
            "***".to_owned()
        } else if value.contains("://") {
            units::masked_url(&value)
        } else {
            value
        };
        let subject = match entry.origin {
            Origin::Flag(_) | Origin::Variable(_) => {
                format!("{name} = {shown:?} (from {})", entry.origin)
            }
            Origin::Default => format!("{name} = {shown:?} (the default)"),
            Origin::File(_) => format!("{name} = {shown:?} (in {})", entry.origin),
        };
        Self {
            subject,
            problem: problem.into(),
        }
    }

    fn file(path: &Path, problem: String) -> Self {
        Self {
            subject: path.display().to_string(),
            problem,
        }
    }

    fn unknown_key(name: &str, origin: &Origin) -> Self {
        let remedy = match keys::nearest(name) {
            Some(nearest) => format!("there is no such key; did you mean {nearest}?"),
            None => "there is no such key; check-config without a file lists them all".to_owned(),
        };
        Self {
            subject: format!("{name} (in {origin})"),
            problem: remedy,
        }
    }
}

/// All that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadConfig {
    /// At least one.
    pub faults: Vec<Fault>,
}

impl BadConfig {
    fn one(fault: Fault) -> Self {
        Self {
            faults: vec![fault],
        }
    }
}

impl fmt::Display for BadConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, fault) in self.faults.iter().enumerate() {
            if number > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}: {}", fault.subject, fault.problem)?;
        }
        Ok(())
    }
}

impl std::error::Error for BadConfig {}

/// Reads and checks everything.
pub fn load(sources: &Sources) -> Result<Loaded, BadConfig> {
    let layers = Layers::load(sources)?;
    let mut reader = Reader::new(&layers);
    let config = rules::config(&mut reader);
    let config = reader.finish(config)?;
    Ok(Loaded { config, layers })
}

/// A running server, for the commands that talk to it.
#[derive(Debug, Clone)]
pub struct Remote {
    /// Its HTTP address, or its HTTPS one.
    pub address: String,
    /// The token to show there.
    pub token: Option<String>,
    /// For HTTPS.
    pub tls: Option<Arc<ClientConfig>>,
}

/// Reads only where a server is and how to talk to it: over HTTPS if `https`.
pub fn remote(sources: &Sources, https: bool) -> Result<Remote, BadConfig> {
    let layers = Layers::load(sources)?;
    let mut reader = Reader::new(&layers);
    let remote = Remote {
        address: reader.address(if https {
            "https_address"
        } else {
            "http_address"
        }),
        token: Some(reader.text("token")).filter(|token| !token.is_empty()),
        tls: https.then(|| remote_root(&mut reader)).flatten(),
    };
    reader.finish(remote)
}

fn remote_root(reader: &mut Reader<'_>) -> Option<Arc<ClientConfig>> {
    const KEY: &str = "tls_root_ca_file";
    if reader.text(KEY).is_empty() {
        let remedy = "is needed by https_address; name the root of the server's certificate";
        reader.fault(KEY, remedy);
        return None;
    }
    let pem = reader.file(KEY)?;
    let trusting = access::trusting(&pem);
    if trusting.is_none() {
        reader.fault(
            KEY,
            "has no certificate; name the root of the server's certificate, in PEM",
        );
    }
    trusting
}

impl Loaded {
    /// What differs from the defaults, on one line, for the log.
    pub fn changed(&self) -> String {
        let changed = |key: &keys::Key| {
            let entry = self.layers.get(key.name)?;
            (entry.origin != Origin::Default).then(|| effective_line(key, entry))
        };
        let lines: Vec<String> = keys::all().iter().filter_map(changed).collect();
        lines.concat().trim_end().replace('\n', "; ")
    }

    /// The effective settings as TOML, with passwords masked; what is not the default says where it
    /// comes from.
    pub fn effective(&self) -> String {
        let mut text = String::new();
        for key in keys::all() {
            let Some(entry) = self.layers.get(key.name) else {
                continue;
            };
            text.push_str(&effective_line(&key, entry));
        }
        text
    }
}

/// Settings whose value no log and no fault shows.
fn is_secret(name: &str) -> bool {
    matches!(name, "token" | "nsqd_auth_secret")
}

fn effective_line(key: &keys::Key, entry: &Entry) -> String {
    let quoted = |text: &String| {
        // TOML's basic strings and Rust's debug strings agree on what an address or a name can hold.
        let bare = text.parse::<u64>().is_ok() && !key.default.starts_with('"');
        match key.shape() {
            Shape::Switch => text.clone(),
            Shape::One if is_secret(key.name) && !text.is_empty() => "\"***\"".to_owned(),
            Shape::One if bare => text.clone(),
            Shape::One | Shape::List => format!("{:?}", units::masked_url(text)),
        }
    };
    let texts: Vec<String> = entry.texts.iter().map(quoted).collect();
    let value = match key.shape() {
        Shape::List => format!("[{}]", texts.join(", ")),
        Shape::One | Shape::Switch => texts.concat(),
    };
    match entry.origin {
        Origin::Default => format!("{} = {value}\n", key.name),
        Origin::File(_) | Origin::Variable(_) | Origin::Flag(_) => {
            format!("{} = {value} # from {}\n", key.name, entry.origin)
        }
    }
}

#[cfg(test)]
mod tests;
