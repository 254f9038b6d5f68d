//! AUTH, with a real nsqd and with our listener, both asking the same auth server.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use nsqdelayd::ingest::Transports;
use nsqdelayd::ingest::access::{Access, AuthServer as Server, Authd, Tokens};

use super::upgraded::conversation;
use super::{Client, Door, HI, identify, mpub_body, sized, v2};
use crate::support::auth_server::AuthServer;
use crate::support::certificates::{Certificates, Whose};
use crate::support::free_port;
use crate::support::nsqd::Nsqd;

/// nsqd and our listener with the same auth servers.
struct Both {
    auth: AuthServer,
    nsqd: Nsqd,
    door: Door,
    certificates: Certificates,
}

impl Both {
    async fn open() -> Self {
        let auth = AuthServer::start().await;
        let certificates = Certificates::make();
        // The first of them is not there: each asks the next.
        let nobody = format!("127.0.0.1:{}", free_port());
        let somebody = format!("http://{}/auth", auth.address);
        let mut flags = certificates.flags();
        flags.push(format!("--auth-http-address={nobody}"));
        flags.push(format!("--auth-http-address={somebody}"));
        flags.push("--max-body-size=5000".to_owned());
        flags.push("--max-msg-size=1000".to_owned());
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let servers = [nobody, somebody].map(|server| Server::parse(&server).unwrap());
        let authd = Authd::new(servers.to_vec(), None).unwrap();
        let tls = certificates.door("");
        let door = Door::open_with(|config| {
            config.access = Access::new(Some(authd), Tokens::default()).map(Arc::new);
            config.transports = Transports {
                tls: Some(tls),
                snappy: true,
                deflate: true,
                max_deflate_level: 6,
                ..Transports::default()
            };
        });
        Self {
            nsqd: Nsqd::start_with(&flags),
            door: door.await,
            auth,
            certificates,
        }
    }

    fn addresses(&self) -> [SocketAddr; 2] {
        [self.nsqd.tcp.parse().unwrap(), self.door.address]
    }
}

fn auth(secret: &str) -> Vec<u8> {
    [b"AUTH\n".as_slice(), &sized(secret.as_bytes())].concat()
}

