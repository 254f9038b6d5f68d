#!/usr/bin/env bash
# Measures what docs/performance.md shows in its results and of how cost grows, one after the other, on a machine
# that does nothing else:
#
#   benches/series.sh DIR               half an hour
#   benches/series.sh DIR headline      and 7 million pending across two rewrites of Redis's file, 8 minutes more
#
# Each benchmark leaves its JSON in DIR; benches/plots.py DIR draws the plots. What is there already is not measured
# again.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly dir=${1:?usage: benches/series.sh DIR [headline]}
readonly nsqdelayd=${NSQDELAYD:-target/release/nsqdelayd}
mkdir -p "$dir"

# Runs the benchmark $2.. and keeps what it prints as $1.
keep() {
    local name=$1
    shift
    [ -s "$dir/$name.json" ] && return
    echo "$name: nsqdelayd bench $*" >&2
    # The exit code says that something was lost, early or doubled; so does the JSON.
    "$nsqdelayd" bench "$@" --json >"$dir/$name.part" 2>"$dir/$name.log" || echo "$name: exit $?" >&2
    mv "$dir/$name.part" "$dir/$name.json"
}

keep ingest-dpub ingest --repeat 3
for door in mdpub mpub batch; do keep "ingest-$door" ingest --door "$door" --without-nsqd; done
keep ingest-always ingest --appendfsync always --without-nsqd
keep burst burst --repeat 9
keep lateness lateness --count 20000
keep cancel cancel --lead 100s
for pipelined in 100 400; do keep "cancel-$pipelined" cancel --repeat 5 --pipelined "$pipelined"; done
keep idle idle --span 200s --without-nsqd
# What a message costs as more come.
for rate in 1000 3000 10000 30000; do
    keep "rate-$rate" steady --rate "$rate" --delay 5s --duration 20s --without-nsqd
done
for rate in 10000 30000 60000; do
    keep "rate-mdpub-$rate" steady --door mdpub --rate "$rate" --delay 5s --duration 20s --without-nsqd
done
keep spread steady --rate 10000 --delay 1s --delay-max 5s --duration 20s --without-nsqd
# What it costs as more wait. The first load after 12 million is dearer than the next:
# Redis gets memory that it never had.
for pending in 10000 1000000 12000000; do
    keep "pending-$pending" ingest --pending "$pending" --repeat 3 --without-nsqd
    keep "spread-pending-$pending" steady --rate 10000 --delay 1s --delay-max 5s --duration 20s \
        --pending "$pending" --repeat 2 --without-nsqd
done
# And as bodies grow.
for load in 50:300000:100 500:300000:100 5000:60000:100 100000:4000:20; do
    IFS=: read -r body count pipelined <<<"$load"
    keep "body-$body" ingest --body-bytes "$body" --count "$count" --pipelined "$pipelined"
done
if [ "${2:-}" = headline ]; then
    keep headline steady --door mdpub --rate 60000 --delay 120s --duration 300s --aof-rewrites 2 --without-nsqd
fi
