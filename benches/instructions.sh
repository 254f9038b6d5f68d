#!/usr/bin/env bash
# Instructions of the hot code, counted by callgrind: the same on a busy machine as on a quiet one. Each
# benchmark runs so often and so often again; the difference is what the runs alone took.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly few=100 many=300

if ! command -v valgrind >/dev/null; then
    echo "valgrind is not installed: apt-get install valgrind" >&2
    exit 1
fi

exe=$(cargo bench --bench hot --no-run --locked --message-format json |
    sed -n 's/.*"executable":"\([^"]*hot-[^"]*\)".*/\1/p' | tail -1)

# Instructions of one benchmark with samples of $2 iterations.
count() {
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$exe" --bench --exact "hot::$1" \
        --timer os --sample-count 1 --sample-size "$2" 2>&1 |
        sed -n 's/.*Collected : \([0-9]*\).*/\1/p'
}

for name in decode_dpub decode_mdpub encode_mpub_to_nsqd encode_pack::1 encode_pack::26 decode_pack::1 \
    decode_pack::26 encode_compressed_pack decode_compressed_pack mint_id parse_id; do
    echo "$name $((($(count "$name" "$many") - $(count "$name" "$few")) / (many - few))) instructions"
done
