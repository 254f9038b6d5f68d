//! House rules, held against the sources: who may name whom, file heads, sizes, no machine's paths.

use std::fs;
use std::path::Path;

use crate::support::checkout;

/// Longest source file, in lines.
const LINES_MAX: usize = 600;

/// Module, then the modules it may name. Bottom up: an arrow only points to an earlier row.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("message", &[]),
    ("phase", &[]),
    ("monotonic", &[]),
    ("timer", &["monotonic"]),
    ("transport", &[]),
    ("shard", &["message"]),
    ("id", &["message", "shard"]),
    ("nsq", &["message"]),
    ("nsqd", &["nsq", "transport"]),
    ("finding", &[]),
    (
        "store",
        &["message", "id", "shard", "monotonic", "timer", "finding"],
    ),
    ("http_client", &["transport"]),
    (
        "forward",
        &["message", "nsq", "nsqd", "http_client", "transport"],
    ),
    (
        "dispatch",
        &[
            "message",
            "id",
            "shard",
            "monotonic",
            "timer",
            "store",
            "forward",
        ],
    ),
    (
        "ingest",
        &[
            "message",
            "id",
            "nsq",
            "nsqd",
            "phase",
            "store",
            "http_client",
            "transport",
        ],
    ),
    ("telemetry", &[]),
    (
        "config",
        &[
            "message",
            "id",
            "shard",
            "nsq",
            "nsqd",
            "store",
            "transport",
            "forward",
            "dispatch",
            "ingest",
            "telemetry",
        ],
    ),
    (
        "doctor",
        &[
            "message",
            "nsq",
            "nsqd",
            "finding",
            "http_client",
            "store",
            "config",
        ],
    ),
    (
        "app",
        &[
            "message",
            "id",
            "shard",
            "phase",
            "monotonic",
            "timer",
            "nsq",
            "store",
            "forward",
            "dispatch",
            "ingest",
            "telemetry",
            "config",
        ],
    ),
    (
        "cli",
        &[
            "message",
            "nsq",
            "http_client",
            "finding",
            "config",
            "telemetry",
            "doctor",
            "app",
        ],
    ),
];

/// What only some modules may name, then the path prefixes of those modules.
const MAY_USE: &[(&str, &[&str])] = &[
    ("redis::", &["store/"]),
    ("reqwest::", &["http_client.rs", "cli/"]),
    ("deadpool_redis::", &["store/"]),
    ("axum::", &["ingest/"]),
    ("utoipa::", &["ingest/"]),
    ("clap::", &["cli/", "config"]),
    (
        "TcpStream::connect",
        &[
            "nsqd/",
            "ingest/access/authd.rs",
            "cli/tail.rs",
            "cli/bench/",
            "cli/dev/child.rs",
        ],
    ),
];

#[test]
fn import_table_has_no_cycle() {
    for (row, (module, allowed)) in MAY_IMPORT.iter().enumerate() {
        for target in *allowed {
            let earlier = MAY_IMPORT[..row].iter().any(|(m, _)| m == target);
            assert!(earlier, "{module} -> {target} points forward");
        }
    }
}

#[test]
fn every_module_has_a_row() {
    let root = fs::read_to_string(checkout().join("src/lib.rs")).unwrap();
    let modules = root.lines().filter_map(|line| {
        let name = line.strip_prefix("pub mod ").or(line.strip_prefix("mod "));
        name.map(|name| name.trim_end_matches(';'))
    });
    for module in modules {
        let known = MAY_IMPORT.iter().any(|(m, _)| *m == module);
        assert!(known, "{module} is not in the import table");
    }
}

#[test]
fn sources_are_tidy() {
    let mut faults = Vec::new();
    let root = checkout().join("src");
    visit(&root, &mut |path| {
        if path.extension().is_some_and(|e| e == "rs") {
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap();
            check_source(name, &fs::read_to_string(path).unwrap(), &mut faults);
        }
    });
    assert!(faults.is_empty(), "untidy:\n{}", faults.join("\n"));
}

#[test]
fn tests_are_tidy() {
    let mut faults = Vec::new();
    for dir in ["tests", "benches"] {
        visit(&checkout().join(dir), &mut |path| {
            if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(path).unwrap();
                check_shape(&path.display().to_string(), &text, &mut faults);
            }
        });
    }
    assert!(faults.is_empty(), "untidy:\n{}", faults.join("\n"));
}

/// A path of the machine that the project was written on means nothing on another.
#[test]
fn no_file_names_a_place_of_one_machine() {
    // Written in two halves, so that this file does not name them either.
    let places = [
        ["/wo", "rk/"],
        ["/ro", "ot/"],
        ["/ho", "me/"],
        ["/tm", "p/setup"],
    ];
    let mut faults = Vec::new();
    let mut check = |path: &Path| {
        // What is not text is not ours to read.
        let Ok(text) = fs::read_to_string(path) else {
            return;
        };
        for place in places.map(|halves| halves.concat()) {
            if text.contains(&place) {
                faults.push(format!("{}: names {place}", path.display()));
            }
        }
    };
    for dir in ["src", "config", "tests", "benches", "deploy", "docs", ".ci"] {
        visit(&checkout().join(dir), &mut check);
    }
    for file in [
        "README.md",
        "Makefile",
        "Cargo.toml",
        ".deny.toml",
        ".clippy.toml",
    ] {
        check(&checkout().join(file));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn check_shape(name: &str, text: &str, faults: &mut Vec<String>) {
    if !text.starts_with("//!") {
        faults.push(format!("{name}: no //! module doc"));
    }
    let lines = text.lines().count();
    if lines > LINES_MAX {
        faults.push(format!("{name}: {lines} lines, over {LINES_MAX}"));
    }
}

fn check_source(name: &str, text: &str, faults: &mut Vec<String>) {
    check_shape(name, text, faults);
    let module = name.split(['/', '.']).next().unwrap();
    let rule = MAY_IMPORT.iter().find(|(m, _)| *m == module);
    for (number, line) in text.lines().enumerate() {
        // A comment may point anywhere.
        if line.trim_start().starts_with("//") {
            continue;
        }
        let place = format!("{name}:{}", number + 1);
        for target in line.split("crate::").skip(1) {
            let end = target.find(|c: char| !c.is_alphanumeric() && c != '_');
            let target = &target[..end.unwrap_or(target.len())];
            let foreign = target != module;
            if foreign && rule.is_some_and(|(_, allowed)| !allowed.contains(&target)) {
                faults.push(format!("{place}: {module} -> {target}"));
            }
        }
        for (what, homes) in MAY_USE {
            if names(line, what) && !homes.iter().any(|home| name.starts_with(home)) {
                faults.push(format!("{place}: names {what}"));
            }
        }
    }
}

/// Whether `line` has `what` not as the end of a longer path or word.
fn names(line: &str, what: &str) -> bool {
    line.match_indices(what).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| {
            c.is_alphanumeric() || c == '_' || (c == ':' && what != "TcpStream::connect")
        })
    })
}

fn visit(dir: &Path, act: &mut impl FnMut(&Path)) {
    // Trees that tools make beside the sources, and folders that are not there yet.
    let made = ["node_modules", "target", "__pycache__"];
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        let skipped = path
            .file_name()
            .is_some_and(|n| made.iter().any(|m| n == *m));
        if path.is_dir() && !skipped {
            visit(&path, act);
        } else if path.is_file() {
            act(&path);
        }
    }
}
