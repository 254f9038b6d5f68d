//! One nsqd: whether it is there and takes what we would hand it.

use crate::config::Config;
use crate::doctor::http::Http;
use crate::doctor::limits::{self, Limits};
use crate::finding::{Finding, Level};
use crate::nsq::NSQD_VERSION;
use crate::nsqd::{self, Fault, Wishes};

/// Looks at one nsqd. Publishes nothing.
pub(super) async fn examine(
    address: &str,
    http_address: Option<&str>,
    config: &Config,
) -> Vec<Finding> {
    let wishes = wishes(config);
    let started = tokio::time::Instant::now();
    let identity = match nsqd::dial(address, &wishes).await {
        Ok((_, _, identity)) => identity,
        Err(fault) => return vec![unreachable(address, &fault)],
    };
    let dialled_ms = started.elapsed().as_secs_f64() * 1e3;
    let mut findings = vec![
        Finding::ok(
            "reachable",
            format!("it answers, {dialled_ms:.1} ms after the dial"),
        )
        .number("dial_ms", dialled_ms),
    ];
    match limits::is_nsqdelayd(address, &wishes).await {
        Ok(true) => {
            findings.push(Finding::new(
                Level::Error,
                "identity",
                "this is an nsqdelayd, not an nsqd",
                "what is due would be handed to a delay queue, again and again",
                "set `nsqd_tcp_address` to an nsqd",
            ));
            return findings;
        }
        Ok(false) => findings.push(version(&identity.version)),
        Err(fault) => return vec![unreachable(address, &fault)],
    }
    match limits::ask(address, &wishes).await {
        Ok(limits) => findings.extend(sizes(limits, config)),
        Err(fault) => findings.push(unreachable(address, &fault)),
    }
    findings.extend(over_http(address, http_address).await);
    findings
}

/// How the server would speak to it, with messages pushed at once.
pub(super) fn wishes(config: &Config) -> Wishes {
    Wishes {
        dial_timeout: config.forward.dial_timeout,
        heartbeat_interval: config.forward.heartbeat_interval,
        msg_timeout: None,
        unbuffered: true,
        carriage: config.forward.carriage.clone(),
    }
}

fn unreachable(address: &str, fault: &Fault) -> Finding {
    let remedy = match fault {
        Fault::Refused(text) if text.contains("TLS required") => {
            "set `nsqd_tls` and `nsqd_tls_root_ca_file`"
        }
        Fault::Refused(text) if text.starts_with("E_AUTH") || text.starts_with("E_UNAUTH") => {
            "set `nsqd_auth_secret` to a secret that its auth server knows"
        }
        Fault::AuthRequired => "set `nsqd_auth_secret`",
        Fault::NoTls => "run this nsqd with --tls-cert and --tls-key, or leave `nsqd_tls` out",
        Fault::Tls(_) => {
            "set `nsqd_tls_root_ca_file` to the CA of its certificate, and name it as the certificate does"
        }
        Fault::BadFrame(_) | Fault::Unexpected(_) => {
            "give its TCP address: nsqd's HTTP is another port"
        }
        _ => "start it, or set `nsqd_tcp_address` to where it is",
    };
    Finding::new(
        Level::Error,
        "reachable",
        format!("no conversation with {address}: {fault}"),
        "nothing is delivered to it; with no other nsqd, messages are held",
        remedy,
    )
}

fn version(version: &str) -> Finding {
    let what = format!("nsqd {version}");
    if version == NSQD_VERSION {
        return Finding::ok("version", what);
    }
    Finding::new(
        Level::Remark,
        "version",
        what,
        format!("nsqdelayd is tested with {NSQD_VERSION}"),
        "",
    )
}

fn sizes(limits: Limits, config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let ours = [
        (
            "max_msg_size",
            limits.msg_size,
            config.ingest.max_msg_size,
            "it refuses longer messages, which end as dead letters",
        ),
        (
            "mpub_bytes_max",
            limits.body_size,
            config.forward.mpub_bytes_max,
            "it refuses longer batches, and each such batch is halved until it fits",
        ),
    ];
    for (key, theirs, ours, why) in ours {
        let flag = match key {
            "max_msg_size" => "--max-msg-size",
            _ => "--max-body-size",
        };
        let Some(theirs) = theirs else {
            let what = format!("it does not say its {flag}");
            findings.push(Finding::new(
                Level::Remark,
                key,
                what,
                "it must not be below ours",
                "",
            ));
            continue;
        };
        let what = format!("{flag} is {theirs}, our {key} is {ours}");
        let fits = usize::try_from(theirs).is_ok_and(|theirs| theirs >= ours);
        let finding = if fits {
            Finding::ok(key, what)
        } else {
            let remedy = format!("run nsqd with {flag}={ours}, or set `{key} = {theirs}` here");
            Finding::new(Level::Warning, key, what, why, remedy)
        };
        findings.push(finding.number("nsqd_bytes", theirs).number("bytes", ours));
    }
    let delay = limits.delay_ms.map(|ms| {
        let what = format!("its own DPUB takes delays up to {ms} ms (--max-req-timeout)");
        Finding::ok("dpub_delay", what).number("nsqd_delay_ms_max", ms)
    });
    findings.extend(delay);
    findings
}

/// What only its HTTP API says. Without one nothing is missing that matters.
async fn over_http(tcp_address: &str, given: Option<&str>) -> Vec<Finding> {
    let http = match given {
        Some(address) => Http::at(address).ok(),
        None => Http::beside(tcp_address).await,
    };
    let Some(http) = http else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    match http.ping().await {
        Ok(text) if text == "OK" => findings.push(Finding::ok("health", "its /ping says OK")),
        Ok(text) => findings.push(Finding::new(
            Level::Error,
            "health",
            format!("its /ping says {text:?}"),
            "it could not write to its disk: it may refuse what is handed to it",
            "make room on its disk, and read its log",
        )),
        Err(error) => findings.push(Finding::new(
            Level::Warning,
            "health",
            format!("its HTTP API at {} does not answer: {error}", http.address),
            "its options cannot be read",
            "give its HTTP address with --nsqd-http-address",
        )),
    }
    if let Some(size) = memory_queue(&http).await {
        let finding = if size == 0 {
            Finding::ok("mem_queue_size", "--mem-queue-size is 0")
        } else {
            Finding::new(
                Level::Remark,
                "mem_queue_size",
                format!("--mem-queue-size is {size}"),
                "killed, it loses up to so many messages per topic and channel, also those that \
                 nsqdelayd has delivered to it",
                "run nsqd with --mem-queue-size=0 if that matters",
            )
        };
        findings.push(finding.number("messages", size));
    }
    findings
}

/// Its `--mem-queue-size`.
pub(super) async fn memory_queue(http: &Http) -> Option<u64> {
    http.option("mem_queue_size").await?.as_u64()
}
