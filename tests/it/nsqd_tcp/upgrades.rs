//! TLS, snappy and deflate: the same conversations with a real nsqd of the same flags and with our
//! listener.

use std::fmt::Write as _;
use std::sync::Arc;

use nsqdelayd::ingest::{TlsRequired, Transports};
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::version::{TLS12, TLS13};

use super::Then::Waits;
use super::upgraded::conversation;
use super::{Door, HI, MAX_BODY_SIZE, MAX_MSG_SIZE, identify, mpub_body, sized, transcript, v2};
use crate::support::certificates::{Certificates, Whose};
use crate::support::nsqd::Nsqd;

/// What both are told.
#[derive(Clone, Copy)]
pub(super) struct Offer {
    pub(super) tls: bool,
    pub(super) required: &'static str,
    pub(super) policy: &'static str,
    pub(super) snappy: bool,
    pub(super) deflate: bool,
    pub(super) max_deflate_level: u32,
}

/// All, and nothing required.
pub(super) const ALL: Offer = Offer {
    tls: true,
    required: "false",
    policy: "",
    snappy: true,
    deflate: true,
    max_deflate_level: 6,
};

/// nsqd and our listener, told the same.
pub(super) struct Both {
    pub(super) nsqd: Nsqd,
    pub(super) door: Door,
    pub(super) certificates: Certificates,
    faults: String,
}

impl Both {
    pub(super) async fn open(offer: Offer) -> Self {
        let certificates = Certificates::make();
        let mut flags = vec![
            format!("--max-msg-size={MAX_MSG_SIZE}"),
            format!("--max-body-size={MAX_BODY_SIZE}"),
            format!("--snappy={}", offer.snappy),
            format!("--deflate={}", offer.deflate),
            format!("--max-deflate-level={}", offer.max_deflate_level),
            format!("--tls-required={}", offer.required),
        ];
        if offer.tls {
            flags.extend(certificates.flags());
        }
        if !offer.policy.is_empty() {
            flags.push(format!("--tls-client-auth-policy={}", offer.policy));
        }
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let tls = offer.tls.then(|| certificates.door(offer.policy));
        let transports = Transports {
            tls,
            tls_required: match (offer.required, offer.policy) {
                ("tcp-https", _) => TlsRequired::Tcp,
                ("false", "") => TlsRequired::Nobody,
                _ => TlsRequired::Everybody,
            },
            snappy: offer.snappy,
            deflate: offer.deflate,
            max_deflate_level: offer.max_deflate_level,
        };
        Self {
            nsqd: Nsqd::start_with(&flags),
            door: Door::open_with(|config| config.transports = transports).await,
            certificates,
            faults: String::new(),
        }
    }

    fn client(&self) -> Arc<ClientConfig> {
        self.certificates.client(None)
    }

    /// The same with both; answers what was seen.
    pub(super) async fn same(
        &mut self,
        json: &str,
        tls: Arc<ClientConfig>,
        sends: &[&[u8]],
        closes: bool,
    ) -> Vec<String> {
        let nsqd = self.nsqd.tcp.parse().unwrap();
        let theirs = conversation(nsqd, json, Arc::clone(&tls), sends, closes).await;
        let ours = conversation(self.door.address, json, tls, sends, closes).await;
        if theirs != ours {
            let sends = sends.concat().escape_ascii().to_string();
            writeln!(
                self.faults,
                "{json}, then {sends:.200}\n  nsqd {theirs:?}\n  ours {ours:?}"
            )
            .unwrap();
        }
        theirs
    }

    fn check(&self) {
        assert!(self.faults.is_empty(), "{}", self.faults);
    }
}

