//! The documents held against the sources, by their text: nothing that a user can meet is left out,
//! and nothing is described that is not there.

use std::collections::BTreeSet;
use std::fs;

use crate::support::checkout;

/// Where programs and people read of metrics.
const METRIC_READERS: [&str; 3] = [
    "docs/metrics.md",
    "deploy/prometheus/alerts.yml",
    "deploy/grafana/dashboard.json",
];

fn read(path: &str) -> String {
    fs::read_to_string(checkout().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The words of `text` that are made of `legal` characters.
fn words(text: &str, legal: fn(char) -> bool) -> BTreeSet<&str> {
    text.split(|c: char| !legal(c))
        .filter(|word| !word.is_empty())
        .collect()
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// What stands between double quotes in `text`, if it is on one line.
fn literals(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| line.split('"').skip(1).step_by(2))
}

fn cells(document: &str) -> impl Iterator<Item = &str> {
    let first = |line: &'_ str| -> Option<usize> { line.strip_prefix("| `")?.find('`') };
    document
        .lines()
        .filter_map(move |line| line.get(3..3 + first(line)?))
}

/// The families that the sources register, with the endings that their type and unit give them.
fn families() -> BTreeSet<String> {
    let mut families = BTreeSet::new();
    for module in ["dispatch", "forward", "ingest", "store"] {
        let source = read(&format!("src/{module}/metrics.rs"));
        for call in source.split("registry.register").skip(1) {
            let name = literals(call).next().unwrap().to_owned();
            let call = &call[..call.find(");").unwrap()];
            let unit = if call.contains("Unit::Seconds") {
                "_seconds"
            } else {
                ""
            };
            let field = call.rsplit(".clone()").nth(1).unwrap();
            let field = field.rsplit(|c| !is_name(c)).next().unwrap();
            let kind = kind_of(&source, field);
            let total = if kind == "Counter" { "_total" } else { "" };
            families.insert(format!("nsqdelayd_{name}{unit}{total}"));
        }
    }
    families
}

/// The last of the metric types in the declaration of a field.
fn kind_of(source: &str, field: &str) -> &'static str {
    let declares = format!("{field}: ");
    let line = source
        .lines()
        .map(|line| line.trim().trim_start_matches("pub(super) "))
        .map(|line| line.trim_start_matches("pub "))
        .find(|line| line.starts_with(&declares))
        .unwrap_or_else(|| panic!("{field} is not declared"));
    ["Counter", "Gauge", "Histogram"]
        .into_iter()
        .find(|kind| line.contains(kind))
        .unwrap_or_else(|| panic!("{line}: of no known type"))
}

#[test]
fn every_error_code_of_the_tcp_door_is_described() {
    let source = read("src/nsq/error_code.rs");
    let document = read("docs/protocol.md");
    let codes: Vec<_> = literals(&source).filter(|l| l.starts_with("E_")).collect();
    assert!(codes.len() > 10, "the sources are read wrongly");
    let table: BTreeSet<_> = cells(&document)
        .filter(|cell| cell.starts_with("E_") && !cell.contains(' '))
        .collect();
    assert_eq!(table, codes.into_iter().collect());
}

#[test]
fn every_problem_code_is_described_with_its_status() {
    let source = read("src/ingest/problem.rs");
    let document = read("docs/protocol.md");
    let list = source.split("codes! {").nth(1).unwrap();
    let list = &list[..list.find("\n}").unwrap()];
    let mut known = BTreeSet::new();
    for line in list.lines().filter(|line| line.contains(" = ")) {
        let code = literals(line).next().unwrap();
        known.insert(code);
        let status = match line.split(" = ").nth(1).unwrap().split(',').next().unwrap() {
            "BAD_REQUEST" => 400,
            "UNAUTHORIZED" => 401,
            "FORBIDDEN" => 403,
            "NOT_FOUND" => 404,
            "METHOD_NOT_ALLOWED" => 405,
            "CONFLICT" => 409,
            "PAYLOAD_TOO_LARGE" => 413,
            "UNSUPPORTED_MEDIA_TYPE" => 415,
            "TOO_MANY_REQUESTS" => 429,
            "INTERNAL_SERVER_ERROR" => 500,
            "SERVICE_UNAVAILABLE" => 503,
            other => panic!("the status {other} is new: name it here"),
        };
        let row = format!("| `{code}` | {status} |");
        assert!(document.contains(&row), "docs/protocol.md lacks {row}");
    }
    assert!(known.len() > 40, "the sources are read wrongly");
    let table = document.split("## Problems").nth(1).unwrap();
    let table = &table[..table.find("\n# ").unwrap()];
    assert_eq!(cells(table).collect::<BTreeSet<_>>(), known);
}

#[test]
fn every_message_of_the_nsqd_http_door_is_described() {
    let document = read("docs/protocol.md");
    let described = words(&document, is_name);
    let files = [
        "nsqd_http/mod.rs",
        "nsqd_http/publish.rs",
        "reply.rs",
        "http/gate.rs",
    ];
    for file in files {
        let source = read(&format!("src/ingest/{file}"));
        let source = source.split("#[cfg(test)]\nmod tests").next().unwrap();
        let shouted = literals(source).filter(|l| {
            l.len() > 5 && l.contains('_') && l.chars().all(|c| c.is_ascii_uppercase() || c == '_')
        });
        for message in shouted {
            assert!(
                described.contains(message),
                "docs/protocol.md lacks {message}"
            );
        }
    }
}

#[test]
fn every_route_of_v1_is_described() {
    let source = read("src/ingest/api_v1/mod.rs");
    let document = read("docs/protocol.md");
    let routes = source.lines().filter_map(|line| {
        let (_, route) = line.split_once("=> (Method::")?;
        let (method, path) = route.split_once(", \"")?;
        Some(format!("`{method} {}`", path.split('"').next()?))
    });
    let routes: Vec<_> = routes.collect();
    assert!(routes.len() > 10, "the sources are read wrongly");
    for route in routes {
        assert!(document.contains(&route), "docs/protocol.md lacks {route}");
    }
}

#[test]
fn every_metric_is_described_and_no_other() {
    let families = families();
    assert!(families.len() > 20, "the sources are read wrongly");
    let document = read("docs/metrics.md");
    let described: BTreeSet<_> = cells(&document)
        .filter(|cell| cell.starts_with("nsqdelayd_"))
        .map(str::to_owned)
        .collect();
    assert_eq!(described, families);
    for path in METRIC_READERS {
        let text = read(path);
        for name in words(&text, is_name) {
            let parts = ["_bucket", "_sum", "_count"];
            let name = parts
                .iter()
                .find_map(|p| name.strip_suffix(p))
                .unwrap_or(name);
            let known = !name.starts_with("nsqdelayd_") || families.contains(name);
            assert!(known || name == "nsqdelayd_", "{path}: {name} is no metric");
        }
    }
}

#[test]
fn every_label_value_of_a_metric_is_described() {
    let document = read("docs/metrics.md");
    let mut known = 0;
    for module in ["dispatch", "forward", "ingest"] {
        let source = read(&format!("src/{module}/metrics.rs"));
        for values in source.split("impl EncodeLabelValue for ").skip(1) {
            for value in literals(&values[..values.find("\n}").unwrap()]) {
                let quoted = format!("`{value}`");
                assert!(document.contains(&quoted), "docs/metrics.md lacks {quoted}");
                known += 1;
            }
        }
    }
    assert!(known > 10, "the sources are read wrongly");
}

#[test]
fn every_setting_is_described_with_its_default_and_no_other() {
    let settings = read("config/default.toml");
    let mut keys = BTreeSet::new();
    let document = read("docs/operations.md");
    for line in settings.lines().filter(|line| !line.starts_with('#')) {
        let Some((key, default)) = line.split_once(" = ") else {
            continue;
        };
        keys.insert(key);
        let default = default.trim_matches(['[', ']', '"']);
        let default = if default.is_empty() {
            "empty".to_owned()
        } else {
            format!("`{default}`")
        };
        let row = format!("| `{key}` | {default} |");
        assert!(document.contains(&row), "docs/operations.md lacks {row}");
    }
    assert!(keys.len() > 40, "the settings are read wrongly");
    let chapter = document.split("## Settings").nth(1).unwrap();
    let chapter = &chapter[..chapter.find("\n## ").unwrap()];
    assert_eq!(cells(chapter).collect::<BTreeSet<_>>(), keys);
}

#[test]
fn every_alert_is_explained_and_no_other() {
    let alerts = read("deploy/prometheus/alerts.yml");
    let document = read("docs/operations.md");
    let names: BTreeSet<_> = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    let explained: BTreeSet<_> = cells(&document)
        .filter(|cell| cell.starts_with("Nsqdelayd"))
        .collect();
    assert_eq!(explained, names);
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut documents = vec!["README.md".to_owned()];
    for entry in fs::read_dir(checkout().join("docs")).unwrap() {
        let name = entry.unwrap().file_name();
        if name.as_encoded_bytes().ends_with(b".md") {
            documents.push(format!("docs/{}", name.display()));
        }
    }
    for document in documents {
        let dir = checkout().join(&document);
        let dir = dir.parent().unwrap();
        let text = read(&document);
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap();
            let outside = target.is_empty() || target.starts_with("https:");
            assert!(outside || dir.join(target).exists(), "{document}: {target}");
        }
    }
}

#[test]
fn the_dashboard_is_json() {
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("deploy/grafana/dashboard.json")).unwrap();
    assert!(
        dashboard["panels"]
            .as_array()
            .is_some_and(|panels| !panels.is_empty())
    );
}
