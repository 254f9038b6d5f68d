//! What connections to nsqd are carried in, and the way in, as the configuration says it.

use std::fmt;
use std::sync::Arc;

use tokio_rustls::rustls::ClientConfig;

use crate::transport::Compression;

/// What connections to nsqd are carried in, and the way in; by default, nothing but plain TCP.
#[derive(Debug, Clone, Default)]
pub struct Carriage {
    /// TLS, without which no nsqd is used then.
    pub tls: Option<Arc<ClientConfig>>,
    /// A compression, where nsqd has it too.
    pub compression: Option<Compression>,
    /// What is said to an nsqd that requires AUTH.
    pub auth_secret: Option<Secret>,
}

/// A secret that no log shows.
#[derive(Clone)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
