//! The protocol of one shard as a model, searched exhaustively.
//!
//! A sentence in a design document is easily believed; the first text of this one lost messages. So
//! the protocol is written down a second time, small enough to be searched whole: two instances, up to
//! three messages, a clock of a few milliseconds, and every order in which things can happen. It shares
//! no code with the crate. Where the scripts change, `redis.rs` is to change with them: it has one
//! function per script, in the script's order, and names its steps as the scripts are named; `owner.rs`
//! is what `dispatch` believes between two turns.
//!
//! What can happen: insert, with lost replies, repeats and late arrivals; turn (claim, settle, hand out,
//! reads; released claims; delayed, lost and late turns); publish, answered, refused or not answered,
//! and then arriving at any later time or never; cancel; move; park and its lost reply; dead letters and
//! requeue; crash; the end of a claim at any moment (so a frozen owner, too); steps of Redis's clock in
//! both directions; failover to a replica that lacks the last writes, with and without WAIT. Instances
//! never look at their own claim's remaining life: no promise rests on it.
//!
//! What must hold, after every step:
//! - an acknowledged message is delivered, cancelled, dead, or lies where its next owner will find it:
//!   bytes there, not marked, due after S;
//! - nothing is delivered before its due time by the latest that Redis's clock has said;
//! - after a successful cancel there is no delivery, and no successful cancel after a delivery; the
//!   same for a move and the old place;
//! - an insert that was refused is not delivered; one of unknown outcome may be;
//! - where no fault is in the plan, nothing is delivered twice;
//! - nobody sleeps through a due time;
//! - from one state in eight, the rest is played without faults: everything must arrive.
//!
//! `rules.rs` has a switch for every rule of the protocol. Each search runs with all rules on, and must
//! end with every promise kept; then without each rule that it is about, and must find the shortest way
//! to a broken promise, which it prints. A last test sees to it that every rule is shown to be needed.
//!
//! Some of the rules are the model's own finds, beside those that the design numbers: nothing is
//! handed out beyond the marks that were read, even if H was there before the session began; S stays below the end of what was
//! read, also when Redis's clock stepped back behind H; a pack is removed only when H has passed all of
//! it; a finished pack is known as finished until the turn that removes it is answered; the first turn
//! of a session waits for the replicas, whether it raised H or not; no park is sent behind an unanswered
//! turn; an index entry lives until S has passed every place that its message ever had; a cancel says
//! `gone` of what S has passed before it looks at the mark.
//!
//! A model has bounds: what needs three owners, four messages or a second fault of a kind is not seen;
//! `MODEL_BOUND=1 cargo test --release --test protocol` goes further.

#![expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::panic,
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a model of small numbers, whose every failure is a failed test"
)]

mod client;
mod dispatch;
mod fault;
mod generations;
mod owner;
mod plan;
mod redis;
mod rules;
mod scenarios;
mod search;
mod searches;
mod shard;
mod step;
