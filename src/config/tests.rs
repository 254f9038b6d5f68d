//! Layers, ranges and the rules between settings.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;

use super::*;

fn sources(flags: &[(&str, &str)], variables: &[(&str, &str)]) -> Sources {
    let mut by_key: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in flags {
        by_key
            .entry((*name).to_owned())
            .or_default()
            .push((*value).to_owned());
    }
    Sources {
        file: None,
        variables: variables
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect(),
        flags: by_key,
    }
}

fn with_file(text: &str) -> (tempfile::NamedTempFile, Sources) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let sources = Sources {
        file: Some(file.path().to_owned()),
        ..Sources::default()
    };
    (file, sources)
}

/// One wrong setting must be named together with what to change.
fn check_flag_fault(name: &str, value: &str, part: &str) {
    let error = load(&sources(&[(name, value)], &[]))
        .unwrap_err()
        .to_string();
    assert!(error.starts_with(name), "{name} = {value}: {error}");
    assert!(error.contains(part), "{name} = {value}: {error}");
}

#[test]
fn the_defaults_are_sound_and_as_documented() {
    let config = load(&Sources::default()).unwrap().config;
    assert_eq!(config.tcp_address, "127.0.0.1:4140");
    assert_eq!(config.http_address, "127.0.0.1:4141");
    assert_eq!(config.store.redis, "redis://127.0.0.1:6379");
    assert_eq!(config.forward.nsqd_tcp_addresses, ["127.0.0.1:4150"]);
    assert_eq!(config.store.shards, 64);
    assert_eq!(
        config.ingest.max_delay,
        crate::message::Delay(315_360_000_000)
    );
    assert_eq!(config.ingest.max_msg_size, 1_048_576);
    assert_eq!(config.ingest.max_body_size, 5_242_880);
    assert_eq!(config.ingest.heartbeat_interval, Duration::from_secs(30));
    assert_eq!(config.store.claim_ttl, Duration::from_secs(5));
    assert_eq!(config.dispatch.claim_ttl, config.store.claim_ttl);
    assert_eq!(config.address_file, None);
}

#[test]
fn every_key_of_the_file_is_read_and_every_key_read_is_in_the_file() {
    let layers = Layers::load(&Sources::default()).unwrap();
    let mut reader = Reader::new(&layers);
    rules::config(&mut reader);
    let listed: BTreeSet<_> = keys::all().iter().map(|key| key.name).collect();
    assert_eq!(reader.asked(), &listed);
}

#[test]
fn every_key_is_read_from_its_variable_and_from_its_flag() {
    for key in keys::all() {
        let value = key.default.trim_matches(['"', '[', ']']).replace('"', "");
        let flag = Layers::load(&sources(&[(key.name, &value)], &[])).unwrap();
        let origin = Origin::Flag(format!("--{}", key.flag()));
        assert_eq!(flag.get(key.name).unwrap().origin, origin);
        let text = if value.is_empty() { "x" } else { &value };
        let variable = Layers::load(&sources(&[], &[(&key.variable(), text)])).unwrap();
        let origin = Origin::Variable(key.variable());
        assert_eq!(variable.get(key.name).unwrap().origin, origin);
    }
}

#[test]
fn flags_win_over_variables_over_the_file_over_the_default() {
    let (_file, mut sources) = with_file("shards = 2\npollers = 2\nnamespace = \"file\"\n");
    sources
        .variables
        .insert("NSQDELAYD_SHARDS".to_owned(), "3".to_owned());
    sources
        .variables
        .insert("NSQDELAYD_POLLERS".to_owned(), "3".to_owned());
    sources
        .flags
        .insert("shards".to_owned(), vec!["4".to_owned()]);
    let config = load(&sources).unwrap().config;
    assert_eq!(config.store.shards, 4);
    assert_eq!(config.dispatch.pollers, 3);
    assert_eq!(config.store.namespace, "file");
    assert_eq!(config.dispatch.unsettled_max, 4000);
}

