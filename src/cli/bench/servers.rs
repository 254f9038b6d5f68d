//! The servers that a benchmark runs against: those that it is told of, or its own, started for it and
//! ended with it.

use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::Failure;
use crate::cli::bench::account::{self, Account, GENERATOR, Watched};
use crate::cli::bench::redis_info::{self, Info};
use crate::cli::dev::child::{self, Child};
use crate::cli::dev::program::Program;
use crate::cli::dev::{free, start_nsqd, start_redis};

const ANY_PORT: &str = "127.0.0.1:0";
/// How long nsqd may take to answer over HTTP.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Which servers.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Args {
    /// TCP address of a running nsqdelayd. Without it a Redis, an nsqd and an nsqdelayd are started, and
    /// ended with the benchmark.
    #[arg(long, value_name = "HOST:PORT", requires_all = ["http_address", "nsqd_tcp_address"])]
    tcp_address: Option<String>,
    /// Its HTTP address.
    #[arg(long, value_name = "HOST:PORT")]
    http_address: Option<String>,
    /// TCP address of the nsqd that it delivers to: what is delivered is read back from it.
    #[arg(long, value_name = "HOST:PORT")]
    nsqd_tcp_address: Option<String>,
    /// HTTP address of that nsqd: the topics of the benchmark are deleted there.
    #[arg(long, value_name = "HOST:PORT")]
    nsqd_http_address: Option<String>,
    /// Address of its Redis, for what that says of its memory.
    #[arg(long, value_name = "HOST:PORT")]
    redis_address: Option<String>,
    /// A process of the running set-up whose processor time and memory are counted, for example
    /// redis=1234. Repeat it for several.
    #[arg(long, value_name = "NAME=PID", value_parser = account::watched)]
    pid: Vec<Watched>,
    /// appendfsync of the Redis that is started: always, everysec or no.
    #[arg(
        long,
        default_value = "everysec",
        value_name = "POLICY",
        conflicts_with = "tcp_address"
    )]
    appendfsync: String,
    /// Directory for the files of the servers that are started; kept. Without it a fresh one is made and
    /// removed.
    #[arg(long, value_name = "DIR", conflicts_with = "tcp_address")]
    data_dir: Option<PathBuf>,
    /// Settings of the nsqdelayd that is started, as serve takes them.
    #[arg(
        last = true,
        value_name = "SERVE FLAGS",
        conflicts_with = "tcp_address"
    )]
    serve: Vec<String>,
}

/// Running servers.
#[derive(Debug)]
pub(super) struct Servers {
    pub(super) tcp: String,
    pub(super) http: String,
    pub(super) nsqd_tcp: String,
    nsqd_http: Option<String>,
    pub(super) redis: Option<String>,
    watched: Vec<Watched>,
    own: Option<Own>,
}

/// What was started.
#[derive(Debug)]
struct Own {
    runtime: tokio::runtime::Runtime,
    /// In the order in which they end.
    children: Vec<Child>,
    /// To be removed.
    fresh_dir: Option<PathBuf>,
}

impl Servers {
    /// Those of `args`, which answer.
    pub(super) fn of(args: &Args) -> Result<Self, Failure> {
        let me = Watched {
            name: GENERATOR.to_owned(),
            pid: std::process::id(),
        };
        let (Some(tcp), Some(http), Some(nsqd_tcp)) = (
            &args.tcp_address,
            &args.http_address,
            &args.nsqd_tcp_address,
        ) else {
            return Self::start(args, me);
        };
        let mut watched = args.pid.clone();
        watched.push(me);
        account::read(&watched)?;
        Ok(Self {
            tcp: tcp.clone(),
            http: http.clone(),
            nsqd_tcp: nsqd_tcp.clone(),
            nsqd_http: args.nsqd_http_address.clone(),
            redis: args.redis_address.clone(),
            watched,
            own: None,
        })
    }

