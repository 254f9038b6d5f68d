//! The programs of a run: one Redis, two nsqds, three instances, and the proxies between them. What should run and
//! has ended is started again, as a service manager would. Only the thread that made the cluster starts
//! programs: they end with it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use crate::proxy::{Behind, Plant, Proxy};
use crate::recorder::Recorder;
use crate::support::child::{Running, command};
use crate::support::http::Http;
use crate::support::{free_port, tool, wait};

/// Messages that each shard may have in flight: with the shards it bounds what one fault can repeat.
pub(crate) const UNSETTLED_MAX: u64 = 200;
/// Messages of a topic that an nsqd may hold for one instance: so few that instances wait, and nsqds are asked.
const NSQD_DEPTH_MAX: u64 = 20;
/// Shards of the namespace.
pub(crate) const SHARDS: u64 = 16;
/// A program that ends at once is not started again sooner.
const RESTART_PAUSE: Duration = Duration::from_millis(200);

/// One program, which should run or should not.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) name: String,
    line: Vec<String>,
    /// More arguments, for as long as a fault lasts.
    extra: Mutex<Vec<String>>,
    log: PathBuf,
    wanted: AtomicBool,
    running: Mutex<Option<Running>>,
    started: Mutex<Instant>,
}

impl Program {
    fn new(name: &str, dir: &Path, line: Vec<String>) -> Self {
        Self {
            name: name.to_owned(),
            line,
            extra: Mutex::default(),
            log: dir.join(format!("{name}.log")),
            wanted: AtomicBool::new(true),
            running: Mutex::default(),
            started: Mutex::new(Instant::now()),
        }
    }

    /// Starts it if it should run and does not.
    fn supervise(&self) {
        let mut running = self.running.lock().unwrap();
        let ended = running.as_mut().is_none_or(|r| r.exited().is_some());
        let mut started = self.started.lock().unwrap();
        let again = running.is_none() || started.elapsed() >= RESTART_PAUSE;
        if !ended || !again || !self.wanted.load(Ordering::SeqCst) {
            return;
        }
        *started = Instant::now();
        let mut program = command(Path::new(&self.line[0]));
        program.args(&self.line[1..]);
        program.args(self.extra.lock().unwrap().iter());
        *running = Some(Running::start(&self.name, &mut program, &self.log));
    }

    /// Kills it with SIGKILL; it stays away until [`Self::start`]. Says whether it ran.
    pub(crate) fn kill(&self) -> bool {
        self.wanted.store(false, Ordering::SeqCst);
        let mut running = self.running.lock().unwrap();
        let Some(program) = running.as_mut() else {
            return false;
        };
        let ran = program.exited().is_none();
        program.kill9();
        ran
    }

    /// Asks it to end with SIGTERM and waits for that.
    pub(crate) fn terminate(&self) -> bool {
        self.wanted.store(false, Ordering::SeqCst);
        if self.pid().is_none() {
            return false;
        }
        self.signal(Signal::TERM);
        wait::until(&format!("the end of {}", self.name), || {
            self.pid().is_none()
        });
        true
    }

    /// It may end by itself, and is not started again until [`Self::start`].
    pub(crate) fn expect_end(&self) {
        self.wanted.store(false, Ordering::SeqCst);
    }

    /// Lets it be started.
    pub(crate) fn start(&self) {
        self.wanted.store(true, Ordering::SeqCst);
    }

    /// Starts it with these arguments beside its own from now on.
    pub(crate) fn set_extra(&self, extra: &[&str]) {
        *self.extra.lock().unwrap() = extra.iter().map(|e| (*e).to_owned()).collect();
    }

    /// Sends a signal; says whether it runs.
    pub(crate) fn signal(&self, signal: Signal) -> bool {
        let mut running = self.running.lock().unwrap();
        let Some(program) = running.as_mut() else {
            return false;
        };
        let runs = program.exited().is_none();
        if runs {
            program.signal(signal);
        }
        runs
    }

