//! What one search is about: which messages there are, who does what with them, which faults come
//! and how often. Small numbers: a search is exhaustive within its plan.

/// Most packs of a plan. A pack's number is its nonce.
pub(crate) const PACKS: usize = 5;
/// Most records of a pack.
pub(crate) const RECORDS: usize = 2;
/// Most messages.
pub(crate) const MESSAGES: usize = 3;
/// Packs that may begin in one ms, for the 2048 of the real scores.
pub(crate) const PER_MS: u8 = 4;
/// The end of time: later than any due, clock or horizon of any plan.
pub(crate) const END: u8 = 14;

/// How a pack comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// A producer's insert.
    Insert,
    /// A move of a message that lies elsewhere.
    Move,
    /// An owner's park of a message that it cannot deliver.
    Park,
    /// A dead letter that is given back.
    Requeue,
}

/// One pack that may be stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PackPlan {
    /// Who stores it.
    pub(crate) role: Role,
    /// Its records: which message, and how long after the pack's first it is due.
    pub(crate) records: &'static [(u8, u8)],
    /// When it may begin; each is tried.
    pub(crate) dues: &'static [u8],
    /// The first `k` that its writer tries.
    pub(crate) k: u8,
}

impl PackPlan {
    /// The same, whose writer begins with another `k`.
    pub(crate) const fn numbered(self, k: u8) -> Self {
        Self { k, ..self }
    }
}

/// A producer's pack.
pub(crate) const fn insert(records: &'static [(u8, u8)], dues: &'static [u8]) -> PackPlan {
    PackPlan {
        role: Role::Insert,
        records,
        dues,
        k: 0,
    }
}

/// A pack for a moved message.
pub(crate) const fn moves(records: &'static [(u8, u8)], dues: &'static [u8]) -> PackPlan {
    PackPlan {
        role: Role::Move,
        records,
        dues,
        k: 1,
    }
}

/// A pack for a parked message.
pub(crate) const fn parks(records: &'static [(u8, u8)], dues: &'static [u8]) -> PackPlan {
    PackPlan {
        role: Role::Park,
        records,
        dues,
        k: 1,
    }
}

/// A pack for a dead letter that is given back.
pub(crate) const fn requeues(records: &'static [(u8, u8)], dues: &'static [u8]) -> PackPlan {
    PackPlan {
        role: Role::Requeue,
        records,
        dues,
        k: 1,
    }
}

/// Something that goes wrong, or happens only so many times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// An instance is killed.
    Crash,
    /// A claim ends: a pause, a partition, a jump of Redis's clock.
    Expire,
    /// The reply of a turn or a park never comes.
    ReplyLost,
    /// A turn is sent, its connection breaks, and it arrives later.
    TurnLate,
    /// nsqd does not answer: what was sent may arrive at any time, or never.
    PublishUnknown,
    /// nsqd refuses a message.
    PublishRefused,
    /// A message is parked.
    Park,
    /// The reply of an insert never comes.
    InsertReplyLost,
    /// An insert is sent, nobody answers, and it arrives later.
    InsertLate,
    /// Redis's clock steps forward by two.
    Forward,
    /// Redis's clock steps back by two.
    Back,
    /// A replica takes over.
    Failover,
}

/// How many kinds of faults there are.
pub(crate) const FAULTS: usize = 12;

/// What a write waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replicas {
    /// There are none.
    None,
    /// They follow when they can; a failover may lose what was acknowledged.
    Follow,
    /// `replicas:N`: WAIT before what must not be lost.
    Awaited,
}

/// One search.
#[derive(Debug, Clone, Copy)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each switches one kind of step on"
)]
pub(crate) struct Plan {
    /// For the report.
    pub(crate) name: &'static str,
    /// The packs that may be stored.
    pub(crate) packs: &'static [PackPlan],
    /// Messages that may be cancelled, one bit each.
    pub(crate) cancels: u8,
    /// Whether the messages have ids of their clients.
    pub(crate) client_ids: bool,
    /// Instances that may own the shard.
    pub(crate) instances: u8,
    /// When the clock stops by itself.
    pub(crate) clock_end: u8,
    /// How far ahead of the due time packs are read.
    pub(crate) ahead: u8,
    /// Packs that one turn reads.
    pub(crate) limit: u8,
    /// Whether an owner whose memory is empty reads from H again, rather than on from the cursor.
    pub(crate) reads_from_handed: bool,
    /// Whether owners may take turns that hand out nothing, as when no nsqd is reachable.
    pub(crate) holds: bool,
    /// Whether owners that have nothing to do release the claim.
    pub(crate) releases: bool,
    /// Whether an owner that released the claim sleeps until its time or a wake, and no sweep comes.
    pub(crate) sleeps: bool,
    /// Whether things may happen between the sending of a turn and its effect.
    pub(crate) turns_take_time: bool,
    /// How long a mark stays after S has passed it.
    pub(crate) mark_lag: u8,
    /// Whether a pack of several is rewritten when one of its records is cancelled.
    pub(crate) rewrites: bool,
    /// Whether entries of ids age.
    pub(crate) ids_age: bool,
    /// Whether there is a replica.
    pub(crate) replicas: Replicas,
    /// Whether a message that arrives twice breaks a promise: only without faults.
    pub(crate) once: bool,
    /// How often each fault comes.
    pub(crate) faults: &'static [(Fault, u8)],
}

impl Plan {
    /// Later, and the last due times would not be passed.
    pub(crate) const CLOCK_END_MAX: u8 = END - 4;

    /// Nothing goes wrong, one owner, no clients.
    pub(crate) const CALM: Self = Self {
        name: "",
        packs: &[],
        cancels: 0,
        client_ids: false,
        instances: 1,
        clock_end: 4,
        ahead: 1,
        limit: 2,
        reads_from_handed: false,
        holds: false,
        releases: false,
        sleeps: false,
        turns_take_time: false,
        mark_lag: 0,
        rewrites: false,
        ids_age: false,
        replicas: Replicas::None,
        once: false,
        faults: &[],
    };
}
