//! Logs and metrics: the subscriber, the registry, its text. Knows no module's families.

use std::fmt;
use std::io::IsTerminal as _;

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// A level, or directives of levels by module.
    pub level: String,
    /// How a line is written.
    pub format: Format,
}

/// How a line of the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

impl Format {
    /// Reads `text` or `json`.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// Whether `level` is a level or a list of directives.
pub fn level_is_valid(level: &str) -> bool {
    // A bare word that is no level would be read as a module's name, at trace.
    level.split(',').all(|part| {
        part.contains('=') && EnvFilter::builder().parse(part).is_ok()
            || !part.trim().is_empty() && part.trim().parse::<LevelFilter>().is_ok()
    })
}

/// The log could not be set up.
#[derive(Debug)]
pub struct LogError(Box<dyn std::error::Error + Send + Sync>);

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the log could not be set up: {}", self.0)
    }
}

impl std::error::Error for LogError {}

/// Sends the log to standard error from now on. Once in a process.
pub fn start_log(config: &LogConfig) -> Result<(), LogError> {
    let filter = EnvFilter::builder()
        .parse(&config.level)
        .map_err(|error| LogError(error.into()))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match config.format {
        Format::Text => builder.try_init().map_err(LogError),
        Format::Json => builder.json().try_init().map_err(LogError),
    }
}

/// The registry that every module adds its families to.
pub fn registry() -> Registry {
    Registry::with_prefix("nsqdelayd")
}

/// What `/metrics` answers.
pub fn exposition(registry: &Registry) -> Result<String, fmt::Error> {
    let mut body = String::new();
    text::encode(&mut body, registry)?;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_directives_are_valid_and_typos_are_not() {
        for level in ["info", "WARN", "off", "info,nsqdelayd::store=debug"] {
            assert!(level_is_valid(level), "{level}");
        }
        for level in ["", "loud", "info,nsqdelayd=loud"] {
            assert!(!level_is_valid(level), "{level}");
        }
    }

    #[test]
    fn the_exposition_carries_the_prefix() {
        use prometheus_client::metrics::counter::Counter;
        let mut registry = registry();
        registry.register("x", "X", Counter::<u64>::default());
        assert!(
            exposition(&registry)
                .unwrap()
                .contains("nsqdelayd_x_total 0")
        );
    }
}
