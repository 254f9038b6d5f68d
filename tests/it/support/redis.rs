//! A real redis-server (or Valkey) of the test's own.

use std::path::{Path, PathBuf};

use rustix::process::Signal;
use tempfile::TempDir;

use super::child::{Running, command};
use super::{free_port, tool, wait};

/// How often another port is tried when somebody else was faster.
const START_ATTEMPTS: usize = 20;

/// A Redis with its own port and directory, both kept over a restart.
#[derive(Debug)]
pub(crate) struct Redis {
    program: PathBuf,
    options: Vec<String>,
    environment: Vec<(String, String)>,
    /// The port it listens on.
    pub(crate) port: u16,
    /// The server. Before the directory, so that its end still finds the log.
    pub(crate) child: Running,
    dir: TempDir,
}

impl Redis {
    /// Redis as we recommend it: AOF, appendfsync always, noeviction.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with options changed, as `("appendfsync", "everysec")`.
    pub(crate) fn start_with(options: &[(&str, &str)]) -> Self {
        Self::start_program(tool("redis-server"), options, &[])
    }

    /// The same, but a Valkey server.
    pub(crate) fn start_valkey() -> Self {
        Self::start_program(tool("valkey-server"), &[], &[])
    }

    /// Redis with these variables in its environment.
    pub(crate) fn start_in(environment: &[(&str, &str)]) -> Self {
        Self::start_program(tool("redis-server"), &[], environment)
    }

    fn start_program(
        program: PathBuf,
        options: &[(&str, &str)],
        environment: &[(&str, &str)],
    ) -> Self {
        let environment: Vec<(String, String)> = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let dir = TempDir::new().unwrap();
        let options: Vec<String> = options
            .iter()
            .flat_map(|(key, value)| [format!("--{key}"), (*value).to_owned()])
            .collect();
        for _ in 0..START_ATTEMPTS {
            let port = free_port();
            let mut child = Self::spawn(&program, &dir, &options, &environment, port);
            if answers(&mut child, port) {
                return Self {
                    program,
                    options,
                    environment,
                    port,
                    child,
                    dir,
                };
            }
            let log = child.log();
            assert!(log.contains("in use"), "redis does not start:\n{log}");
        }
        panic!("no free port for redis");
    }

    fn spawn(
        program: &Path,
        dir: &TempDir,
        options: &[String],
        environment: &[(String, String)],
        port: u16,
    ) -> Running {
        let mut redis = command(program);
        redis
            .current_dir(dir.path())
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "yes"])
            .args(["--appendfsync", "always"])
            .args(["--maxmemory-policy", "noeviction"])
            .args(["--dir", "."])
            .args(options)
            .envs(environment.iter().map(|(name, value)| (name, value)));
        Running::start("redis", &mut redis, &dir.path().join("redis.log"))
    }

    /// Where to reach it.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// A connection that blocks the calling thread.
    pub(crate) fn connection(&self) -> redis::Connection {
        let client = redis::Client::open(self.url()).unwrap();
        client.get_connection().unwrap()
    }

    /// Kills it with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill9();
    }

    /// Starts it again, on the same port with the same files. Ends it first if it runs.
    pub(crate) fn restart(&mut self) {
        self.child.kill9();
        wait::until("redis to be back on its port", || {
            self.child = Self::spawn(
                &self.program,
                &self.dir,
                &self.options,
                &self.environment,
                self.port,
            );
            answers(&mut self.child, self.port)
        });
    }

    /// Kills it, and starts it again with nothing in it.
    pub(crate) fn lose_everything(&mut self) {
        self.child.kill9();
        for entry in std::fs::read_dir(self.dir.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                std::fs::remove_dir_all(path).unwrap();
            }
        }
        self.restart();
    }

    /// Stops its clockwork with SIGSTOP: connections stay, nothing answers.
    pub(crate) fn pause(&self) {
        self.child.signal(Signal::STOP);
    }

    /// Lets it go on after [`Self::pause`].
    pub(crate) fn cont(&self) {
        self.child.signal(Signal::CONT);
    }

    /// Commands executed since it started, those of scripts included.
    pub(crate) fn commands(&self) -> u64 {
        self.info("total_commands_processed")
    }

    /// Packs that it holds: members of all shards' `due` sets.
    pub(crate) fn packs(&self) -> u64 {
        self.of_each_due(|key| redis::Cmd::zcard(key)).iter().sum()
    }

    /// Bytes of the packs that it holds.
    pub(crate) fn pack_bytes(&self) -> usize {
        let packs: Vec<Vec<Vec<u8>>> = self.of_each_due(|key| redis::Cmd::zrange(key, 0, -1));
        packs.iter().flatten().map(Vec::len).sum()
    }

    /// What a command answers for the `due` set of each shard.
    fn of_each_due<T: redis::FromRedisValue>(
        &self,
        command: impl Fn(&str) -> redis::Cmd,
    ) -> Vec<T> {
        let mut connection = self.connection();
        let keys: Vec<String> = redis::cmd("KEYS")
            .arg("*:due")
            .query(&mut connection)
            .unwrap();
        let answers = keys.iter().map(|key| command(key).query(&mut connection));
        answers.map(Result::unwrap).collect()
    }

    /// One line of `INFO`, as a number.
    #[track_caller]
    pub(crate) fn info(&self, key: &str) -> u64 {
        let text: String = redis::cmd("INFO")
            .arg("everything")
            .query(&mut self.connection())
            .unwrap();
        let prefix = format!("{key}:");
        let line = text.lines().find_map(|line| line.strip_prefix(&prefix));
        let value = line.unwrap_or_else(|| panic!("INFO has no {key}"));
        value.trim().parse().unwrap()
    }
}

/// Waits until this very server answers, or has ended.
fn answers(child: &mut Running, port: u16) -> bool {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
    let mut alive = false;
    wait::until("redis to answer", || {
        if child.exited().is_some() {
            return true;
        }
        let info = client
            .get_connection()
            .and_then(|mut c| redis::cmd("INFO").arg("server").query::<String>(&mut c));
        // The pid tells it from another test's server on the same port.
        let own = format!("process_id:{}\r", child.pid());
        alive = info.is_ok_and(|text| text.contains(&own));
        alive && loaded(&client)
    });
    alive
}

/// Whether the files have been read: until then INFO answers, but nothing else does.
fn loaded(client: &redis::Client) -> bool {
    client
        .get_connection()
        .and_then(|mut c| redis::cmd("PING").query::<String>(&mut c))
        .is_ok()
}
