//! What processes have used, from `/proc`: processor time and memory.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use serde::Serialize;

use crate::cli::Failure;

/// A process that is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Watched {
    /// What it is called in tables. Those of one name are added up.
    pub(super) name: String,
    pub(super) pid: u32,
}

/// The generator and the consumer: this very process.
pub(super) const GENERATOR: &str = "generator";

/// What one name's processes have used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Used {
    /// Processor time, user and system, with that of children that have ended: Redis rewrites its file in one.
    pub(super) cpu_us: u64,
    /// Resident memory now.
    pub(super) resident_bytes: u64,
    /// Resident memory at most, ever.
    pub(super) resident_bytes_max: u64,
}

/// What all of them have used.
pub(super) type Account = BTreeMap<String, Used>;

/// Reads `NAME=PID`.
pub(super) fn watched(text: &str) -> Result<Watched, String> {
    let (name, pid) = text.split_once('=').ok_or("expected NAME=PID")?;
    let pid = pid
        .parse()
        .map_err(|_bad| format!("{pid:?} is no process id"))?;
    Ok(Watched {
        name: name.to_owned(),
        pid,
    })
}

/// Reads the account of each process.
pub(super) fn read(watched: &[Watched]) -> Result<Account, Failure> {
    let mut account = Account::new();
    for Watched { name, pid } in watched {
        let used = read_one(*pid).map_err(|error| {
            Failure::Failed(format!("{name}, process {pid}, cannot be read: {error}"))
        })?;
        let sum = account.entry(name.clone()).or_default();
        sum.cpu_us += used.cpu_us;
        sum.resident_bytes += used.resident_bytes;
        sum.resident_bytes_max += used.resident_bytes_max;
    }
    Ok(account)
}

/// Processor time between two accounts, by name, us.
pub(super) fn cpu_between(before: &Account, after: &Account) -> BTreeMap<String, u64> {
    let spent = |name: &String, used: &Used| {
        let before = before.get(name).map_or(0, |before| before.cpu_us);
        (name.clone(), used.cpu_us.saturating_sub(before))
    };
    after.iter().map(|(name, used)| spent(name, used)).collect()
}

fn read_one(pid: u32) -> io::Result<Used> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let ticks = cpu_ticks(&stat).ok_or(io::ErrorKind::InvalidData)?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Ok(Used {
        cpu_us: ticks * 1_000_000 / per_second,
        resident_bytes: kib(&status, "VmRSS:").unwrap_or(0) * 1024,
        resident_bytes_max: kib(&status, "VmHWM:").unwrap_or(0) * 1024,
    })
}

/// `utime`, `stime`, `cutime` and `cstime`, fields 14 to 17. The name, field 2, may hold spaces and brackets.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let mut ticks = 0;
    for _ in 0..4 {
        ticks += fields.next()?.parse::<u64>().ok()?;
    }
    Some(ticks)
}

fn kib(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_named_with_their_pids() {
        let expected = Watched {
            name: "redis".to_owned(),
            pid: 17,
        };
        assert_eq!(watched("redis=17"), Ok(expected));
        watched("redis").unwrap_err();
        watched("redis=x").unwrap_err();
    }

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194304 12 0 0 0 250 50 9 1 20 0 1 0 1 1 1";
        assert_eq!(cpu_ticks(stat), Some(310));
        assert_eq!(kib("VmPeak:\t 9 kB\nVmRSS:\t  12 kB\n", "VmRSS:"), Some(12));
    }

    #[test]
    fn this_process_has_an_account() {
        let me = Watched {
            name: GENERATOR.to_owned(),
            pid: std::process::id(),
        };
        let account = read(&[me]).unwrap();
        assert!(account[GENERATOR].resident_bytes > 0);
    }
}
