//! `nsqdelayd bench`: how fast, how late and how dear, with nsqd's own `DPUB` beside it in the same run.
//! What a rate is printed for is read back: lost, early and duplicate stand beside it.

mod account;
mod body;
mod book;
mod cases;
mod clock;
mod consumer;
mod door;
mod figures;
mod flow;
mod progress;
mod redis_info;
mod report;
mod sender;
mod servers;
mod stamp;
mod wire;

use std::time::Duration;

use crate::cli::Failure;
use crate::cli::bench::body::{Bodies, Shape};
use crate::cli::bench::cases::Steady;
use crate::cli::bench::consumer::Buffering;
use crate::cli::bench::door::Door;
use crate::cli::bench::flow::{Load, Target};
use crate::cli::bench::report::{Report, Row};
use crate::cli::bench::servers::Servers;
use crate::config::units;

pub(super) const EXAMPLES: &str = "\
Examples:
  nsqdelayd bench ingest                               starts servers of its own, ends them
  nsqdelayd bench ingest --door mpub --appendfsync always
  nsqdelayd bench burst --count 200000
  nsqdelayd bench lateness --rate 1000 --json
  nsqdelayd bench steady --rate 50000 --delay 20s --duration 1m -- --shards 16
  nsqdelayd bench lateness --tcp-address 10.0.0.5:4140 --http-address 10.0.0.5:4141 \\
      --nsqd-tcp-address 10.0.0.7:4150                 a running set-up

Progress goes to standard error. The exit code is 1 if anything was lost, early, doubled or refused.";

/// What to measure.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    case: Case,
}

#[derive(Debug, clap::Subcommand)]
enum Case {
    /// Publishing as fast as answers come: so many unanswered on each connection.
    Ingest {
        #[command(flatten)]
        common: Common,
        /// Delay of all messages: longer than sending them takes.
        #[arg(long, default_value = "15s", value_parser = duration)]
        delay: Duration,
    },
    /// Messages that are all due at one instant.
    Burst {
        #[command(flatten)]
        common: Common,
        /// From the first publish to that instant.
        #[arg(long, default_value = "15s", value_parser = duration)]
        lead: Duration,
    },
    /// How late messages are at a moderate rate, read by a consumer that nsqd does not buffer for.
    Lateness {
        #[command(flatten)]
        common: Common,
        /// Messages a second.
        #[arg(long, default_value_t = 1000.0)]
        rate: f64,
        /// Shortest delay; delays are spread evenly.
        #[arg(long, default_value = "1s", value_parser = duration)]
        delay_min: Duration,
        /// Longest delay.
        #[arg(long, default_value = "5s", value_parser = duration)]
        delay_max: Duration,
    },
    /// In and out at a rate for long; --count is not used.
    Steady {
        #[command(flatten)]
        common: Common,
        /// Messages a second.
        #[arg(long, default_value_t = 20_000.0)]
        rate: f64,
        /// Delay of the messages.
        #[arg(long, default_value = "10s", value_parser = duration)]
        delay: Duration,
        /// Longest delay, if delays are to be spread evenly from --delay on.
        #[arg(long, value_parser = duration)]
        delay_max: Option<Duration>,
        /// How long to publish.
        #[arg(long, default_value = "30s", value_parser = duration)]
        duration: Duration,
        /// Rewrites of Redis's append-only file to ask for meanwhile; needs --redis-address.
        #[arg(long, default_value_t = 0)]
        aof_rewrites: u32,
    },
    /// Cancelling by id, and the memory that it gives back.
    Cancel {
        #[command(flatten)]
        common: Common,
        /// From the first publish until all are due.
        #[arg(long, default_value = "30s", value_parser = duration)]
        lead: Duration,
        /// Share of the messages that is cancelled.
        #[arg(long, default_value_t = 0.9)]
        share: f64,
        /// Ids of the producer instead of ours.
        #[arg(long)]
        client_ids: bool,
    },
    /// What waiting costs: much pending, nothing due.
    Idle {
        #[command(flatten)]
        common: Common,
        /// How long to look.
        #[arg(long, default_value = "60s", value_parser = duration)]
        span: Duration,
    },
}

fn duration(text: &str) -> Result<Duration, String> {
    units::duration(text).ok_or_else(|| "expected a duration such as 250ms, 30s or 5m".to_owned())
}

/// What all benchmarks have.
#[derive(Debug, Clone, clap::Args)]
struct Common {
    /// Messages. [default: ingest 300000, burst and cancel 200000, idle 100000, lateness 10000]
    #[arg(long)]
    count: Option<u32>,
    /// Bytes of a body.
    #[arg(long, default_value_t = 500)]
    body_bytes: usize,
    /// What bodies are like.
    #[arg(long, value_enum, default_value_t = Bodies::Dots)]
    bodies: Bodies,
    /// The door. [default: dpub; cancel: batch, which tells the ids]
    #[arg(long, value_enum)]
    door: Option<Door>,
    /// Messages of one command, of doors that take several.
    #[arg(long, default_value_t = 100)]
    batch: u32,
    /// Connections that publish.
    #[arg(long, default_value_t = 8)]
    connections: u32,
    /// Commands unanswered on each connection of a closed loop. [default: 100; of batches 2; HTTP always 1]
    #[arg(long)]
    pipelined: Option<usize>,
    /// Connections that consume.
    #[arg(long, default_value_t = 1)]
    consumers: u32,
    /// Messages that wait in nsqdelayd meanwhile, due in an hour or later.
    #[arg(long, default_value_t = 0, conflicts_with = "tcp_address")]
    pending: u32,
    /// Leaves nsqd's own DPUB out.
    #[arg(long)]
    without_nsqd: bool,
    /// Runs everything so often, in turns.
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// Prints JSON instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    servers: servers::Args,
}

