//! The tokens file: secrets of which each has roles on the topics that patterns name. Pure; the file is
//! read by whoever configures.

use std::fmt;
use std::sync::Arc;

use ::config::{Config, File, FileFormat};
use regex::Regex;
use serde::Deserialize;
use subtle::ConstantTimeEq as _;

use super::{Grant, Grants, Role, Secret};

/// Shortest secret: what is shorter can be guessed.
const SECRET_LEN_MIN: usize = 16;

/// Every token and what it grants.
#[derive(Debug, Default)]
pub struct Tokens(Vec<(Secret, Arc<Grants>)>);

/// What is wrong with a tokens file. Never shows a secret.
#[derive(Debug)]
pub struct BadTokens(String);

impl fmt::Display for BadTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadTokens {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    token: Vec<Token>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Token {
    name: String,
    secret: String,
    roles: Vec<String>,
    topics: Vec<String>,
}

impl Tokens {
    /// Reads a file of `[[token]]` tables with `name`, `secret`, `roles` and `topics`.
    pub fn parse(toml: &str) -> Result<Self, BadTokens> {
        let read = Config::builder()
            .add_source(File::from_str(toml, FileFormat::Toml))
            .build()
            .map_err(|_shows_the_text| BadTokens("is not TOML".to_owned()))?;
        let written: Written = read.try_deserialize().map_err(|error| {
            BadTokens(format!(
                "must hold [[token]] tables: {}",
                without_values(&error)
            ))
        })?;
        let mut tokens = Self::default();
        for token in &written.token {
            let grants = token.grants()?;
            let secret = Secret(token.secret.clone().into_bytes());
            if tokens.0.iter().any(|(other, _)| *other == secret) {
                return Err(token.fault("has the secret of another token"));
            }
            tokens.0.push((secret, Arc::new(grants)));
        }
        Ok(tokens)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What a secret grants. Takes the same time wherever secrets begin to differ.
    pub(super) fn find(&self, secret: &Secret) -> Option<Arc<Grants>> {
        let mut found = None;
        for (known, grants) in &self.0 {
            if bool::from(known.0.ct_eq(&secret.0)) {
                found = Some(Arc::clone(grants));
            }
        }
        found
    }
}

impl Token {
    fn grants(&self) -> Result<Grants, BadTokens> {
        if self.secret.len() < SECRET_LEN_MIN {
            let text = format!("must have a secret of at least {SECRET_LEN_MIN} bytes");
            return Err(self.fault(&text));
        }
        let mut roles = Vec::new();
        for name in &self.roles {
            let known = Role::ALL.iter().find(|(_, known)| known == name);
            let (role, _) = known.ok_or_else(|| {
                let known: Vec<_> = Role::ALL.iter().map(|(_, known)| *known).collect();
                self.fault(&format!(
                    "has the role {name:?}; there are {}",
                    known.join(", ")
                ))
            })?;
            roles.push(*role);
        }
        if roles.is_empty() || self.topics.is_empty() {
            return Err(self.fault("must have roles and topics; [\"*\"] means every topic"));
        }
        let grants = self.topics.iter().map(|pattern| {
            Ok(Grant {
                roles: roles.clone(),
                topics: self.pattern(pattern)?,
            })
        });
        Ok(Grants {
            identity: self.name.clone(),
            identity_url: String::new(),
            count: self.topics.len(),
            rules: grants.collect::<Result<_, _>>()?,
            expires: None,
        })
    }

    /// A topic's name in which `*` stands for any run of characters.
    fn pattern(&self, pattern: &str) -> Result<Option<Regex>, BadTokens> {
        if pattern == "*" {
            return Ok(None);
        }
        let parts: Vec<_> = pattern.split('*').map(regex::escape).collect();
        let regex = Regex::new(&format!("^{}$", parts.join(".*")));
        regex
            .map(Some)
            .map_err(|_too_long| self.fault("has a pattern of topics that is too long"))
    }