#[test]
fn the_file_can_be_named_by_a_variable() {
    let (file, _) = with_file("shards = 7\n");
    let path = file.path().to_str().unwrap();
    let config = load(&sources(&[], &[("NSQDELAYD_CONFIG", path)]))
        .unwrap()
        .config;
    assert_eq!(config.store.shards, 7);
}

#[test]
fn several_nsqd_come_from_flags_lists_and_commas() {
    let expected = ["a:1", "b:2"];
    let flags = sources(
        &[("nsqd_tcp_address", "a:1"), ("nsqd_tcp_address", "b:2")],
        &[],
    );
    assert_eq!(
        load(&flags).unwrap().config.forward.nsqd_tcp_addresses,
        expected
    );
    let variable = sources(&[], &[("NSQDELAYD_NSQD_TCP_ADDRESS", "a:1, b:2")]);
    assert_eq!(
        load(&variable).unwrap().config.forward.nsqd_tcp_addresses,
        expected
    );
    let (_file, file) = with_file("nsqd_tcp_address = [\"a:1\", \"b:2\", \"a:1\"]\n");
    assert_eq!(
        load(&file).unwrap().config.forward.nsqd_tcp_addresses,
        expected
    );
}

#[test]
fn the_http_addresses_of_nsqds_go_with_their_tcp_addresses() {
    let http = |config: &Config| config.forward.nsqd_http_addresses.clone();
    let (_file, file) = with_file(
        "nsqd_tcp_address = [\"a:1\", \"b:1\"]\nnsqd_http_address = [\"a:2\", \"b:2\"]\n",
    );
    let config = load(&file).unwrap().config;
    assert_eq!(http(&config), ["a:2", "b:2"]);
    // They say how much they hold; one that is found by nsqlookupd does not.
    assert_eq!(config.dispatch.nsqd_rate_max, 0);
    let with = |more: &[(&str, &str)]| {
        load(&Sources {
            file: file.file.clone(),
            ..sources(more, &[])
        })
    };
    let config = with(&[("lookupd_http_address", "l:4161")]).unwrap().config;
    assert!(config.dispatch.nsqd_rate_max > 0);
    let config = with(&[("nsqd_depth_max", "0")]).unwrap().config;
    assert!(config.dispatch.nsqd_rate_max > 0);
    // Those of the file are not those of the flag.
    let config = with(&[("nsqd_tcp_address", "c:1")]).unwrap().config;
    assert!(http(&config).is_empty() && config.dispatch.nsqd_rate_max > 0);
    let fault = with(&[("nsqd_http_address", "a:2")])
        .unwrap_err()
        .to_string();
    assert!(
        fault.contains("must be as many as nsqd_tcp_address"),
        "{fault}"
    );
}

#[test]
fn with_an_nsqlookupd_no_nsqd_is_assumed() {
    let lookupd = ("lookupd_http_address", "l:4161");
    let config = load(&sources(&[lookupd], &[])).unwrap().config;
    assert_eq!(config.forward.lookupd_http_addresses, ["l:4161"]);
    assert!(config.forward.nsqd_tcp_addresses.is_empty());
    let both = [lookupd, ("nsqd_tcp_address", "127.0.0.1:4150")];
    let config = load(&sources(&both, &[])).unwrap().config;
    assert_eq!(config.forward.nsqd_tcp_addresses, ["127.0.0.1:4150"]);
}

#[test]
fn an_unknown_key_in_the_file_is_named_with_its_neighbour() {
    let (_file, sources) = with_file("tcp_adress = \"127.0.0.1:1\"\n[table]\nx = 1\n");
    let error = load(&sources).unwrap_err();
    assert_eq!(error.faults.len(), 2);
    let text = error.to_string();
    assert!(text.contains("did you mean tcp_address?"), "{text}");
    assert!(text.contains("table (in "), "{text}");
}

