//! The description of `/v1` held against a running instance by schemathesis, a tool that makes requests
//! of it: those that it allows, and those that it does not. What comes back has to be as described.

use std::process::Command;

use tempfile::TempDir;

use crate::support::app::App;
use crate::support::redis::Redis;
use crate::support::{checkout, free_port};

#[test]
fn the_description_and_the_instance_agree() {
    let redis = Redis::start();
    // No nsqd is there: what was created stays, to be looked at, moved and cancelled.
    let nobody = format!("127.0.0.1:{}", free_port());
    let app = App::builder()
        .redis(&redis)
        .flag("--nsqd-tcp-address", &nobody)
        // A machine that is busy with other tests is no failure of Redis.
        .flag("--request-timeout", "60s")
        .start();
    let scratch = TempDir::new().unwrap();
    let program = checkout().join(".tools/schemathesis/bin/schemathesis");
    let run = Command::new(&program)
        .current_dir(scratch.path())
        .arg("--config-file")
        .arg(checkout().join("tests/openapi/schemathesis.toml"))
        // One worker: CPython 3.11 compiles lambdas wrongly in two threads ("AST constructor recursion depth
        // mismatch").
        .args(["run", "--workers", "1", "--no-color"])
        .arg(format!("http://{}/v1/openapi.json", app.http))
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}: run `make tools`", program.display()));
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(
        run.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&run.stderr)
    );
}
