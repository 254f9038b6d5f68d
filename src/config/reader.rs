//! Turns a setting's text into a typed value, and collects every fault instead of stopping at the
//! first. Knows types and ranges, not what a setting is for.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::layers::{Entry, Layers, Origin};
use crate::config::units::{self, Written};
use crate::config::{BadConfig, Fault};

/// Reads settings one by one. A setting that is wrong yields a harmless value and a fault.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    layers: &'a Layers,
    faults: Vec<Fault>,
    asked: BTreeSet<&'static str>,
}

impl<'a> Reader<'a> {
    /// A reader of `layers`.
    pub(super) fn new(layers: &'a Layers) -> Self {
        Self {
            layers,
            faults: Vec::new(),
            asked: BTreeSet::new(),
        }
    }

    /// The value, if nothing was wrong with any.
    pub(super) fn finish<T>(self, value: T) -> Result<T, BadConfig> {
        if self.faults.is_empty() {
            Ok(value)
        } else {
            Err(BadConfig {
                faults: self.faults,
            })
        }
    }

    /// The settings that were asked for.
    #[cfg(test)]
    pub(super) fn asked(&self) -> &BTreeSet<&'static str> {
        &self.asked
    }

    /// Whether nothing was wrong so far: cross-field rules on harmless values would only confuse.
    pub(super) fn sound(&self) -> bool {
        self.faults.is_empty()
    }

    /// Adds a fault of `name`; `problem` says what is wrong and what to change.
    pub(super) fn fault(&mut self, name: &'static str, problem: impl Into<String>) {
        let fault = match self.layers.get(name) {
            Some(entry) => Fault::new(name, entry, problem),
            None => Fault {
                subject: name.to_owned(),
                problem: problem.into(),
            },
        };
        self.faults.push(fault);
    }

    /// Whether nobody has set it.
    pub(super) fn is_default(&self, name: &str) -> bool {
        let entry = self.layers.get(name);
        entry.is_none_or(|entry| entry.origin == Origin::Default)
    }

    /// Any text.
    pub(super) fn text(&mut self, name: &'static str) -> String {
        self.parsed(name, "must be a text", |text| Some(text.to_owned()))
    }

    /// A text that `parse` takes; otherwise `remedy` is what is said.
    pub(super) fn parsed<T: Default>(
        &mut self,
        name: &'static str,
        remedy: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> T {
        let parsed = match self.entry(name).map(|entry| entry.texts.as_slice()) {
            Some([text]) => parse(text),
            _ => None,
        };
        parsed.unwrap_or_else(|| {
            self.fault(name, remedy);
            T::default()
        })
    }

    /// `true` or `false`.
    pub(super) fn switch(&mut self, name: &'static str) -> bool {
        self.parsed(name, "must be true or false", |text| text.parse().ok())
    }

    /// A duration within `range`.
    pub(super) fn duration(
        &mut self,
        name: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        let remedy = format!(
            "must be a duration from {} to {}, written as 1h, 250ms or a whole number of ms",
            Written(*range.start()),
            Written(*range.end())
        );
        self.parsed(name, &remedy, |text| {
            units::duration(text).filter(|d| range.contains(d))
        })
    }

    /// A whole number within `range`.
    pub(super) fn number<N>(&mut self, name: &'static str, range: RangeInclusive<N>) -> N
    where
        N: TryFrom<u64> + PartialOrd + Display + Default,
    {
        let remedy = format!(
            "must be a whole number from {} to {}",
            range.start(),
            range.end()
        );
        self.parsed(name, &remedy, |text| {
            let number: u64 = text.trim().parse().ok()?;
            N::try_from(number).ok().filter(|n| range.contains(n))
        })
    }

    /// `host:port`.
    pub(super) fn address(&mut self, name: &'static str) -> String {
        self.parsed(
            name,
            "must be host:port, such as 127.0.0.1:4140",
            units::host_port,
        )
    }

    /// `host:port`, or nothing.
    pub(super) fn optional_address(&mut self, name: &'static str) -> Option<String> {
        let remedy = "must be host:port, such as 127.0.0.1:4142, or empty";
        self.parsed(name, remedy, |text| match text {
            "" => Some(None),
            text => units::host_port(text).map(Some),
        })
    }

    /// What is in a file, if one is named.
    pub(super) fn file(&mut self, name: &'static str) -> Option<Vec<u8>> {
        let path = self.text(name);
        if path.is_empty() {
            return None;
        }
        let read = std::fs::read(path);
        read.map_err(|error| {
            let problem = format!("cannot be read: {error}; name a file that can be read");
            self.fault(name, problem);
        })
        .ok()
    }

    /// Any number of texts; one text may hold several with commas between.
    pub(super) fn texts(&mut self, name: &'static str) -> Vec<String> {
        let entry = self.entry(name);
        let texts = entry.into_iter().flat_map(|entry| &entry.texts);
        let parts = texts.flat_map(|text| text.split(','));
        let parts = parts.map(|part| part.trim().to_owned());
        parts.filter(|part| !part.is_empty()).collect()
    }

    /// None, one or several `host:port`; a single text may hold several with commas between.
    pub(super) fn addresses(&mut self, name: &'static str) -> Vec<String> {
        let parts: Vec<String> = self
            .entry(name)
            .map(|entry| entry.texts.iter().flat_map(|text| text.split(',')))
            .into_iter()
            .flatten()
            .map(|part| part.trim().to_owned())
            .filter(|part| !part.is_empty())
            .collect();
        let read: Option<Vec<String>> = parts.iter().map(|part| units::host_port(part)).collect();
        if let Some(mut addresses) = read {
            let mut seen = BTreeSet::new();
            addresses.retain(|address| seen.insert(address.clone()));
            return addresses;
        }
        self.fault(
            name,
            "must be one or more host:port, such as 127.0.0.1:4150; repeat the flag for several",
        );
        Vec::new()
    }

    fn entry(&mut self, name: &'static str) -> Option<&'a Entry> {
        self.asked.insert(name);
        self.layers.get(name)
    }
}
