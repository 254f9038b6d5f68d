#!/usr/bin/env bash
# `make demo`: uses the nsqdelayd that `make run` has started; starts one of its own if there is none.
set -euo pipefail
cd "$(dirname "$0")/.."

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

if ! answers 4141; then
    echo "no nsqdelayd on 127.0.0.1:4141 (make run): starting one for the demo"
    cargo build --release --locked --quiet
    scratch="$(mktemp -d)"
    cargo run --release --locked --quiet -- dev --data-dir "$scratch" \
        --nsqd-tcp-address 127.0.0.1:4150 --address-file "$scratch/addresses.json" \
        >"$scratch/log" 2>&1 &
    dev=$!
    trap 'kill "$dev" 2>/dev/null; wait "$dev" || true; rm -rf "$scratch"' EXIT
    until [ -s "$scratch/addresses.json" ]; do
        if ! kill -0 "$dev" 2>/dev/null; then
            cat "$scratch/log"
            exit 1
        fi
        sleep 0.1
    done
fi
.tools/bin/interop demo
