//! `nsqdelayd dev`: a private Redis and nsqd as child processes, then what `serve` does.

pub(super) mod child;
pub(super) mod program;

use std::ffi::OsStr;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use tracing::info;

use crate::app::{App, Signals};
use crate::cli::Failure;
use crate::cli::dev::child::Child;
use crate::cli::output;
use crate::cli::serve;
use crate::cli::settings::Settings;
use crate::config::{self, Config, Loaded};
use crate::telemetry;

pub(super) const EXAMPLES: &str = "\
Examples:
  nsqdelayd dev                              messages are kept in ./nsqdelayd-data
  nsqdelayd dev --data-dir /tmp/try --tcp-address 127.0.0.1:0 --http-address 127.0.0.1:0
  nsqdelayd dev --nsqd-tcp-address 127.0.0.1:5150 --nsqd-http-address 127.0.0.1:5151

All settings of serve apply, but for --redis: dev starts its own.";

const LOOPBACK: &str = "127.0.0.1";
const NSQD_TCP: &str = "127.0.0.1:4150";
const NSQD_HTTP: &str = "127.0.0.1:4151";

/// What `dev` is told beside the settings.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directory of Redis's and nsqd's files and logs. What is pending in it survives.
    #[arg(long, value_name = "DIR", default_value = "./nsqdelayd-data")]
    data_dir: PathBuf,
    /// Port of the private Redis on 127.0.0.1; 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    redis_port: u16,
    #[command(flatten)]
    settings: Settings,
}

/// Where the children listen.
#[derive(Debug)]
struct Addresses {
    redis: SocketAddr,
    nsqd_tcp: SocketAddr,
    nsqd_http: SocketAddr,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    if args.settings.given("redis").is_some() {
        return Err(Failure::Usage(
            "--redis: dev starts its own Redis; choose its port with --redis-port, or use serve"
                .to_owned(),
        ));
    }
    let addresses = addresses(args)?;
    let mut settings = args.settings.clone();
    settings.set("redis", format!("redis://{}", addresses.redis));
    settings.set("nsqd_tcp_address", addresses.nsqd_tcp.to_string());
    settings.set("nsqd_http_address", addresses.nsqd_http.to_string());
    let loaded = config::load(&settings.sources())?;
    telemetry::start_log(&loaded.config.log).map_err(Failure::because)?;
    serve::log_settings(&loaded);
    let lock = lock(&args.data_dir)?;
    // The children end with the thread that starts them: block_on keeps to this one, the main one.
    let result = serve::block_on(dev(args, &addresses, loaded));
    drop(lock);
    result
}

async fn dev(args: &Args, addresses: &Addresses, loaded: Loaded) -> Result<(), Failure> {
    let mut signals = Signals::catch().map_err(Failure::because)?;
    let mut redis = start_redis(&args.data_dir, addresses.redis, "always")?;
    // What we accept, nsqd must accept later.
    let msg_size = loaded.config.ingest.max_msg_size.to_string();
    let body_size = loaded.config.ingest.max_body_size.to_string();
    let limits: [&OsStr; 4] = [
        "--max-msg-size".as_ref(),
        msg_size.as_ref(),
        "--max-body-size".as_ref(),
        body_size.as_ref(),
    ];
    let mut nsqd = start_nsqd(
        &args.data_dir,
        addresses.nsqd_tcp,
        addresses.nsqd_http,
        &limits,
    )?;
    let result = tokio::select! {
        result = serve_between(args, addresses, loaded.config, &mut signals) => result,
        // What is pending is in Redis's files; there is nothing to drain without either of them.
        died = redis.died() => Err(died),
        died = nsqd.died() => Err(died),
    };
    // Redis last: nothing is left that could write to it.
    nsqd.end().await;
    redis.end().await;
    result
}

/// What `serve` does, once the children answer.
async fn serve_between(
    args: &Args,
    addresses: &Addresses,
    config: Config,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let start = async {
        child::answering("redis-server", addresses.redis, b"PING\r\n", b"+PONG").await?;
        child::answering(
            "nsqd",
            addresses.nsqd_http,
            b"GET /ping HTTP/1.0\r\n\r\n",
            b"HTTP/",
        )
        .await?;
        Box::pin(App::start(config)).await.map_err(Failure::because)
    };
    let app = tokio::select! {
        app = start => app?,
        signal = signals.next() => {
            return Err(Failure::Failed(format!("stopped by {signal} before it was ready")));
        }
    };
    output::line(welcome(args, addresses, &app))?;
    let signal = signals.next().await;
    info!(signal, "asked to stop");
    serve::drain(app, signals).await
}

/// A Redis on loopback that keeps its files under `data_dir`.
pub(super) fn start_redis(
    data_dir: &Path,
    address: SocketAddr,
    appendfsync: &str,
) -> Result<Child, Failure> {
    let dir = made(data_dir, "redis")?;
    let port = address.port().to_string();
    let dir_text = dir.as_os_str();
    let arguments = [
        "--bind".as_ref(),
        LOOPBACK.as_ref(),
        "--port".as_ref(),
        port.as_ref(),
        "--dir".as_ref(),
        dir_text,
        "--appendonly".as_ref(),
        "yes".as_ref(),
        "--appendfsync".as_ref(),
        appendfsync.as_ref(),
        "--save".as_ref(),
        "".as_ref(),
        "--maxmemory-policy".as_ref(),
        "noeviction".as_ref(),
        "--rdbcompression".as_ref(),
        "no".as_ref(),
        "--auto-aof-rewrite-min-size".as_ref(),
        "256mb".as_ref(),
    ];
    Child::start(&program::redis()?, &arguments, &data_dir.join("redis.log"))
}

