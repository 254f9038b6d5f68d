//! Connections to real nsqds in TLS, compressed, and with AUTH.

use nsqdelayd::forward::{Carriage, Config, Error, Forward, Secret};
use nsqdelayd::transport::Compression;
use serde_json::Value;

use super::{config, due, numbered, start, start_later};
use crate::support::app::App;
use crate::support::auth_server::AuthServer;
use crate::support::certificates::{Certificates, Whose};
use crate::support::consumer::Consumer;
use crate::support::http;
use crate::support::nsqd::Nsqd;
use crate::support::redis::Redis;
use crate::support::wait;

const COMPRESSIONS: [Option<Compression>; 3] = [
    None,
    Some(Compression::Snappy),
    Some(Compression::Deflate(6)),
];

fn nsqd_with(certificates: &Certificates, more: &[&str]) -> Nsqd {
    let mut flags = certificates.flags();
    flags.extend(more.iter().map(|flag| (*flag).to_owned()));
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    Nsqd::start_with(&flags)
}

fn carried(nsqd: &Nsqd, carriage: Carriage) -> Config {
    Config {
        carriage,
        ..config(&[&nsqd.tcp])
    }
}

/// What nsqd says of its only producer that has published.
fn producer(nsqd: &Nsqd) -> Value {
    let stats = http::get(&nsqd.http, "/stats?format=json&include_clients=true").json();
    stats["producers"][0].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_arrives_byte_for_byte_in_tls_and_compressed() {
    let certificates = Certificates::make();
    for in_tls in [false, true] {
        for compression in COMPRESSIONS {
            let nsqd = nsqd_with(&certificates, &[]);
            let carriage = Carriage {
                tls: in_tls.then(|| certificates.client(None)),
                compression,
                auth_secret: None,
            };
            let pool = start(carried(&nsqd, carriage)).await;
            let mut messages = numbered("t", 1000);
            messages.push(due("t", (0..=255).collect::<Vec<u8>>()));
            messages.push(due("t", vec![0; 900_000]));
            // Nothing that any compression makes smaller.
            let noise = std::iter::repeat_with(|| fastrand::u8(..)).take(900_000);
            messages.push(due("t", noise.collect::<Vec<u8>>()));
            let facts = pool.publish(messages.clone()).await;
            assert!(facts.iter().all(Result::is_ok), "{in_tls} {compression:?}");
            let alone = pool.publish(numbered("alone", 1)).await;
            assert_eq!(alone, [Ok(())], "{in_tls} {compression:?}");
            let producer = producer(&nsqd);
            assert_eq!(producer["tls"], in_tls, "{producer}");
            let snappy = compression == Some(Compression::Snappy);
            assert_eq!(producer["snappy"], snappy, "{producer}");
            assert_eq!(producer["deflate"], compression.is_some() && !snappy);
            let consumer = Consumer::start(&nsqd.tcp, "t");
            consumer.wait_distinct(messages.len());
            assert!(messages.iter().all(|m| consumer.copies_of(&m.body) == 1));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_nsqd_that_wants_our_certificate_gets_it_and_nobody_elses() {
    let certificates = Certificates::make();
    let nsqd = nsqd_with(
        &certificates,
        &[
            "--tls-client-auth-policy=require-verify",
            "--tls-required=tcp-https",
        ],
    );
    let shows = |whose| Carriage {
        tls: Some(certificates.client(whose)),
        ..Carriage::default()
    };
    let pool = start(carried(&nsqd, shows(Some(Whose::Client)))).await;
    assert_eq!(pool.publish(numbered("t", 3)).await, vec![Ok(()); 3]);
    assert_eq!(nsqd.message_count("t"), 3);
    for carriage in [
        shows(None),
        shows(Some(Whose::Stranger)),
        Carriage::default(),
    ] {
        let pool = start_later(carried(&nsqd, carriage));
        let facts = pool.publish(numbered("t", 1)).await;
        assert_eq!(facts, [Err(Error::NotSent)]);
    }
    assert_eq!(nsqd.message_count("t"), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_said_to_an_nsqd_without_tls_or_of_another_ca() {
    let (certificates, others) = (Certificates::make(), Certificates::make());
    let (plain, foreign) = (Nsqd::start(), nsqd_with(&others, &[]));
    for nsqd in [&plain, &foreign] {
        let tls = Some(certificates.client(None));
        let pool = start_later(carried(
            nsqd,
            Carriage {
                tls,
                ..Carriage::default()
            },
        ));
        assert_eq!(pool.publish(numbered("t", 1)).await, [Err(Error::NotSent)]);
        assert_eq!(nsqd.message_count("t"), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_secret_is_said_where_auth_is_required() {
    let auth = AuthServer::start().await;
    let certificates = Certificates::make();
    let address = format!("--auth-http-address={}", auth.address);
    let nsqd = nsqd_with(&certificates, &[&address]);
    let says = |secret: &str, compression| Carriage {
        tls: Some(certificates.client(None)),
        compression,
        auth_secret: Some(Secret(secret.to_owned())),
    };
    for compression in COMPRESSIONS {
        let pool = start(carried(&nsqd, says("good", compression))).await;
        assert_eq!(pool.publish(numbered("t", 3)).await, vec![Ok(()); 3]);
        let facts = pool.publish(numbered("other", 1)).await;
        let Err(Error::Refused(text)) = &facts[0] else {
            panic!("{facts:?}");
        };
        assert!(text.starts_with("E_UNAUTHORIZED"), "{text}");
        assert_eq!(pool.publish(numbered("t", 3)).await, vec![Ok(()); 3]);
    }
    assert!(
        auth.take_asked()
            .iter()
            .any(|query| query.contains("secret=good"))
    );
    for carriage in [says("bad", None), says("nobody", None), Carriage::default()] {
        let pool = start_later(carried(&nsqd, carriage));
        assert_eq!(pool.publish(numbered("t", 1)).await, [Err(Error::NotSent)]);
        assert!(!pool.forward.available());
    }
    // Who has a secret and is not asked for it keeps it.
    let open = Nsqd::start();
    let mut carriage = says("good", None);
    carriage.tls = None;
    let pool = start(carried(&open, carriage)).await;
    assert_eq!(pool.publish(numbered("t", 1)).await, [Ok(())]);
}

/// The settings, as a user writes them, to an nsqd that lets nobody in without TLS.
#[test]
fn the_program_delivers_in_tls_with_a_certificate_of_its_own() {
    let certificates = Certificates::make();
    let redis = Redis::start();
    let nsqd = nsqd_with(
        &certificates,
        &[
            "--tls-client-auth-policy=require-verify",
            "--tls-required=tcp-https",
        ],
    );
    let path = |path: std::path::PathBuf| path.display().to_string();
    let app = App::builder()
        .redis(&redis)
        .nsqd(&nsqd)
        .env("NSQDELAYD_NSQD_TLS", "true")
        .env("NSQDELAYD_NSQD_SNAPPY", "true")
        .env("NSQDELAYD_NSQD_AUTH_SECRET", "kept-from-the-log")
        .flag("--nsqd-tls-root-ca-file", &path(certificates.ca()))
        .flag(
            "--nsqd-tls-cert",
            &path(certificates.certificate(Whose::Client)),
        )
        .flag("--nsqd-tls-key", &path(certificates.key(Whose::Client)))
        .start();
    app.producer().dpub("t", 10, b"in TLS");
    wait::until("the message to be in nsqd", || nsqd.message_count("t") == 1);
    let producer = producer(&nsqd);
    assert_eq!(producer["tls"], true, "{producer}");
    assert_eq!(producer["snappy"], true, "{producer}");
    assert!(!app.log().contains("kept-from-the-log"));
}

#[test]
fn settings_of_tls_that_cannot_be_meant_are_refused() {
    let certificates = Certificates::make();
    let redis = Redis::start();
    let nsqd = Nsqd::start();
    let ca = certificates.ca().display().to_string();
    let key = certificates.key(Whose::Client).display().to_string();
    let builder = || App::builder().redis(&redis).nsqd(&nsqd);
    let tls = || builder().env("NSQDELAYD_NSQD_TLS", "true");
    let cases = [
        (tls(), "nsqd_tls_root_ca_file"),
        (
            tls().flag("--nsqd-tls-root-ca-file", &key),
            "nsqd_tls_root_ca_file",
        ),
        (
            builder().flag("--nsqd-tls-root-ca-file", &ca),
            "nsqd_tls_root_ca_file",
        ),
        (
            tls()
                .flag("--nsqd-tls-root-ca-file", &ca)
                .flag("--nsqd-tls-key", &key),
            "nsqd_tls_cert",
        ),
        (
            builder()
                .env("NSQDELAYD_NSQD_SNAPPY", "true")
                .env("NSQDELAYD_NSQD_DEFLATE", "true"),
            "nsqd_deflate",
        ),
    ];
    for (builder, culprit) in cases {
        let (status, log) = builder.start_refused();
        assert_eq!(status.code(), Some(64), "{log}");
        assert!(log.contains(culprit), "{culprit}: {log}");
    }
}