const GRANTED: &str = r#"{"identity":"who \u003c\u0026\u003e","identity_url":"http://id/\xc3\xa9","permission_count":1}"#;

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table of cases is one thing")]
async fn auth_is_answered_and_enforced_as_by_nsqd() {
    let both = Both::open().await;
    let publish = [b"PUB t\n".as_slice(), HI].concat();
    let elsewhere = [b"DPUB x 5\n".as_slice(), HI].concat();
    let mpub = [b"MPUB t\n".as_slice(), &mpub_body(&[b"a", b"b"])].concat();
    let denied = |cmd: &str, topic: &str| {
        format!(r#"!E_UNAUTHORIZED AUTH failed for {cmd} on "{topic}" """#)
    };
    let failed = "!E_AUTH_FAILED AUTH failed".to_owned();
    let nobody = "!E_UNAUTHORIZED AUTH no authorizations found".to_owned();
    let (ok, granted) = ("OK".to_owned(), GRANTED.to_owned());
    let two = GRANTED.replace(":1}", ":2}");
    let cases: Vec<(Vec<u8>, Vec<String>)> = vec![
        (
            publish.clone(),
            vec!["!E_AUTH_FIRST AUTH required before PUB".to_owned()],
        ),
        (
            elsewhere.clone(),
            vec!["!E_AUTH_FIRST AUTH required before DPUB".to_owned()],
        ),
        // Before the body, and after nothing but the line.
        (
            b"MPUB t\n".to_vec(),
            vec!["!E_AUTH_FIRST AUTH required before MPUB".to_owned()],
        ),
        (
            [
                b"NOP\n".as_slice(),
                &auth("good"),
                &publish,
                b"NOP\n",
                &publish,
                &mpub,
            ]
            .concat(),
            vec![granted.clone(), ok.clone(), ok.clone(), ok.clone()],
        ),
        (
            [auth("good"), elsewhere.clone()].concat(),
            vec![granted.clone(), denied("DPUB", "x")],
        ),
        (
            [auth("good"), b"MPUB x\n".to_vec()].concat(),
            vec![granted.clone(), denied("MPUB", "x")],
        ),
        (
            [auth("good"), b"MPUB !\n".to_vec()].concat(),
            vec![
                granted.clone(),
                r#"!E_BAD_TOPIC E_BAD_TOPIC MPUB topic name "!" is not valid"#.to_owned(),
            ],
        ),
        (
            [auth("good"), auth("good")].concat(),
            vec![granted.clone(), "!E_INVALID AUTH already set".to_owned()],
        ),
        (
            [auth("wide"), elsewhere.clone(), publish.clone()].concat(),
            vec![granted.clone(), ok.clone(), ok.clone()],
        ),
        (
            [auth("two"), publish.clone()].concat(),
            vec![two, ok.clone()],
        ),
        (
            [auth("subscriber"), publish.clone()].concat(),
            vec![granted.clone(), denied("PUB", "t")],
        ),
        (
            [auth("channel"), publish.clone()].concat(),
            vec![granted.clone(), denied("PUB", "t")],
        ),
        (
            [auth("no-channels"), publish.clone()].concat(),
            vec![granted.clone(), denied("PUB", "t")],
        ),
        (
            [auth("case"), publish.clone()].concat(),
            vec![
                r#"{"identity":"I","identity_url":"","permission_count":1}"#.to_owned(),
                ok.clone(),
            ],
        ),
        (auth("nobody"), vec![nobody.clone()]),
        (auth("null"), vec![nobody]),
        (auth("zero"), vec![failed.clone()]),
        (auth("negative"), vec![failed.clone()]),
        (auth("fraction"), vec![failed.clone()]),
        (auth("text"), vec![failed.clone()]),
        (auth("permission"), vec![failed.clone()]),
        (auth("topic-regex"), vec![failed.clone()]),
        (auth("channel-regex"), vec![failed.clone()]),
        (auth("not-json"), vec![failed.clone()]),
        (auth("empty"), vec![failed.clone()]),
        (auth("unknown"), vec![failed.clone()]),
        (auth("a b&c=d\u{e9}+%"), vec![failed]),
        (
            b"AUTH x\n".to_vec(),
            vec!["!E_INVALID AUTH invalid number of parameters".to_owned()],
        ),
        (
            b"AUTH \n".to_vec(),
            vec!["!E_INVALID AUTH invalid number of parameters".to_owned()],
        ),
        (
            b"AUTH\n\0\0\0\0".to_vec(),
            vec!["!E_BAD_BODY AUTH invalid body size 0".to_owned()],
        ),
        (
            b"AUTH\n\0\0\x13\x89".to_vec(),
            vec!["!E_BAD_BODY AUTH body too big 5001 > 5000".to_owned()],
        ),
        (
            b"FIN x\n".to_vec(),
            vec!["!E_INVALID cannot FIN in current state".to_owned()],
        ),
    ];
    let mut faults = String::new();
    for (sends, wanted) in cases {
        let mut asked = Vec::new();
        for address in both.addresses() {
            let seen = super::transcript(address, &v2(&[&sends]), super::Then::Closes).await;
            if seen != wanted {
                writeln!(
                    faults,
                    "{address} {}: {seen:?}\n  wanted {wanted:?}",
                    sends.escape_ascii()
                )
                .unwrap();
            }
            asked.push(both.auth.take_asked());
        }
        if asked[0] != asked[1] {
            writeln!(faults, "{}: asked {asked:?}", sends.escape_ascii()).unwrap();
        }
    }
    assert!(faults.is_empty(), "{faults}");
}

#[tokio::test]
async fn what_was_granted_is_asked_for_again_when_it_expires() {
    let both = Both::open().await;
    for (secret, wanted) in [
        (
            "changes",
            r#"!E_UNAUTHORIZED AUTH failed for PUB on "t" """#,
        ),
        ("fails-later", "!E_AUTH_FAILED AUTH failed"),
    ] {
        for address in both.addresses() {
            let mut client = Client::connect(address).await;
            client.send(&v2(&[&auth(secret)])).await;
            client.expect(GRANTED).await;
            // Until the second for which it is good is over.
            let answer = loop {
                client.send(&[b"PUB t\n".as_slice(), HI].concat()).await;
                match client.next().await.as_deref() {
                    Some("OK") => tokio::task::yield_now().await,
                    other => break other.unwrap().to_owned(),
                }
            };
            assert_eq!(answer, wanted, "{secret} {address}");
            client.expect_closed().await;
            assert_eq!(both.auth.take_asked().len(), 2, "{secret} {address}");
        }
    }
}

#[tokio::test]
async fn identify_says_that_auth_is_required_and_upgrades_come_before() {
    let both = Both::open().await;
    let publish = [b"PUB t\n".as_slice(), HI].concat();
    for (wish, tls) in [
        ("", false),
        (r#","snappy":true"#, false),
        (r#","tls_v1":true,"deflate":true"#, true),
    ] {
        let json = format!(r#"{{"feature_negotiation":true{wish}}}"#);
        let mut seen = Vec::new();
        for address in both.addresses() {
            let client = both.certificates.client(Some(Whose::Client));
            let sends: [&[u8]; 2] = [&auth("good"), &publish];
            seen.push(conversation(address, &json, client, &sends, true).await);
        }
        assert!(seen[0][0].contains("\"auth_required\":true"), "{seen:?}");
        assert_eq!(seen[0], seen[1]);
        let asked = both.auth.take_asked();
        assert_eq!(asked[0], asked[1]);
        let tls = format!("common_name=&remote_ip=127.0.0.1&secret=good&tls={tls}");
        assert_eq!(asked, [tls.clone(), tls]);
    }
}

#[tokio::test]
async fn the_name_on_a_certificate_is_told_to_the_auth_server() {
    let mut both = Both::open().await;
    let tls = both.certificates.door("require-verify");
    let servers = vec![Server::parse(&both.auth.address.to_string()).unwrap()];
    both.door = Door::open_with(|config| {
        config.access =
            Access::new(Some(Authd::new(servers, None).unwrap()), Tokens::default()).map(Arc::new);
        config.transports.tls = Some(tls);
    })
    .await;
    let client = both.certificates.client(Some(Whose::Client));
    let json = r#"{"feature_negotiation":true,"tls_v1":true}"#;
    let seen = conversation(both.door.address, json, client, &[&auth("good")], true).await;
    assert_eq!(seen.last().unwrap(), GRANTED);
    let wanted = "common_name=producer&remote_ip=127.0.0.1&secret=good&tls=true";
    assert_eq!(both.auth.take_asked(), [wanted]);
}

#[tokio::test]
async fn tokens_of_the_file_are_taken_as_secrets() {
    let tokens = Tokens::parse(
        r#"
        [[token]]
        name = "billing"
        secret = "0123456789abcdef"
        roles = ["publish"]
        topics = ["t", "bills.*"]
        "#,
    );
    let access = Access::new(None, tokens.unwrap()).map(Arc::new);
    let door = Door::open_with(|config| config.access = access).await;
    let publish = [b"PUB bills.eu\n".as_slice(), HI].concat();
    for (sends, wanted) in [
        (
            [
                identify("{}"),
                auth("0123456789abcdef"),
                publish.clone(),
                b"PUB x\n".to_vec(),
                HI.to_vec(),
            ]
            .concat(),
            vec![
                "OK",
                r#"{"identity":"billing","identity_url":"","permission_count":2}"#,
                "OK",
                r#"!E_UNAUTHORIZED AUTH failed for PUB on "x" """#,
            ],
        ),
        (auth("0123456789abcdee"), vec!["!E_AUTH_FAILED AUTH failed"]),
        (
            b"CANCEL x\n".to_vec(),
            vec!["!E_AUTH_FIRST AUTH required before CANCEL"],
        ),
        (
            [auth("0123456789abcdef"), b"CANCEL x\n".to_vec()].concat(),
            vec![
                r#"{"identity":"billing","identity_url":"","permission_count":2}"#,
                "!E_UNAUTHORIZED AUTH failed for CANCEL",
            ],
        ),
        (
            b"MDPUB t 5\n".to_vec(),
            vec!["!E_AUTH_FIRST AUTH required before MDPUB"],
        ),
    ] {
        let seen = super::transcript(door.address, &v2(&[&sends]), super::Then::Closes).await;
        assert_eq!(seen, wanted);
    }
}
