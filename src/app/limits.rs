//! The system's limits on this program.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

/// Open files beside client connections: Redis, nsqd, listeners, files.
const OTHER_FILES: u64 = 256;

/// Raises the soft limit of open files to the hard one: each connection is one, and the usual soft
/// limit is 1024. Warns when even that is too few for `max_connections`; the doors
/// share what there is, and a door that finds none left waits.
pub(super) fn raise_open_files(max_connections: usize) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            warn!(%error, "the limit of open files cannot be raised");
            limit.current
        }
    };
    let connections = u64::try_from(max_connections).unwrap_or(u64::MAX);
    let wanted = connections.saturating_add(OTHER_FILES);
    if let Some(current) = current
        && current < wanted
    {
        warn!(
            current,
            wanted,
            "too few open files are allowed for max_connections; raise the hard limit (ulimit -Hn, \
             LimitNOFILE= in systemd) or lower max_connections"
        );
    }
}
