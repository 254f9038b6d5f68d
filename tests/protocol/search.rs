//! A plain breadth-first search over the states of a model. Knows nothing of what is modelled.
//!
//! A state is remembered by a fingerprint of 128 bits, its predecessor and the number of the step
//! that led to it; a trace is made again by walking from the start. Breadth first: the first trace
//! that is found is a shortest one.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// Something with states and steps.
pub(crate) trait Model {
    /// Everything that the future depends on, and what the checks need of the past.
    type State: Copy + Eq + Hash;
    /// The name of one step, with its operands.
    type Step: Copy + fmt::Display;

    /// Where every run begins.
    fn start(&self) -> Self::State;
    /// Every step that can be taken in `state`, with where it leads; always in the same order.
    fn steps(&self, state: &Self::State, out: &mut Vec<(Self::Step, Self::State)>);
    /// Which promise is broken in `state`, if any.
    fn broken(&self, state: &Self::State) -> Option<&'static str>;
    /// Whether, if nothing fails any more, everything still gets to its end.
    fn heals(&self, _state: &Self::State) -> bool {
        true
    }
    /// The state with equal parties exchanged, if that gives an equivalent one.
    fn mirrored(&self, _state: &Self::State) -> Option<Self::State> {
        None
    }
}

/// How far a search goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bound {
    /// Gives up, loudly, beyond so many states.
    pub(crate) states_max: usize,
    /// One state in so many is tried for healing.
    pub(crate) heal_one_in: u64,
}

/// What a search saw.
pub(crate) struct Outcome {
    /// Different states.
    pub(crate) states: usize,
    /// Steps from the start to the farthest of them.
    pub(crate) depth: usize,
    /// Whether every reachable state was seen.
    pub(crate) complete: bool,
    /// The broken promise, and the shortest way to it, a step a line.
    pub(crate) violation: Option<(&'static str, Vec<String>)>,
}

/// Multiplies and rotates in two lanes; a clash among 10^8 states has odds of about 10^-22.
struct Fingerprint {
    a: u64,
    b: u64,
}

impl Fingerprint {
    fn of(state: &impl Hash) -> u128 {
        let mut lanes = Self {
            a: 0x9E37_79B9_7F4A_7C15,
            b: 0xD1B5_4A32_D192_ED03,
        };
        state.hash(&mut lanes);
        (u128::from(lanes.finish()) << 64) | u128::from(mix(lanes.b ^ lanes.a.rotate_left(32)))
    }
}

fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 32)).wrapping_mul(0xE703_7ED1_A0B4_28DB);
    (word ^ (word >> 29)).wrapping_mul(0x8EBC_6AF0_9C88_C6E3) ^ (word >> 31)
}

impl Hasher for Fingerprint {
    fn finish(&self) -> u64 {
        mix(self.a)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let word = chunk
                .iter()
                .fold(0_u64, |word, byte| (word << 8) | u64::from(*byte));
            self.write_u64(word);
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    fn write_u16(&mut self, value: u16) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.a = (self.a ^ value)
            .wrapping_mul(0xA24B_AED4_963E_E407)
            .rotate_left(27);
        self.b = (self.b.wrapping_add(value) ^ (self.b >> 31)).wrapping_mul(0x9FB2_1C65_1E98_DF25);
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
}

/// Takes a fingerprint for its own hash.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 << 8) | u64::from(*byte);
        }
    }

    fn write_u128(&mut self, value: u128) {
        self.0 = value as u64;
    }
}

/// Where a state was reached from: the state's number, and the number of the step.
type Origin = (u32, u16);

/// Searches until a promise is broken, everything is seen, or the bound is met.
pub(crate) fn search<M: Model>(model: &M, bound: Bound) -> Outcome {
    let mut seen: HashSet<u128, BuildHasherDefault<Identity>> = HashSet::default();
    let mut origins: Vec<Origin> = vec![(0, 0)];
    let start = model.start();
    seen.insert(fingerprint(model, &start));
    let mut frontier = vec![(start, 0_u32)];
    let mut steps = Vec::new();
    let mut depth = 0;
    while !frontier.is_empty() {
        let mut next = Vec::new();
        for (state, number) in &frontier {
            steps.clear();
            model.steps(state, &mut steps);
            for (ordinal, (_, after)) in steps.iter().enumerate() {
                let print = fingerprint(model, after);
                if after == state || !seen.insert(print) {
                    continue;
                }
                let id = origins.len() as u32;
                origins.push((*number, ordinal as u16));
                let broken = model.broken(after).or_else(|| {
                    let sampled = ((print >> 64) as u64).is_multiple_of(bound.heal_one_in);
                    (sampled && !model.heals(after)).then_some("a message is never delivered")
                });
                if let Some(promise) = broken {
                    return Outcome {
                        states: origins.len(),
                        depth: depth + 1,
                        complete: false,
                        violation: Some((promise, trace(model, &origins, id))),
                    };
                }
                next.push((*after, id));
            }
            if origins.len() > bound.states_max {
                return Outcome {
                    states: origins.len(),
                    depth,
                    complete: false,
                    violation: None,
                };
            }
        }
        depth += usize::from(!next.is_empty());
        frontier = next;
    }
    Outcome {
        states: origins.len(),
        depth,
        complete: true,
        violation: None,
    }
}

fn fingerprint<M: Model>(model: &M, state: &M::State) -> u128 {
    let own = Fingerprint::of(state);
    match model.mirrored(state) {
        Some(mirrored) => own.min(Fingerprint::of(&mirrored)),
        None => own,
    }
}

fn trace<M: Model>(model: &M, origins: &[Origin], last: u32) -> Vec<String> {
    let mut ordinals = Vec::new();
    let mut at = last;
    while at != 0 {
        let (from, ordinal) = origins[at as usize];
        ordinals.push(ordinal);
        at = from;
    }
    let mut state = model.start();
    let mut lines = Vec::new();
    for ordinal in ordinals.into_iter().rev() {
        let mut steps = Vec::new();
        model.steps(&state, &mut steps);
        let (step, after) = steps[ordinal as usize];
        lines.push(step.to_string());
        state = after;
    }
    lines
}