#[test]
fn an_unknown_variable_is_reported_and_not_fatal() {
    let layers = Layers::load(&sources(&[], &[("NSQDELAYD_SERVICE_HOST", "10.0.0.1")])).unwrap();
    assert_eq!(layers.unknown_variables, ["NSQDELAYD_SERVICE_HOST"]);
}

#[test]
fn a_broken_or_missing_file_is_named() {
    let (_file, sources) = with_file("shards = = 2\n");
    assert!(
        load(&sources)
            .unwrap_err()
            .to_string()
            .contains("is not TOML")
    );
    let missing = Sources {
        file: Some("/nonexistent/x.toml".into()),
        ..Sources::default()
    };
    assert!(
        load(&missing)
            .unwrap_err()
            .to_string()
            .starts_with("/nonexistent/x.toml: cannot be read")
    );
}

#[test]
fn single_settings_out_of_range_name_the_key_and_the_range() {
    check_flag_fault("shards", "0", "from 1 to 16384");
    check_flag_fault("shards", "16385", "from 1 to 16384");
    check_flag_fault("shards", "many", "from 1 to 16384");
    check_flag_fault("namespace", "Upper", "[a-z0-9_-]");
    check_flag_fault("namespace", "", "1 to 32");
    check_flag_fault("namespace", &"a".repeat(33), "1 to 32");
    check_flag_fault("tcp_address", "4140", "host:port");
    check_flag_fault("nsqd_tcp_address", "", "repeat the flag");
    check_flag_fault("redis", "http://x", "redis://");
    check_flag_fault("redis", "redis://", "redis://");
    check_flag_fault("redis", "redis://h:port", "redis://");
    check_flag_fault("pack_window", "4096ms", "from 0s to 4095ms");
    check_flag_fault("max_delay", "1576800000001", "from 1ms to 438000h");
    check_flag_fault("heartbeat_interval", "61s", "from 1s to 1m");
    check_flag_fault("log_level", "loud", "error, warn, info");
    check_flag_fault("log_format", "xml", "text or json");
    check_flag_fault("require_persistence", "yes", "true or false");
    check_flag_fault("sweep", "soon", "1h, 250ms");
}

#[test]
fn settings_at_their_limits_are_taken() {
    for (name, value) in [
        ("shards", "16384"),
        ("shards", "1"),
        ("pack_window", "4095ms"),
        ("max_delay", "1576800000000"),
        ("max_delay", "1h"),
        ("heartbeat_interval", "60s"),
        ("claim_ttl", "5s"),
    ] {
        let loaded = load(&sources(&[(name, value)], &[]));
        assert!(loaded.is_ok(), "{name} = {value}: {loaded:?}");
    }
}

#[test]
fn settings_that_disagree_name_both_keys_and_the_remedy() {
    check_flag_fault(
        "claim_ttl",
        "4999ms",
        "raise claim_ttl or lower forward_timeout",
    );
    check_flag_fault(
        "instance_ttl",
        "3s",
        "raise instance_ttl or lower instance_heartbeat",
    );
    check_flag_fault(
        "max_body_size",
        "1048575",
        "less than max_msg_size (1048576)",
    );
    check_flag_fault("retry_min", "3s", "at most retry_max (2s)");
    check_flag_fault("backoff_min", "6s", "at most backoff_max (5s)");
    check_flag_fault("insert_bytes_max", "1024", "less than pack_bytes");
    check_flag_fault("unanswered_bytes_max", "1048576", "max_msg_size");
}

#[test]
fn all_faults_are_reported_at_once() {
    let error = load(&sources(&[("shards", "0"), ("pollers", "0")], &[])).unwrap_err();
    assert_eq!(error.faults.len(), 2);
}

#[test]
fn the_effective_settings_read_back_as_the_same_settings() {
    let flags = [
        ("shards", "8"),
        ("nsqd_tcp_address", "a:1,b:2"),
        ("max_delay", "1h"),
    ];
    reads_back(&flags);
    reads_back(&[("shards", "8"), ("lookupd_http_address", "l:4161")]);
}

