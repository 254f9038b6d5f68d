//! The settings as flags: one flag per key of `config/default.toml`, with its comment as help.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, value_parser};

use crate::config::keys::{self, Key, Shape};
use crate::config::layers::{CONFIG_VARIABLE, Sources};

const CONFIG: &str = "config";

/// What the command line says about settings.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    file: Option<PathBuf>,
    flags: BTreeMap<String, Vec<String>>,
}

impl Settings {
    /// The layers to read: the file, this program's environment, the flags.
    pub(super) fn sources(&self) -> Sources {
        Sources {
            file: self.file.clone(),
            variables: environment(),
            flags: self.flags.clone(),
        }
    }

    /// The values given to one key's flag.
    pub(super) fn given(&self, name: &str) -> Option<&[String]> {
        self.flags.get(name).map(Vec::as_slice)
    }

    /// Sets a key as if its flag had been given.
    pub(super) fn set(&mut self, name: &str, value: String) {
        self.flags.insert(name.to_owned(), vec![value]);
    }
}

/// The variables that are text; others cannot be ours.
fn environment() -> std::collections::HashMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

impl FromArgMatches for Settings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut settings = Self::default();
        settings.update_from_arg_matches(matches)?;
        Ok(settings)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.file = matches.get_one::<PathBuf>(CONFIG).cloned();
        for key in keys::all() {
            if let Some(values) = matches.get_many::<String>(key.name) {
                self.flags
                    .insert(key.name.to_owned(), values.cloned().collect());
            }
        }
        Ok(())
    }
}

impl clap::Args for Settings {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new(CONFIG)
            .long("config")
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help(format!("TOML file of settings. [env: {CONFIG_VARIABLE}]"));
        keys::all()
            .iter()
            .fold(command.arg(file), |command, key| command.arg(flag(key)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// The flag of one key. Its value is checked with the other layers, not here, so that it is said
/// in the same words wherever it was written.
pub(super) fn flag(key: &Key) -> Arg {
    let help = format!(
        "{} [default: {}] [env: {}]",
        key.comment,
        key.default.replace('"', ""),
        key.variable()
    );
    let arg = Arg::new(key.name)
        .long(key.flag())
        .value_name(value_name(key))
        .allow_hyphen_values(true)
        .help_heading(key.heading)
        .help(help);
    match key.shape() {
        // A switch with a third position: true when it stands alone.
        Shape::One if key.default == "\"false\"" => arg
            .action(ArgAction::Set)
            .allow_hyphen_values(false)
            .num_args(0..=1)
            .default_missing_value("true"),
        Shape::One => arg.action(ArgAction::Set),
        Shape::List => arg.action(ArgAction::Append),
        Shape::Switch => arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
    }
}

fn value_name(key: &Key) -> &'static str {
    let digits = |c: char| c.is_ascii_digit();
    if key.name.ends_with("_address") {
        "HOST:PORT"
    } else if key.name.contains("bytes") || key.name.ends_with("_size") {
        "BYTES"
    } else if key.name.ends_with("_file") {
        "FILE"
    } else if key.default.starts_with(['"'])
        && key.default.contains(digits)
        && !key.default.contains(':')
    {
        "DURATION"
    } else if key.default.starts_with(digits) {
        "N"
    } else {
        "VALUE"
    }
}