    /// Its pid, if it runs.
    pub(crate) fn pid(&self) -> Option<Pid> {
        let mut running = self.running.lock().unwrap();
        let program = running.as_mut()?;
        let runs = program.exited().is_none();
        Pid::from_raw(program.pid().cast_signed()).filter(|_| runs)
    }
}

/// One instance with its proxies.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) program: Program,
    pub(crate) tcp: String,
    pub(crate) http: String,
    pub(crate) redis: Proxy,
    pub(crate) nsqds: Vec<Proxy>,
}

/// An nsqd.
#[derive(Debug)]
pub(crate) struct Nsqd {
    pub(crate) program: Program,
    pub(crate) tcp: String,
    http: String,
}

/// Redis.
#[derive(Debug)]
pub(crate) struct Redis {
    pub(crate) program: Program,
    pub(crate) dir: PathBuf,
    port: u16,
}

/// How large a cluster is, and what is different in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) instances: usize,
    pub(crate) nsqds: usize,
    pub(crate) plant: Option<Plant>,
    /// Redis keeps an append-only file.
    pub(crate) persistent: bool,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) redis: Redis,
    pub(crate) nsqds: Vec<Nsqd>,
    pub(crate) instances: Vec<Instance>,
    /// Runs the proxies.
    _runtime: Runtime,
}

impl Cluster {
    /// Starts everything and waits until it is ready.
    pub(crate) fn start(size: Size, dir: &Path, recorder: &Arc<Recorder>) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let redis = Redis::new(dir, size.persistent);
        let nsqds: Vec<Nsqd> = (0..size.nsqds).map(|n| Nsqd::new(n, dir)).collect();
        let instances = (0..size.instances).map(|number| {
            let proxy = |behind, upstream: String| {
                let upstream: SocketAddr = upstream.parse().unwrap();
                let proxy = Proxy::start(runtime.handle(), recorder, number, behind, upstream);
                proxy.set(|rules| rules.plant = size.plant);
                proxy
            };
            let to_redis = proxy(Behind::Redis, format!("127.0.0.1:{}", redis.port));
            let to_nsqds = nsqds.iter().enumerate();
            let to_nsqds = to_nsqds.map(|(n, nsqd)| proxy(Behind::Nsqd(n), nsqd.tcp.clone()));
            Instance::new(number, dir, to_redis, to_nsqds.collect(), &nsqds)
        });
        let cluster = Self {
            instances: instances.collect(),
            redis,
            nsqds,
            _runtime: runtime,
        };
        cluster.wait_ready();
        cluster
    }

    /// Starts what should run and does not. To be called often, by the thread that made the cluster.
    pub(crate) fn supervise(&self) {
        self.programs().for_each(Program::supervise);
    }

    /// Waits until everything runs and answers.
    pub(crate) fn wait_ready(&self) {
        wait::until("every program to be ready", || {
            self.supervise();
            self.redis.answers()
                && self.nsqds.iter().all(Nsqd::answers)
                && self.instances.iter().all(Instance::answers)
        });
    }

    /// Ends every fault: all proxies pass, all programs run.
    pub(crate) fn heal(&self) {
        for instance in &self.instances {
            instance.redis.heal();
            instance.nsqds.iter().for_each(Proxy::heal);
        }
        for program in self.programs() {
            program.signal(Signal::CONT);
            program.start();
        }
    }

    fn programs(&self) -> impl Iterator<Item = &Program> {
        let nsqds = self.nsqds.iter().map(|nsqd| &nsqd.program);
        let instances = self.instances.iter().map(|instance| &instance.program);
        std::iter::once(&self.redis.program)
            .chain(nsqds)
            .chain(instances)
    }
}

fn free_address() -> String {
    format!("127.0.0.1:{}", free_port())
}