fn reads_back(flags: &[(&str, &str)]) {
    let loaded = load(&sources(flags, &[])).unwrap();
    let printed = loaded.effective();
    assert!(printed.contains("shards = 8 # from --shards"), "{printed}");
    let (_file, sources) = with_file(&printed);
    let again = load(&sources).unwrap();
    assert_eq!(
        format!("{:?}", loaded.config),
        format!("{:?}", again.config)
    );
}

#[test]
fn passwords_appear_neither_in_the_effective_settings_nor_in_faults() {
    let flags = [("redis", "redis://user:hunter2@h:1/0")];
    let printed = load(&sources(&flags, &[])).unwrap().effective();
    assert!(
        !printed.contains("hunter2") && printed.contains("user:***@h:1/0"),
        "{printed}"
    );
    let error = load(&sources(&[("redis", "rediss:/x://user:hunter2@h")], &[])).unwrap_err();
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

#[test]
fn the_example_is_sound() {
    let (_file, sources) = with_file(include_str!("../../config/example-cluster.toml"));
    let config = load(&sources).unwrap().config;
    assert_eq!(config.forward.nsqd_tcp_addresses.len(), 2);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases is one thing")]
fn files_of_tls_and_tokens_that_cannot_be_used_are_named() {
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let file = |text: &str| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    };
    let path = |file: &tempfile::NamedTempFile| file.path().to_str().unwrap().to_owned();
    let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let (certificate, key) = (
        file(&pair.cert.pem()),
        file(&pair.signing_key.serialize_pem()),
    );
    let (other, junk) = (file(&other), file("junk"));
    let (certificate, key, other, junk) =
        (path(&certificate), path(&key), path(&other), path(&junk));
    let good = [
        ("tls_cert", certificate.as_str()),
        ("tls_key", key.as_str()),
    ];
    assert!(
        load(&sources(&good, &[]))
            .unwrap()
            .config
            .ingest
            .transports
            .tls
            .is_some()
    );
    for (flags, part) in [
        (vec![good[0]], "tls_key = \"\" (the default): is missing"),
        (vec![good[1]], "tls_cert = \"\" (the default): is missing"),
        (
            vec![good[0], ("tls_key", other.as_str())],
            "does not belong to the certificate",
        ),
        (
            vec![good[0], ("tls_key", junk.as_str())],
            "no private key in PEM",
        ),
        (
            vec![("tls_cert", junk.as_str()), good[1]],
            "no certificate in PEM",
        ),
        (
            vec![("tls_cert", "/nonexistent"), good[1]],
            "cannot be read",
        ),
        (vec![("tls_required", "true")], "set tls_cert and tls_key"),
        (
            vec![("tls_client_auth_policy", "require")],
            "set tls_cert and tls_key",
        ),
        (
            vec![
                good[0],
                good[1],
                ("tls_client_auth_policy", "require-verify"),
            ],
            "tls_root_ca_file",
        ),
        (
            vec![("tls_root_ca_file", junk.as_str())],
            "certificates of a CA",
        ),
        (
            vec![("auth_http_address", "https://a/auth")],
            "needs tls_root_ca_file",
        ),
        (vec![("auth_http_address", "a b")], "host:port, or a URL"),
        (vec![("tokens_file", junk.as_str())], "is not TOML"),
        (vec![("tokens_file", "/nonexistent")], "cannot be read"),
        (vec![("max_deflate_level", "10")], "from 1 to 9"),
        (vec![("tls_min_version", "ssl3.0")], "tls1.2 or tls1.3"),
    ] {
        let error = load(&sources(&flags, &[])).unwrap_err().to_string();
        assert!(error.contains(part), "{flags:?}: {error}");
    }
}

#[test]
fn the_commands_token_is_not_printed() {
    let loaded = load(&sources(&[("token", "hunter2-hunter2")], &[])).unwrap();
    assert!(
        !loaded.effective().contains("hunter2"),
        "{}",
        loaded.effective()
    );
    assert!(!loaded.changed().contains("hunter2"));
}