impl Common {
    fn load(&self, target: Target, count: u32, buffering: Buffering) -> Load {
        let door = match target {
            Target::Ours => self.door.unwrap_or(Door::Dpub),
            Target::Nsqd => Door::Dpub,
        };
        self.through(door, target, count, buffering)
    }

    fn through(&self, door: Door, target: Target, count: u32, buffering: Buffering) -> Load {
        Load {
            target,
            door,
            count: self.count.unwrap_or(count),
            shape: Shape::new(self.bodies, self.body_bytes),
            batch: if door == Door::Dpub {
                1
            } else {
                self.batch.max(1)
            },
            connections: self.connections.max(1),
            consumers: self.consumers.max(1),
            buffering,
            with_ids: false,
        }
    }

    /// Commands unanswered on one connection.
    fn window(&self, door: Door) -> usize {
        let given = self.pipelined.map(|window| window.max(1));
        match door {
            Door::Dpub => given.unwrap_or(100),
            Door::Mdpub => given.unwrap_or(2),
            Door::Mpub | Door::Batch => 1,
        }
    }
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let (name, common) = match &args.case {
        Case::Ingest { common, .. } => ("ingest", common),
        Case::Burst { common, .. } => ("burst", common),
        Case::Lateness { common, .. } => ("lateness", common),
        Case::Steady { common, .. } => ("steady", common),
        Case::Cancel { common, .. } => ("cancel", common),
        Case::Idle { common, .. } => ("idle", common),
    };
    // On this thread, which lives as long as the program: what is started ends with it.
    let servers = Servers::of(&common.servers)?;
    let report = measure(&args.case, name, common, &servers);
    servers.end();
    report?.print(common.json)
}

fn measure(
    case: &Case,
    name: &'static str,
    common: &Common,
    servers: &Servers,
) -> Result<Report, Failure> {
    let info = servers.redis_info()?;
    let mut rows = Vec::new();
    if common.pending > 0 {
        let load = Load {
            count: common.pending,
            ..common.through(Door::Mdpub, Target::Ours, 0, Buffering::Full)
        };
        cases::fill(servers, load)?;
    }
    for _ in 0..common.repeat.max(1) {
        rows.push(one(case, common, servers, Target::Ours)?);
        let compared = !matches!(case, Case::Cancel { .. } | Case::Idle { .. });
        if compared && !common.without_nsqd {
            rows.push(one(case, common, servers, Target::Nsqd)?);
        }
    }
    Ok(Report {
        case: name,
        nsqdelayd: env!("CARGO_PKG_VERSION"),
        redis: info.map(|info| info.text("redis_version").to_owned()),
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        rows,
    })
}

fn one(case: &Case, common: &Common, servers: &Servers, target: Target) -> Result<Row, Failure> {
    let load = |count, buffering| common.load(target, count, buffering);
    match case {
        Case::Ingest { delay, .. } => {
            let load = load(300_000, Buffering::Full);
            cases::ingest(servers, load, *delay, common.window(load.door))
        }
        Case::Burst { lead, .. } => {
            let load = load(200_000, Buffering::Full);
            cases::burst(servers, load, *lead, common.window(load.door))
        }
        Case::Lateness {
            rate,
            delay_min,
            delay_max,
            ..
        } => {
            let steady = Steady {
                per_second: *rate,
                delay_min: *delay_min,
                delay_max: *delay_max,
                rewrites: 0,
            };
            cases::steady(servers, load(10_000, Buffering::None), steady)
        }
        Case::Steady {
            rate,
            delay,
            delay_max,
            duration,
            aof_rewrites,
            ..
        } => {
            let steady = Steady {
                per_second: *rate,
                delay_min: *delay,
                delay_max: delay_max.unwrap_or(*delay).max(*delay),
                rewrites: *aof_rewrites,
            };
            let count = figures::whole(rate * duration.as_secs_f64());
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            let load = Load {
                count,
                ..load(count, Buffering::Full)
            };
            cases::steady(servers, load, steady)
        }
        Case::Cancel {
            lead,
            share,
            client_ids,
            ..
        } => {
            let door = common.door.unwrap_or(Door::Batch);
            let load = Load {
                with_ids: *client_ids,
                ..common.through(door, target, 200_000, Buffering::Full)
            };
            let windows = (common.window(load.door), common.window(Door::Dpub));
            cases::cancel(servers, load, *lead, windows, *share)
        }
        Case::Idle { span, .. } => {
            let load = load(100_000, Buffering::Full);
            cases::idle(servers, load, *span, common.window(load.door))
        }
    }
}
