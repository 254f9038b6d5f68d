//! Where a setting's text comes from: the compiled-in file, a file, the environment, flags; the last
//! one wins. Knows which settings exist, not what they mean.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;

use ::config::{Environment, File, FileFormat, Map, Source, Value, ValueKind};

use crate::config::keys::{self, DEFAULT_TOML, ENV_PREFIX, Shape};
use crate::config::{BadConfig, Fault};

/// The variable that names the file when `--config` does not.
pub const CONFIG_VARIABLE: &str = "NSQDELAYD_CONFIG";

/// What the start gives beside the compiled-in file.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file named with `--config`.
    pub file: Option<PathBuf>,
    /// The environment; what does not begin with `NSQDELAYD_` is ignored.
    pub variables: HashMap<String, String>,
    /// Flags by the name of their key, with each value that was given.
    pub flags: BTreeMap<String, Vec<String>>,
}

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In the compiled-in file.
    Default,
    /// In this file.
    File(PathBuf),
    /// In this environment variable.
    Variable(String),
    /// After this flag.
    Flag(String),
}

impl Origin {
    /// Later layers have greater ones.
    fn rank(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::File(_) => 1,
            Self::Variable(_) => 2,
            Self::Flag(_) => 3,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// A setting as it was written.
#[derive(Debug, Clone)]
pub struct Entry {
    /// One text; of a list, each.
    pub texts: Vec<String>,
    /// Where.
    pub origin: Origin,
}

/// The winning text of every setting.
#[derive(Debug)]
pub struct Layers {
    entries: BTreeMap<&'static str, Entry>,
    /// Variables that begin as ours do and name no setting. Not an error: container platforms set
    /// such variables for a service of our name.
    pub unknown_variables: Vec<String>,
}

impl Layers {
    /// Reads all layers.
    pub fn load(sources: &Sources) -> Result<Self, BadConfig> {
        let keys = keys::all();
        let mut layers = Self {
            entries: BTreeMap::new(),
            unknown_variables: Vec::new(),
        };
        let mut faults = Vec::new();
        let default = File::from_str(DEFAULT_TOML, FileFormat::Toml);
        layers.put(collect(&default)?, |_| Origin::Default, &mut faults);
        let named = sources
            .variables
            .get(CONFIG_VARIABLE)
            .filter(|v| !v.is_empty());
        if let Some(path) = sources.file.clone().or_else(|| named.map(PathBuf::from)) {
            let text = std::fs::read_to_string(&path).map_err(|error| {
                BadConfig::one(Fault::file(
                    &path,
                    format!("cannot be read: {error}; name a readable file with --config"),
                ))
            })?;
            let parsed = File::from_str(&text, FileFormat::Toml)
                .collect()
                .map_err(|error| {
                    BadConfig::one(Fault::file(&path, format!("is not TOML: {error}")))
                })?;
            layers.put(parsed, |_| Origin::File(path.clone()), &mut faults);
        }
        layers.put_variables(&sources.variables)?;
        for key in &keys {
            if let Some(texts) = sources.flags.get(key.name) {
                let entry = Entry {
                    texts: texts.clone(),
                    origin: Origin::Flag(format!("--{}", key.flag())),
                };
                layers.entries.insert(key.name, entry);
            }
        }
        layers.give_way("nsqd_tcp_address", "lookupd_http_address");
        layers.go_with("nsqd_http_address", "nsqd_tcp_address");
        if faults.is_empty() {
            Ok(layers)
        } else {
            Err(BadConfig { faults })
        }
    }

    /// The winning text of one setting.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// The default of list `name` is for the case that list `other` is empty.
    fn give_way(&mut self, name: &str, other: &str) {
        let given = self.entries.get(other).is_some_and(|entry| {
            let mut texts = entry.texts.iter();
            texts.any(|text| !text.trim().is_empty())
        });
        if let Some(entry) = self.entries.get_mut(name)
            && given
            && entry.origin == Origin::Default
        {
            entry.texts.clear();
        }
    }

    /// List `name` says something of each of list `other`: not of those that a later layer names.
    fn go_with(&mut self, name: &str, other: &str) {
        let other = self.entries.get(other).map(|entry| entry.origin.rank());
        if let Some(entry) = self.entries.get_mut(name)
            && other > Some(entry.origin.rank())
        {
            entry.texts.clear();
        }
    }

    fn put(
        &mut self,
        values: Map<String, Value>,
        origin: impl Fn(&str) -> Origin,
        faults: &mut Vec<Fault>,
    ) {
        let known = keys::all();
        for (name, value) in values {
            let Some(key) = known.iter().find(|key| key.name == name) else {
                faults.push(Fault::unknown_key(&name, &origin(&name)));
                continue;
            };
            let entry = |texts| Entry {
                texts,
                origin: origin(&name),
            };
            match texts(value) {
                Some(texts) if key.shape() == Shape::List || texts.len() == 1 => {
                    self.entries.insert(key.name, entry(texts));
                }
                _ => faults.push(Fault::new(
                    key.name,
                    &entry(Vec::new()),
                    format!("must be a single value such as {}", key.default),
                )),
            }
        }
    }

    fn put_variables(&mut self, variables: &HashMap<String, String>) -> Result<(), BadConfig> {
        let ours: Map<String, String> = variables
            .iter()
            .filter(|(name, _)| name.starts_with(ENV_PREFIX) && *name != CONFIG_VARIABLE)
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let environment = Environment::with_prefix(ENV_PREFIX.trim_end_matches('_'))
            .ignore_empty(true)
            .source(Some(ours));
        let known = keys::all();
        for (name, value) in collect(&environment)? {
            let variable = format!("{ENV_PREFIX}{}", name.to_ascii_uppercase());
            match known.iter().find(|key| key.name == name) {
                Some(key) => {
                    let entry = Entry {
                        texts: texts(value).unwrap_or_default(),
                        origin: Origin::Variable(variable),
                    };
                    self.entries.insert(key.name, entry);
                }
                None => self.unknown_variables.push(variable),
            }
        }
        self.unknown_variables.sort();
        Ok(())
    }
}

/// What one source says. Our own sources do not fail; the answer of one that did is shown as it is.
fn collect(source: &dyn Source) -> Result<Map<String, Value>, BadConfig> {
    source.collect().map_err(|error| {
        BadConfig::one(Fault {
            subject: "configuration".to_owned(),
            problem: error.to_string(),
        })
    })
}

/// A TOML value as texts; `None` for a table, a list of lists, or nothing.
fn texts(value: Value) -> Option<Vec<String>> {
    match value.kind {
        ValueKind::Array(items) => {
            let single = |item: Value| texts(item).and_then(|mut texts| texts.pop());
            items.into_iter().map(single).collect()
        }
        ValueKind::Table(_) | ValueKind::Nil => None,
        ValueKind::Boolean(_)
        | ValueKind::I64(_)
        | ValueKind::I128(_)
        | ValueKind::U64(_)
        | ValueKind::U128(_)
        | ValueKind::Float(_)
        | ValueKind::String(_) => value.into_string().ok().map(|text| vec![text]),
    }
}