fn asks(what: &str) -> String {
    format!(r#"{{"feature_negotiation":true{what}}}"#)
}

/// All that there is to ask.
const WISHES: [&str; 12] = [
    "",
    r#","tls_v1":true"#,
    r#","snappy":true"#,
    r#","deflate":true"#,
    r#","deflate":true,"deflate_level":1"#,
    r#","deflate":true,"deflate_level":9"#,
    r#","deflate":true,"deflate_level":-5"#,
    r#","deflate":true,"deflate_level":99999999999"#,
    r#","tls_v1":true,"snappy":true"#,
    r#","tls_v1":true,"deflate":true,"deflate_level":3"#,
    r#","snappy":true,"deflate":true"#,
    r#","tls_v1":true,"snappy":true,"deflate":true"#,
];

#[tokio::test]
async fn every_upgrade_is_negotiated_and_carried_as_by_nsqd() {
    let mut both = Both::open(ALL).await;
    let client = both.client();
    let long = vec![b'x'; MAX_MSG_SIZE];
    let pub_long = [b"PUB t\n".as_slice(), &sized(&long)].concat();
    let mpub = [b"MPUB t\n".as_slice(), &mpub_body(&[&long, b"a", &long])].concat();
    let refused = [b"PUB t\n", HI, b"NOP\nPUB !\n"].concat();
    for wish in WISHES {
        let json = asks(wish);
        let good: [&[u8]; 4] = [&pub_long, b"NOP\nPUB t\n", HI, &mpub];
        let seen = both.same(&json, Arc::clone(&client), &good, true).await;
        let both_compressions = wish.contains("snappy") && wish.contains("deflate");
        let oks = seen.iter().filter(|frame| *frame == "OK").count();
        assert_eq!(oks >= 3, !both_compressions, "{wish}: {seen:?}");
        both.same(&json, Arc::clone(&client), &[&refused], false)
            .await;
        both.same(
            &json,
            Arc::clone(&client),
            &[b"PUB t\n\0\0\0\x09half"],
            true,
        )
        .await;
    }
    both.check();
}

#[tokio::test]
async fn what_is_off_is_not_offered() {
    for offer in [
        Offer {
            tls: false,
            snappy: false,
            ..ALL
        },
        Offer {
            deflate: false,
            max_deflate_level: 3,
            ..ALL
        },
        Offer {
            max_deflate_level: 9,
            ..ALL
        },
    ] {
        let mut both = Both::open(offer).await;
        let client = both.client();
        for wish in WISHES {
            let json = asks(wish);
            both.same(&json, Arc::clone(&client), &[b"PUB t\n", HI], true)
                .await;
        }
        // Without feature_negotiation nothing is.
        let json = r#"{"tls_v1":true,"snappy":true,"deflate":true}"#;
        both.same(json, Arc::clone(&client), &[b"PUB t\n", HI], true)
            .await;
        both.check();
    }
}

#[tokio::test]
async fn a_repeated_identify_changes_the_compression() {
    let mut both = Both::open(ALL).await;
    let client = both.client();
    let plain = identify(&asks(""));
    for wish in [
        r#","snappy":true"#,
        r#","deflate":true"#,
        r#","tls_v1":true"#,
    ] {
        let json = asks(wish);
        let sends: [&[u8]; 4] = [b"PUB t\n", HI, &plain, b"CLS\n"];
        both.same(&json, Arc::clone(&client), &sends, false).await;
    }
    both.check();
}

#[tokio::test]
async fn without_tls_all_but_identify_is_refused_when_it_is_required() {
    for required in ["true", "tcp-https"] {
        let offer = Offer { required, ..ALL };
        let mut both = Both::open(offer).await;
        let client = both.client();
        for line in [
            "PUB t", "PUB", "DPUB t x", "MPUB !", "NOP", "FIN", "AUTH", "SUB a b", "FOO", "", " ",
        ] {
            let sends = v2(&[format!("{line}\r\n").as_bytes()]);
            let name = line.split(' ').next().unwrap();
            let want = format!("!E_INVALID cannot {name} in current state (TLS required)");
            for address in [both.nsqd.tcp.parse().unwrap(), both.door.address] {
                let seen = transcript(address, &sends, Waits).await;
                assert_eq!(seen, std::slice::from_ref(&want), "{line:?}");
            }
        }
        for wish in ["", r#","snappy":true"#, r#","tls_v1":true,"deflate":true"#] {
            let json = asks(wish);
            both.same(
                &json,
                Arc::clone(&client),
                &[b"PUB t\n", HI, b"CLS\n"],
                false,
            )
            .await;
        }
        both.check();
    }
}

#[tokio::test]
async fn certificates_of_clients_are_looked_at_as_by_nsqd() {
    for policy in ["require", "require-verify"] {
        let mut both = Both::open(Offer { policy, ..ALL }).await;
        let json = asks(r#","tls_v1":true"#);
        for shows in [None, Some(Whose::Client), Some(Whose::Stranger)] {
            let taken = match shows {
                None => false,
                Some(Whose::Stranger) => policy == "require",
                Some(_) => true,
            };
            for version in [&TLS12, &TLS13] {
                let client = both.certificates.client_of(shows, &[version]);
                let seen = both.same(&json, client, &[b"PUB t\n", HI], true).await;
                let published = seen.last().is_some_and(|frame| frame == "OK");
                // With TLS 1.2 the client learns it in the handshake, with 1.3 after it.
                assert_eq!(published, taken, "{policy} {shows:?}: {seen:?}");
            }
        }
        both.check();
    }
}

#[tokio::test]
async fn what_is_no_tls_is_told_in_nsqds_words() {
    let both = Both::open(ALL).await;
    let json = asks(r#","tls_v1":true"#);
    for (garbage, told) in [
        (
            b"GET / HTTP/1.0\r\n\r\n".as_slice(),
            "!E_IDENTIFY_FAILED IDENTIFY failed tls: first record does not look like a TLS handshake",
        ),
        (b"", "!E_IDENTIFY_FAILED IDENTIFY failed EOF"),
    ] {
        for address in [both.nsqd.tcp.parse().unwrap(), both.door.address] {
            let mut client = super::Client::connect(address).await;
            client.send(&v2(&[&identify(&json)])).await;
            assert!(client.next().await.unwrap().contains("\"tls_v1\":true"));
            client.send(garbage).await;
            if garbage.is_empty() {
                client.close_writing().await;
            }
            client.expect(told).await;
            client.expect_closed().await;
        }
    }
}
