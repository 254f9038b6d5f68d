//! What can be left out of the protocol, one switch each, and the promises that then break.

/// One thing that the protocol does. `R1` to `R12` are the rules of the design; where a rule says
/// several things, each has its switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// R1: at or below `opened` a cancel leaves the bytes and writes the mark.
    BytesStayBelowOpened,
    /// R1: a mark stays until S passes it, also when the bytes are gone.
    MarkOutlivesBytes,
    /// R1: a rewritten pack keeps its marks.
    RewriteKeepsMarks,
    /// R2: an insert at or below H is `late`.
    Late,
    /// R2: two packs never have one score.
    Taken,
    /// R2: H is compared with the score's millisecond, not with the raw score.
    ScoreFloor,
    /// R3: an insert at or below `opened` counts in `below`.
    InsertCounts,
    /// R3: so does a move.
    MoveCounts,
    /// R3: so does a park.
    ParkCounts,
    /// R3: when `below` changed, the owner reads again from the H of the reply before.
    ReadsAgain,
    /// R4: S stays below the first unread pack.
    UnreadHoldsSettled,
    /// R4: S stays at or below the end of what was read, if H is beyond it.
    ReadEndHoldsSettled,
    /// R4: S stays at or below the H of R3 until the second read.
    SecondReadHoldsSettled,
    /// R4: an owner whose memory is empty reads from H only if it has read up to there.
    EmptyReadsOnFromCursor,
    /// R5: a lost connection or another server ends the session: memory and token go.
    ReconnectForgets,
    /// R5: so does a claim that was free when a later turn of the session came.
    LapseForgets,
    /// R6: script and reads are one transaction, marks last.
    OneTransaction,
    /// R7: cancel and move ask the index where the message is now.
    IndexFirst,
    /// R7: a move acts only if it set the mark itself.
    MoveSetsMark,
    /// R7: a move acts only on what is due after H.
    MoveAboveHorizon,
    /// R8: a park is refused without the claim's token.
    ParkFenced,
    /// R8: the parked copy says whether an earlier send may have arrived.
    ParkKeepsMaybe,
    /// R8: after a park's lost reply the message is not published.
    ParkRepeated,
    /// R8: a park stops at a mark.
    ParkStopsAtMark,
    /// R8: a requeued dead letter keeps it.
    RequeueKeepsMaybe,
    /// R9: `late` or `taken` after a lost reply means unknown, not refused.
    UnknownStaysUnknown,
    /// R10: a closed generation's mark is never deleted.
    ClosedForEver,
    /// R10: a look-up of a client id in an older generation closes it there.
    LookUpCloses,
    /// R10: a redo in the new generation only if no earlier attempt is unanswered.
    RedoOnlyAnswered,
    /// R10: a generation with tombstones is not empty.
    TombstonesCount,
    /// R11: a cancelled id leaves a tombstone.
    Tombstone,
    /// R11: ids are trimmed by when S passed them, not by due.
    IdsTrimmedBySettled,
    /// R11: nor before S has passed the place that the message was moved or parked from.
    EntryOutlivesOldPlace,
    /// R11: nor any place before that one.
    EntryAgeOnlyGrows,
    /// R11: a pack with a taken id is refused whole.
    PackRefusedWhole,
    /// R12: a turn that raised H, or began a session, waits for the replica before a publish.
    TurnWaits,
    /// R12: also a session's first turn, which may find an H that no replica has.
    FirstTurnWaits,
    /// R12: a cancel waits before its answer.
    CancelWaits,
    /// A cancel refuses what is due at or below H.
    CancelAboveHorizon,
    /// H never passes the time on Redis's clock, nor does what is published.
    OnlyRedisClock,
    /// A message counts as settled only when nsqd has said OK.
    SettleAfterOk,
    /// A turn without the claim changes nothing.
    TurnFenced,
    /// A mark names the nonce of the pack, not the score alone.
    MarkNamesNonce,
    /// What is read ahead is at or below `opened`.
    ReadsBelowOpened,
    /// Nothing is handed out beyond the marks that were read, also when H was there already.
    MarksCoverHandOut,
    /// A park is sent only when no turn of its session is unanswered.
    ParkSentAlone,
    /// A pack is removed as finished only when H has passed all of it: its score is never used again.
    FinishedBelowHorizon,
    /// A finished pack is known as finished until the turn that removes it is answered.
    FinishedRemembered,
    /// The turn that releases the claim sets `watch` to the end of the owner's sleep.
    SleepLeavesWatch,
    /// What is stored before `watch` wakes the owner that sleeps, and is the new `watch`.
    WakesBeforeWatch,
    /// A cancel says `gone` of what S has passed before it looks at the mark.
    GoneBeforeMark,
}

impl Rule {
    /// Every rule.
    pub(crate) const ALL: [Self; 51] = [
        Self::BytesStayBelowOpened,
        Self::MarkOutlivesBytes,
        Self::RewriteKeepsMarks,
        Self::Late,
        Self::Taken,
        Self::ScoreFloor,
        Self::InsertCounts,
        Self::MoveCounts,
        Self::ParkCounts,
        Self::ReadsAgain,
        Self::UnreadHoldsSettled,
        Self::ReadEndHoldsSettled,
        Self::SecondReadHoldsSettled,
        Self::EmptyReadsOnFromCursor,
        Self::ReconnectForgets,
        Self::LapseForgets,
        Self::OneTransaction,
        Self::IndexFirst,
        Self::MoveSetsMark,
        Self::MoveAboveHorizon,
        Self::ParkFenced,
        Self::ParkKeepsMaybe,
        Self::ParkRepeated,
        Self::ParkStopsAtMark,
        Self::RequeueKeepsMaybe,
        Self::UnknownStaysUnknown,
        Self::ClosedForEver,
        Self::LookUpCloses,
        Self::RedoOnlyAnswered,
        Self::TombstonesCount,
        Self::Tombstone,
        Self::IdsTrimmedBySettled,
        Self::EntryOutlivesOldPlace,
        Self::EntryAgeOnlyGrows,
        Self::PackRefusedWhole,
        Self::TurnWaits,
        Self::FirstTurnWaits,
        Self::CancelWaits,
        Self::CancelAboveHorizon,
        Self::OnlyRedisClock,
        Self::SettleAfterOk,
        Self::TurnFenced,
        Self::MarkNamesNonce,
        Self::ReadsBelowOpened,
        Self::MarksCoverHandOut,
        Self::ParkSentAlone,
        Self::FinishedBelowHorizon,
        Self::FinishedRemembered,
        Self::SleepLeavesWatch,
        Self::WakesBeforeWatch,
        Self::GoneBeforeMark,
    ];
}

/// The switches that are off.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Off(u64);

impl Off {
    /// The whole protocol.
    pub(crate) const NONE: Self = Self(0);

    /// All but `rule`.
    pub(crate) const fn without(rule: Rule) -> Self {
        Self(1 << rule as u64)
    }

    /// Whether `rule` is kept.
    pub(crate) fn keeps(self, rule: Rule) -> bool {
        self.0 & (1 << rule as u64) == 0
    }
}
