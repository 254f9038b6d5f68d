//! The settings that exist, read from `config/default.toml`: name, comment, default, heading. Flags,
//! variables and their help are made from it, so none can be missing.

/// The compiled-in file.
pub const DEFAULT_TOML: &str = include_str!("../../config/default.toml");

/// What every variable's name begins with.
pub const ENV_PREFIX: &str = "NSQDELAYD_";

/// The shape of a setting's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One text or number.
    One,
    /// Several texts.
    List,
    /// `true` or `false`.
    Switch,
}

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its name in a TOML file.
    pub name: &'static str,
    /// The heading that it stands under.
    pub heading: &'static str,
    /// Its comment.
    pub comment: String,
    /// Its default as the file writes it.
    pub default: &'static str,
}

impl Key {
    /// Its flag, without the dashes.
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// Its environment variable.
    pub fn variable(&self) -> String {
        format!("{ENV_PREFIX}{}", self.name.to_ascii_uppercase())
    }

    /// The shape of its value.
    pub fn shape(&self) -> Shape {
        match self.default {
            "true" | "false" => Shape::Switch,
            list if list.starts_with('[') => Shape::List,
            _ => Shape::One,
        }
    }
}

/// All settings, in the file's order.
pub fn all() -> Vec<Key> {
    let mut keys = Vec::new();
    let mut heading = "";
    let mut comment = Vec::new();
    for line in DEFAULT_TOML.lines() {
        if let Some(text) = line.strip_prefix("## ") {
            heading = text;
        } else if let Some(text) = line.strip_prefix("# ") {
            comment.push(text);
        } else if let Some((name, default)) = line.split_once(" = ") {
            keys.push(Key {
                name,
                heading,
                comment: comment.join(" "),
                default,
            });
            comment.clear();
        } else {
            comment.clear();
        }
    }
    keys
}

/// The setting whose name is the most like `name`, if any is alike.
pub fn nearest(name: &str) -> Option<&'static str> {
    const ALIKE_MIN: f64 = 0.7;
    all()
        .iter()
        .map(|key| (strsim::jaro_winkler(name, key.name), key.name))
        .filter(|(likeness, _)| *likeness >= ALIKE_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_comment_and_a_heading() {
        let keys = all();
        assert!(keys.len() > 40);
        for key in keys {
            assert!(
                key.comment.ends_with('.'),
                "{}: {:?}",
                key.name,
                key.comment
            );
            assert!(!key.heading.is_empty(), "{}", key.name);
        }
    }

    #[test]
    fn the_reader_of_this_file_finds_what_a_toml_parser_finds() {
        use ::config::{File, FileFormat, Source as _};
        let parsed = File::from_str(DEFAULT_TOML, FileFormat::Toml)
            .collect()
            .unwrap();
        let mut names: Vec<_> = all().iter().map(|key| key.name.to_owned()).collect();
        let mut expected: Vec<_> = parsed.keys().cloned().collect();
        names.sort();
        expected.sort();
        assert_eq!(names, expected);
    }

    #[test]
    fn a_misspelt_key_finds_its_neighbour() {
        assert_eq!(nearest("tcp_adress"), Some("tcp_address"));
        assert_eq!(nearest("shard"), Some("shards"));
        assert_eq!(nearest("zzz"), None);
    }
}