impl Instance {
    /// `nsqds` are proxies before those `asked`.
    fn new(number: usize, dir: &Path, redis: Proxy, nsqds: Vec<Proxy>, asked: &[Nsqd]) -> Self {
        let (tcp, http) = (free_address(), free_address());
        let mut line: Vec<String> = [env!("CARGO_BIN_EXE_nsqdelayd"), "serve"]
            .map(str::to_owned)
            .into();
        let mut flag = |name: &str, value: &str| line.extend([name.to_owned(), value.to_owned()]);
        flag("--tcp-address", &tcp);
        flag("--http-address", &http);
        flag("--redis", &format!("redis://{}", redis.address));
        flag("--shards", &SHARDS.to_string());
        flag("--unsettled-max", &UNSETTLED_MAX.to_string());
        // What was cancelled by one that was killed must be counted off before everything is read back.
        flag("--sweep", "30s");
        for nsqd in &nsqds {
            flag("--nsqd-tcp-address", &nsqd.address.to_string());
        }
        for nsqd in asked {
            flag("--nsqd-http-address", &nsqd.http);
        }
        flag("--nsqd-depth-max", &NSQD_DEPTH_MAX.to_string());
        // The others read what this one stores.
        if number == 0 {
            flag("--pack-compression", "zstd");
        }
        Self {
            program: Program::new(&format!("instance-{number}"), dir, line),
            tcp,
            http,
            redis,
            nsqds,
        }
    }

    /// Whether its door says that it runs.
    pub(crate) fn answers(&self) -> bool {
        self.program.pid().is_some()
            && Http::connect(&self.http)
                .and_then(|mut http| http.request("GET", "/readyz", &[], b""))
                .is_ok_and(|answer| answer.status == 200)
    }
}

impl Nsqd {
    /// It keeps everything in files, and says seldom how far it has read: after a SIGKILL it sends again
    /// rather than forgets. The consumers know its repetitions by their ids.
    fn new(number: usize, dir: &Path) -> Self {
        let name = format!("nsqd-{number}");
        let files = dir.join(&name);
        std::fs::create_dir(&files).unwrap();
        let (tcp, http) = (free_address(), free_address());
        let line = vec![
            tool("nsqd").display().to_string(),
            format!("--data-path={}", files.display()),
            "--broadcast-address=127.0.0.1".to_owned(),
            format!("--tcp-address={tcp}"),
            format!("--http-address={http}"),
            "--mem-queue-size=0".to_owned(),
            "--sync-timeout=1s".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        Self {
            program: Program::new(&name, dir, line),
            tcp,
            http,
        }
    }

    fn answers(&self) -> bool {
        self.program.pid().is_some() && std::net::TcpStream::connect(&self.tcp).is_ok()
    }
}

impl Redis {
    fn new(dir: &Path, persistent: bool) -> Self {
        let files = dir.join("redis");
        std::fs::create_dir(&files).unwrap();
        let port = free_port();
        // A write beyond the limit of a file's size is to be an error, as on a full disk, not a signal.
        let mut line: Vec<String> = ["/bin/sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"]
            .map(str::to_owned)
            .into();
        line.push(tool("redis-server").display().to_string());
        let files_text = files.display().to_string();
        let yes = if persistent { "yes" } else { "no" };
        let port_text = port.to_string();
        let flags = [
            ["--port", &port_text],
            ["--bind", "127.0.0.1"],
            ["--save", ""],
            ["--appendonly", yes],
            ["--appendfsync", "always"],
            ["--maxmemory-policy", "noeviction"],
            ["--enable-debug-command", "local"],
            ["--dir", &files_text],
        ];
        line.extend(flags.iter().flatten().map(|word| (*word).to_owned()));
        Self {
            program: Program::new("redis", dir, line),
            dir: files,
            port,
        }
    }

    /// A connection beside the proxies.
    pub(crate) fn connect(&self) -> Option<redis::Connection> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap();
        let limit = Duration::from_secs(2);
        let connection = client.get_connection_with_timeout(limit).ok()?;
        connection.set_read_timeout(Some(limit)).ok()?;
        Some(connection)
    }

    /// Whether it runs and has read its files.
    pub(crate) fn answers(&self) -> bool {
        let ping = |mut c: redis::Connection| redis::cmd("PING").query::<String>(&mut c).ok();
        self.program.pid().is_some() && self.connect().and_then(ping).is_some()
    }
}