    fn fault(&self, what: &str) -> BadTokens {
        BadTokens(format!("token {:?} {what}", self.name))
    }
}

/// Errors of types quote what they found, which may be a secret.
fn without_values(error: &::config::ConfigError) -> String {
    match error {
        ::config::ConfigError::Type {
            key: Some(key),
            expected,
            ..
        } => {
            format!("{key} must be {expected}")
        }
        other => {
            let text = other.to_string();
            let shown = ["missing", "unknown field", "missing configuration field"];
            if shown.iter().any(|word| text.starts_with(word)) {
                text
            } else {
                "a value has the wrong type".to_owned()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::TopicName;

    const FILE: &str = r#"
[[token]]
name = "billing"
secret = "0123456789abcdef"
roles = ["publish", "cancel"]
topics = ["orders.*", "bills"]

[[token]]
name = "ops"
secret = "fedcba9876543210"
roles = ["admin"]
topics = ["*"]
"#;

    fn topic(name: &str) -> TopicName {
        TopicName::parse(name.as_bytes()).unwrap()
    }

    #[test]
    fn a_token_grants_its_roles_on_its_topics() {
        let tokens = Tokens::parse(FILE).unwrap();
        let grants = tokens.find(&Secret(b"0123456789abcdef".to_vec())).unwrap();
        assert_eq!((grants.identity.as_str(), grants.count), ("billing", 2));
        for (role, name, may) in [
            (Role::Publish, "orders.eu", true),
            (Role::Publish, "bills", true),
            (Role::Cancel, "orders.", true),
            (Role::ReadMetadata, "orders.x", true),
            (Role::ReadBodies, "orders.x", false),
            (Role::Admin, "orders.x", false),
            (Role::Publish, "orders", false),
            (Role::Publish, "xorders.eu", false),
            (Role::Publish, "ordersxeu", false),
            (Role::Publish, "bills2", false),
        ] {
            assert_eq!(grants.may(role, &topic(name)), may, "{role:?} {name}");
        }
        assert!(!grants.may_everywhere(Role::Publish) && grants.may_somewhere(Role::Publish));
    }

    #[test]
    fn an_admin_may_do_everything_everywhere() {
        let tokens = Tokens::parse(FILE).unwrap();
        let grants = tokens.find(&Secret(b"fedcba9876543210".to_vec())).unwrap();
        assert!(
            Role::ALL
                .iter()
                .all(|(role, _)| grants.may_everywhere(*role))
        );
        assert!(!grants.is_expired());
    }

    #[test]
    fn another_secret_opens_nothing() {
        let tokens = Tokens::parse(FILE).unwrap();
        for secret in [
            "",
            "0123456789abcde",
            "0123456789abcdeg",
            "0123456789abcdef ",
        ] {
            assert!(tokens.find(&Secret(secret.into())).is_none(), "{secret:?}");
        }
    }

    #[test]
    fn faults_name_the_token_and_no_secret() {
        for (from, to, part) in [
            ("\"cancel\"]", "\"drop\"]", "there are publish"),
            ("0123456789abcdef", "short-secret", "at least 16"),
            ("fedcba9876543210", "0123456789abcdef", "another token"),
            (
                "topics = [\"*\"]",
                "topics = []",
                "must have roles and topics",
            ),
            ("topics = [\"*\"]", "topic = [\"*\"]", "unknown field"),
            ("secret = \"fedcba9876543210\"\n", "", "missing"),
            ("[[token]]", "[[token", "is not TOML"),
            ("roles = [\"admin\"]", "roles = 5", "[[token]]"),
        ] {
            let fault = Tokens::parse(&FILE.replace(from, to))
                .unwrap_err()
                .to_string();
            assert!(fault.contains(part), "{from}: {fault}");
            for secret in ["0123456789abcdef", "fedcba9876543210", "short-secret"] {
                assert!(!fault.contains(secret), "{fault}");
            }
        }
    }
}