    /// Starts all three. On the main thread: children end with the thread that starts them.
    fn start(args: &Args, me: Watched) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Failure::because)?;
        let fresh_dir = args.data_dir.is_none().then(|| {
            let name = format!("nsqdelayd-bench-{:016x}", fastrand::u64(..));
            std::env::temp_dir().join(name)
        });
        let dir = args.data_dir.clone().or(fresh_dir.clone());
        let dir = dir.unwrap_or_default();
        std::fs::create_dir_all(&dir).map_err(|error| {
            Failure::Failed(format!(
                "--data-dir: {} cannot be used: {error}",
                dir.display()
            ))
        })?;
        let address = |what| free(what, ANY_PORT);
        let (redis, nsqd_tcp, nsqd_http) = (address("redis")?, address("nsqd")?, address("nsqd")?);
        let (tcp, http) = (address("nsqdelayd")?, address("nsqdelayd")?);
        let watch = |name: &str, child: &Child| {
            let name = name.to_owned();
            child.pid().map(|pid| Watched { name, pid })
        };
        let (children, watched) = runtime.block_on(async {
            let redis_child = start_redis(&dir, redis, &args.appendfsync)?;
            // The limits of serve are nsqd's own, and benchmarks stay below them.
            let nsqd_child = start_nsqd(&dir, nsqd_tcp, nsqd_http, &[])?;
            child::answering("redis-server", redis, b"PING\r\n", b"+PONG").await?;
            child::answering("nsqd", nsqd_http, PING, b"HTTP/").await?;
            let serve = start_serve(&dir, args, [tcp, http, redis, nsqd_tcp, nsqd_http])?;
            child::answering("nsqdelayd", http, PING, b"HTTP/1.0 200").await?;
            let watched = [
                watch("nsqdelayd", &serve),
                watch("redis", &redis_child),
                watch("nsqd", &nsqd_child),
                Some(me),
            ];
            let watched: Vec<Watched> = watched.into_iter().flatten().collect();
            Ok::<_, Failure>((vec![serve, nsqd_child, redis_child], watched))
        })?;
        Ok(Self {
            tcp: tcp.to_string(),
            http: http.to_string(),
            nsqd_tcp: nsqd_tcp.to_string(),
            nsqd_http: Some(nsqd_http.to_string()),
            redis: Some(redis.to_string()),
            watched,
            own: Some(Own {
                runtime,
                children,
                fresh_dir,
            }),
        })
    }

    /// What every process has used so far.
    pub(super) fn account(&self) -> Result<Account, Failure> {
        account::read(&self.watched)
    }

    /// What Redis says of itself, if it is known where it is.
    pub(super) fn redis_info(&self) -> Result<Option<Info>, Failure> {
        self.redis.as_deref().map(redis_info::info).transpose()
    }

    /// Deletes a topic that was made for a load. It may be in use by nobody but us.
    pub(super) fn forget(&self, topic: &str) {
        let Some(address) = &self.nsqd_http else {
            return;
        };
        let request =
            format!("POST /topic/delete?topic={topic} HTTP/1.0\r\nContent-Length: 0\r\n\r\n");
        if let Err(error) = exchange(address, &request) {
            tracing::debug!(%error, topic, "not deleted");
        }
    }

    /// Messages of a topic that nsqd had to put on its disk.
    pub(super) fn nsqd_backend_depth(&self, topic: &str) -> Option<u64> {
        let address = self.nsqd_http.as_ref()?;
        let request = format!("GET /stats?format=json&topic={topic} HTTP/1.0\r\n\r\n");
        let response = exchange(address, &request).ok()?;
        let (_, body) = response.split_once("\r\n\r\n")?;
        let stats: serde_json::Value = serde_json::from_str(body).ok()?;
        let topics = stats.get("topics")?.as_array()?;
        let depth = |value: &serde_json::Value| value.get("backend_depth")?.as_u64();
        let of_topic = |topic: &serde_json::Value| {
            let channels = topic.get("channels")?.as_array()?;
            Some(depth(topic)? + channels.iter().filter_map(depth).sum::<u64>())
        };
        Some(topics.iter().filter_map(of_topic).sum())
    }

    /// Messages and packs that nsqdelayd has stored since it started, if it says so.
    pub(super) fn packed(&self) -> Option<(f64, f64)> {
        let response = exchange(&self.http, "GET /metrics HTTP/1.0\r\n\r\n").ok()?;
        let number = |name: &str| {
            let line = response.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse().ok()
        };
        Some((
            number("nsqdelayd_records_stored_total ")?,
            number("nsqdelayd_packs_stored_total ")?,
        ))
    }

    /// Ends what was started.
    pub(super) fn end(mut self) {
        if let Some(mut own) = self.own.take() {
            for child in &mut own.children {
                own.runtime.block_on(child.end());
            }
            if let Some(dir) = own.fresh_dir
                && let Err(error) = std::fs::remove_dir_all(&dir)
            {
                tracing::warn!(%error, dir = %dir.display(), "not removed");
            }
        }
    }
}

const PING: &[u8] = b"GET /ping HTTP/1.0\r\n\r\n";

fn exchange(address: &str, request: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.write_all(request.as_bytes())?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    Ok(response)
}

/// This program, as a server.
fn start_serve(
    dir: &Path,
    args: &Args,
    [tcp, http, redis, nsqd_tcp, nsqd_http]: [SocketAddr; 5],
) -> Result<Child, Failure> {
    let program = Program {
        name: "nsqdelayd",
        path: std::env::current_exe().map_err(Failure::because)?,
    };
    let redis = format!("redis://{redis}");
    let text = |address: SocketAddr| address.to_string();
    let [tcp, http, nsqd_tcp, nsqd_http] = [tcp, http, nsqd_tcp, nsqd_http].map(text);
    let settings = [
        ("--tcp-address", &tcp),
        ("--http-address", &http),
        ("--redis", &redis),
        ("--nsqd-tcp-address", &nsqd_tcp),
        ("--nsqd-http-address", &nsqd_http),
    ];
    let mut arguments: Vec<&OsStr> = vec!["serve".as_ref()];
    for (flag, value) in settings {
        arguments.extend([flag.as_ref(), value.as_ref()] as [&OsStr; 2]);
    }
    arguments.extend(args.serve.iter().map(OsStr::new));
    Child::start(&program, &arguments, &dir.join("nsqdelayd.log"))
}