/// An nsqd that keeps its files under `data_dir`.
pub(super) fn start_nsqd(
    data_dir: &Path,
    tcp: SocketAddr,
    http: SocketAddr,
    more: &[&OsStr],
) -> Result<Child, Failure> {
    let dir = made(data_dir, "nsqd")?;
    let (tcp, http) = (tcp.to_string(), http.to_string());
    let mut arguments: Vec<&OsStr> = vec![
        "--tcp-address".as_ref(),
        tcp.as_ref(),
        "--http-address".as_ref(),
        http.as_ref(),
        "--broadcast-address".as_ref(),
        LOOPBACK.as_ref(),
        "--data-path".as_ref(),
        dir.as_os_str(),
    ];
    arguments.extend(more);
    Child::start(&program::nsqd()?, &arguments, &data_dir.join("nsqd.log"))
}

/// A directory under the data directory, made if it is not there.
fn made(data_dir: &Path, name: &str) -> Result<PathBuf, Failure> {
    let dir = data_dir.join(name);
    std::fs::create_dir_all(&dir)
        .and_then(|()| dir.canonicalize())
        .map_err(|error| unusable(&dir, &error))
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    let path = path.display();
    Failure::Failed(format!(
        "{path} cannot be used: {error}; choose another directory with --data-dir"
    ))
}

/// Two Redis on one directory would destroy what is in it.
fn lock(data_dir: &Path) -> Result<File, Failure> {
    std::fs::create_dir_all(data_dir).map_err(|error| unusable(data_dir, &error))?;
    let path = data_dir.join("lock");
    let file = File::create(&path).map_err(|error| unusable(&path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(unusable(data_dir, &"another `nsqdelayd dev` runs in it"))
        }
        Err(std::fs::TryLockError::Error(error)) => Err(unusable(&path, &error)),
    }
}

fn addresses(args: &Args) -> Result<Addresses, Failure> {
    let one = |flag: &str, key| match args.settings.given(key) {
        None => Ok(None),
        Some([one]) => Ok(Some(one.as_str())),
        Some(_) => Err(Failure::Usage(format!("{flag}: dev starts one nsqd"))),
    };
    let (tcp_flag, http_flag) = ("--nsqd-tcp-address", "--nsqd-http-address");
    let nsqd_tcp = one(tcp_flag, "nsqd_tcp_address")?;
    let nsqd_http = one(http_flag, "nsqd_http_address")?;
    let redis = format!("{LOOPBACK}:{}", args.redis_port);
    Ok(Addresses {
        redis: free("--redis-port", &redis)?,
        nsqd_tcp: given_or_free(tcp_flag, nsqd_tcp, NSQD_TCP)?,
        nsqd_http: given_or_free(http_flag, nsqd_http, NSQD_HTTP)?,
    })
}

/// The address that was given; otherwise the usual one, or a free one if that is taken.
fn given_or_free(flag: &str, given: Option<&str>, usual: &str) -> Result<SocketAddr, Failure> {
    match given {
        Some(given) => free(flag, given),
        None => free(flag, usual).or_else(|_taken| free(flag, &format!("{LOOPBACK}:0"))),
    }
}

/// Checks that an address is free, and chooses the port if it is 0.
pub(super) fn free(flag: &str, address: &str) -> Result<SocketAddr, Failure> {
    TcpListener::bind(address)
        .and_then(|listener| listener.local_addr())
        .map_err(|error| {
            Failure::Failed(format!(
                "{flag}: cannot listen on {address}: {error}; choose another port, or 0"
            ))
        })
}

/// What to try, with the addresses as they are.
fn welcome(args: &Args, addresses: &Addresses, app: &App) -> String {
    let Addresses {
        redis,
        nsqd_tcp,
        nsqd_http,
    } = addresses;
    let (tcp, http) = (app.tcp_address, app.http_address);
    let program = std::env::args()
        .next()
        .unwrap_or_else(|| "nsqdelayd".to_owned());
    let at_http = match http.to_string().as_str() {
        "127.0.0.1:4141" => String::new(),
        other => format!(" --http-address {other}"),
    };
    let at_nsqd = match nsqd_tcp.to_string().as_str() {
        NSQD_TCP => String::new(),
        other => format!(" --nsqd-tcp-address {other}"),
    };
    let dir = args.data_dir.display();
    format!(
        "\
nsqdelayd dev is ready.
  TCP, nsqd's protocol   {tcp}
  HTTP, /v1, /metrics    http://{http}
  nsqd                   {nsqd_tcp}, http://{nsqd_http}
  Redis                  redis://{redis}, kept in {dir}

Try, in another terminal: publish, see it arrive, cancel
  {program} publish{at_http} --topic orders --delay 5s hello
  {program} tail{at_nsqd} --topic orders
  {program} cancel{at_http} <the id that publish printed>

Ctrl-C ends all of it. What is pending is kept for the next start."
    )
}
