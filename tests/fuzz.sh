#!/usr/bin/env bash
# Builds the fuzz targets and runs each for so many seconds, from its seeds and what earlier runs have
# found in fuzz/corpus. A finding is left in fuzz/artifacts and ends it.
#
#   tests/fuzz.sh SECONDS [TARGET...]
#
# It does what `cargo fuzz run -s none` does, without that tool: these flags are stable, and the code
# has no `unsafe` of its own for a sanitizer to watch.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly seconds="${1:?usage: tests/fuzz.sh SECONDS [TARGET...]}"
shift
targets=("$@")
if [ ${#targets[@]} = 0 ]; then
    targets=(command frame mpub pack id query)
fi

readonly target_dir="${CARGO_TARGET_DIR:-target}/fuzz"
# Named, so that the flags are not for build scripts, which run without libFuzzer.
host="$(rustc -vV | sed -n 's/^host: //p')"
readonly host
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1" \
    cargo build --locked --manifest-path fuzz/Cargo.toml --target-dir "$target_dir" --target "$host"

for target in "${targets[@]}"; do
    echo "fuzz: $target, $seconds s"
    mkdir -p "fuzz/corpus/$target" "fuzz/artifacts/$target"
    "$target_dir/$host/debug/$target" "fuzz/corpus/$target" "fuzz/seeds/$target" \
        -artifact_prefix="fuzz/artifacts/$target/" -max_total_time="$seconds" \
        -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 -verbosity=0
done
