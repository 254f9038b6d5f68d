//! The phases of the process, which `/readyz` and `/pub` read. Knows nothing of what drives them.

/// Where the process stands between start and stop. Only moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Not yet able to take or hand out messages.
    Starting,
    /// Doors open, shards served.
    Serving,
    /// Doors closed to new work; what was read is answered, what is in flight is settled.
    Draining,
    /// All tasks have ended.
    Stopped,
}
