"""Runs tidemark and its peers in turn and compares time, CPU, memory and file size.

Started by scripts/bench, which installs what is needed. One throwaway source with TPC-H (kept in the
cache for the next run), a fresh target for each run, both PostgreSQL 15 on this machine. Each round runs
every contender once, so that a slow spell of the machine meets all of them; ratios are of medians.
CPU and peak memory are the kernel's own figures of the contender's processes (wait4), not the servers'.
"""

import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BIN = Path("/usr/lib/postgresql/15/bin")
CACHE = Path(os.environ.get("TIDEMARK_BENCH_CACHE", "/tmp/tidemark-bench"))
SCALE = float(os.environ.get("TIDEMARK_BENCH_SF", "1"))
WIDE_ROWS = int(os.environ.get("TIDEMARK_BENCH_WIDE_ROWS", "200"))
ROUNDS = int(os.environ.get("TIDEMARK_BENCH_ROUNDS", "5"))
TIDEMARK = os.environ.get("TIDEMARK_BIN", "")
PGCOPYDB = os.environ.get("PGCOPYDB") or shutil.which("pgcopydb") or ""
REPO = Path(__file__).resolve().parent.parent
SETTINGS = {
    "shared_buffers": "2GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "maintenance_work_mem": "256MB",
    "max_parallel_maintenance_workers": "2",
    "wal_level": "logical",
    "max_connections": "60",
    "max_locks_per_transaction": "1024",
    "fsync": "on",
    "synchronous_commit": "on",
    "autovacuum": "off",
    "jit": "off",
    "timezone": "UTC",
}
TABLES = ["region", "nation", "supplier", "part", "partsupp", "customer", "orders", "lineitem"]


def say(text):
    print(f"\033[1m== {text}\033[0m", file=sys.stderr, flush=True)


def unprivileged(command):
    if os.geteuid() != 0:
        return command
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--", *command]


def give_away(path):
    if os.geteuid() == 0:
        shutil.chown(path, "nobody", "nogroup")


class Server:
    """One PostgreSQL 15 in its own directory."""

    def __init__(self, directory, port):
        self.directory, self.port, self.process = Path(directory), port, None
        self.data = self.directory / "data"

    def init(self):
        self.directory.mkdir(parents=True, exist_ok=True)
        give_away(self.directory)
        run(unprivileged([str(BIN / "initdb"), "-D", str(self.data), "-U", "postgres", "-A", "trust",
                          "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]))
        return self

    def start(self):
        options = [f"-c{name}={value}" for name, value in SETTINGS.items()]
        options += [f"-cport={self.port}", "-clisten_addresses=127.0.0.1", f"-cunix_socket_directories={self.directory}"]
        log = open(self.directory / "log", "ab")
        self.process = subprocess.Popen(unprivileged([str(BIN / "postgres"), "-D", str(self.data), *options]),
                                        stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        for _ in range(600):
            if self.process.poll() is not None:
                sys.exit(f"the server in {self.directory} does not start:\n" + (self.directory / "log").read_text()[-2000:])
            pid_file = self.data / "postmaster.pid"
            if pid_file.exists() and pid_file.read_text().rstrip().endswith("ready"):
                return self
            time.sleep(0.1)
        sys.exit(f"the server in {self.directory} is not ready after a minute")

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait()
        self.process = None

    def url(self, database):
        return f"postgres://postgres@127.0.0.1:{self.port}/{database}"

    def psql(self, database, sql, stdin=None):
        return run([str(BIN / "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", self.url(database), "-c", sql], stdin)


def run(command, stdin=None):
    done = subprocess.run(command, stdin=stdin or subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))[:300]}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout.strip()


def free_port():
    import socket
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def source_server():
    """The source with TPC-H, from the cache if it is there."""
    place = CACHE / f"tpch-sf{SCALE:g}-{run([str(BIN / 'postgres'), '--version']).split()[2]}"
    server = Server(place, free_port())
    if (place / "complete").exists():
        (server.data / "postmaster.pid").unlink(missing_ok=True)
        return server.start()
    say(f"making the source: TPC-H at scale {SCALE:g}, with keys and indexes (kept in {place})")
    shutil.rmtree(place, ignore_errors=True)
    server.init().start()
    try:
        fill(server)
    finally:
        server.stop()
    (place / "complete").touch()
    return server.start()


def fill(server):
    server.psql("postgres", "CREATE DATABASE tpch")
    statements = (REPO / "testdata/demo/tpch.sql").read_text()
    statements = "\n".join(line for line in statements.splitlines() if not line.startswith("--")).split(";\n")
    statements = [statement.strip() for statement in statements]
    for statement in statements:
        if statement.startswith("CREATE TABLE"):
            server.psql("tpch", statement)
    generator = Path(sys.executable).parent / "tpchgen-cli"
    for table in TABLES:
        made = subprocess.Popen([generator, "csv", "-s", str(SCALE), "--tables", table, "--stdout"],
                                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        server.psql("tpch", f"COPY {table} FROM STDIN (FORMAT csv, HEADER true)", stdin=made.stdout)
        if made.wait() != 0:
            sys.exit(f"tpchgen-cli failed on {table}")
    for statement in statements:
        if statement.startswith(("ALTER TABLE", "CREATE INDEX")):
            server.psql("tpch", statement)
    server.psql("tpch", "VACUUM (FREEZE, ANALYZE)")
    server.psql("tpch", "CHECKPOINT")


def measure(command, environment=None, says=""):
    """Runs a command to its end: seconds, CPU seconds, peak RSS in MB (of its biggest process). `says`: what it prints if it worked."""
    with tempfile.TemporaryFile() as output:
        began = time.monotonic()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                   env={**os.environ, **(environment or {})}, cwd=tempfile.gettempdir(),
                                   start_new_session=True)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            # Ctrl-C or SIGTERM: nothing of the contender is left behind either.
            os.killpg(process.pid, signal.SIGKILL)
            raise
        seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode(errors="replace")
    result = {"seconds": seconds, "cpu": usage.ru_utime + usage.ru_stime, "rss_mb": usage.ru_maxrss / 1024}
    if process.returncode != 0 or says not in text:
        result["error"] = f"exit {process.returncode}: {text[-600:]}"
    return result


def demand(result):
    if "error" in result:
        sys.exit(result["error"])
    return result


def publish(kind, versions, parts, **more):
    """Keeps what was measured in bench-results/, and prints it."""
    about = {"machine": machine(), "versions": versions, "settings": SETTINGS, "rounds": ROUNDS, **more,
             "parts": [{"name": p.name, "title": p.title, "reference": p.reference, "medians": p.medians(), "samples": p.samples,
                        "figures": getattr(p, "figures", None)} for p in parts]}
    results = REPO / "bench-results"
    results.mkdir(exist_ok=True)
    file = results / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    file.write_text(json.dumps(about, indent=1))
    print(json.dumps(about["machine"]), json.dumps(versions), sep="\n")
    for part in parts:
        # Figures alone were printed where they were found.
        if part.medians() or not getattr(part, "figures", None):
            print(part.table())
    say(f"written: {file}")


def version_of(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return (done.stdout or done.stderr).strip().splitlines()[0]
    except (OSError, IndexError):
        return "not installed"


def tree_bytes(path):
    path = Path(path)
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*.parquet"))


DUCKDB = """
import sys, duckdb
from importlib import resources
extension = next(resources.files("duckdb_extension_postgres_scanner").joinpath("extensions").rglob("postgres_scanner.duckdb_extension"))
connection = duckdb.connect(config={"allow_unsigned_extensions": "true", "threads": 2})
connection.execute(f"LOAD '{extension}'")
connection.execute(f"COPY (SELECT * FROM postgres_scan('{sys.argv[1]}', 'public', 'lineitem')) TO '{sys.argv[2]}' (FORMAT parquet, COMPRESSION zstd)")
"""


class Part:
    """A piece of work that several contenders do in turn."""

    def __init__(self, name, title, reference, contenders):
        self.name, self.title, self.reference, self.contenders = name, title, reference, contenders
        self.samples = {contender: [] for contender in contenders}
        self.reasons, self.notes = {}, []

    def leave_out(self, name, reason):
        """A peer that cannot be had is in the table, with the reason."""
        self.samples[name], self.reasons[name] = [], reason

    def run(self):
        say(f"{self.title}: {', '.join(self.contenders)}; {ROUNDS} rounds after a warm-up")
        failed = set()
        for number in range(ROUNDS + 1):
            for name, work in self.contenders.items():
                if name in failed:
                    continue
                sample = work()
                if "error" in sample:
                    failed.add(name)
                    say(f"{name} failed and is left out: {sample['error']}")
                    self.samples[name] = []
                    continue
                print(f"   round {number}  {name:<24} {sample['seconds']:8.2f} s", file=sys.stderr, flush=True)
                if number > 0:
                    self.samples[name].append(sample)
        return self

    def medians(self):
        keys = ["seconds", "cpu", "rss_mb", "bytes"]
        return {name: {key: statistics.median(s[key] for s in samples) for key in keys if key in samples[0]}
                for name, samples in self.samples.items() if samples}

    def table(self):
        medians = self.medians()
        base = medians.get(self.reference)
        lines = ["", self.title, f"{'':<24} {'median s':>9} {'min':>7} {'max':>7} {'ratio':>6} {'CPU s':>7} {'RSS MB':>7} {'size MB':>8} {'ratio':>6}"]
        for name, m in medians.items():
            walls = [s["seconds"] for s in self.samples[name]]
            ratio = f"{m['seconds'] / base['seconds']:.2f}" if base else "-"
            size, size_ratio = "", ""
            if "bytes" in m:
                size = f"{m['bytes'] / 1e6:.1f}"
                size_ratio = f"{m['bytes'] / base['bytes']:.2f}" if base and base.get("bytes") else ""
            lines.append(f"{name:<24} {m['seconds']:>9.2f} {min(walls):>7.2f} {max(walls):>7.2f} {ratio:>6} {m['cpu']:>7.2f} {m['rss_mb']:>7.0f} {size:>8} {size_ratio:>6}")
        for name, samples in self.samples.items():
            if not samples:
                lines.append(f"{name:<24} left out: {self.reasons.get(name, 'it failed')}")
        return "\n".join(lines + self.notes)


class Bench:
    def __init__(self, work):
        self.work, self.source, self.target = work, None, None
        self.state = 0

    def servers(self):
        if self.source is None:
            self.source = source_server()
            self.target = Server(self.work / "target", free_port()).init().start()
            self.source.psql("tpch", "SELECT " + ", ".join(f"(SELECT count(*) FROM {t})" for t in TABLES))

    def stop(self):
        for server in (self.source, self.target):
            if server:
                server.stop()

    def fresh_target(self):
        self.target.psql("postgres", "DROP DATABASE IF EXISTS copy WITH (FORCE)")
        self.target.psql("postgres", "CREATE DATABASE copy")
        self.target.psql("postgres", "CHECKPOINT")

    def tidemark(self, source, target, *more):
        self.state += 1
        state = self.work / f"state{self.state}"
        command = [TIDEMARK, "sync", "--snapshot-only", "--source", source, "--target", target,
                   "--state-dir", str(state), "--progress", "none", *more]
        result = measure(command)
        shutil.rmtree(state, ignore_errors=True)
        return result

    def to_parquet(self):
        lake = self.work / "lake"
        shutil.rmtree(lake, ignore_errors=True)
        result = self.tidemark(self.source.url("tpch"), f"file://{lake}", "--table", "public.lineitem")
        if "error" not in result:
            result["bytes"] = tree_bytes(lake)
        return result

    def duckdb_to_parquet(self):
        file = self.work / "duckdb.parquet"
        file.unlink(missing_ok=True)
        conninfo = f"host=127.0.0.1 port={self.source.port} user=postgres dbname=tpch"
        result = measure([sys.executable, "-c", DUCKDB, conninfo, str(file)])
        if "error" not in result:
            result["bytes"] = tree_bytes(file)
        return result

    def lineitem(self):
        self.servers()
        contenders = {"duckdb": self.duckdb_to_parquet}
        if TIDEMARK:
            contenders["tidemark"] = self.to_parquet
        return Part("lineitem", f"lineitem at scale {SCALE:g} -> zstd Parquet", "duckdb", contenders).run()

    def check_copy(self, result):
        """A copy that is not whole does not count."""
        if "error" in result:
            return result
        sql = "SELECT concat_ws(' ', " + ", ".join(f"(SELECT count(*) FROM {t})" for t in TABLES)
        sql += ", (SELECT count(*) FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype IN ('p', 'f'))"
        sql += ", (SELECT count(*) FROM pg_indexes WHERE schemaname = 'public'))"
        ours, theirs = self.source.psql("tpch", sql), self.target.psql("copy", sql)
        if ours != theirs:
            result["error"] = f"the copy is not whole: {theirs} instead of {ours}"
        return result

    def to_postgres(self):
        self.fresh_target()
        return self.check_copy(self.tidemark(self.source.url("tpch"), self.target.url("copy")))

    def pgcopydb(self):
        self.fresh_target()
        place = self.work / "pgcopydb"
        shutil.rmtree(place, ignore_errors=True)
        offered = subprocess.run([PGCOPYDB, "clone", "--help"], capture_output=True, text=True, check=False)
        offered = offered.stdout + offered.stderr
        command = [PGCOPYDB, "clone", "--source", self.source.url("tpch"), "--target", self.target.url("copy"), "--dir", str(place),
                   "--table-jobs", "2", "--index-jobs", "2", "--no-acl", "--no-owner"]
        # What a newer version has to be faster.
        command += [flag for flag in ("--skip-vacuum", "--use-copy-binary", "--skip-large-objects") if flag in offered]
        path = f"{BIN}:{os.environ.get('PATH', '')}"
        return self.check_copy(measure(command, {"PATH": path, "PG_CONFIG": str(BIN / "pg_config")}))

    def dump_restore(self):
        self.fresh_target()
        place = self.work / "dump"
        shutil.rmtree(place, ignore_errors=True)
        script = (f"set -e; {BIN}/pg_dump -Fd -Z0 -j2 -f {place} {self.source.url('tpch')}; "
                  f"{BIN}/pg_restore -j2 -d {self.target.url('copy')} {place}")
        return self.check_copy(measure(["sh", "-c", script]))

    def database(self):
        self.servers()
        contenders = {}
        if PGCOPYDB:
            contenders["pgcopydb"] = self.pgcopydb
        contenders["pg_dump -j2 | restore"] = self.dump_restore
        if TIDEMARK:
            contenders["tidemark"] = self.to_postgres
        return Part("database", f"whole database at scale {SCALE:g} -> PostgreSQL, with keys and indexes",
                    "pgcopydb" if PGCOPYDB else "pg_dump -j2 | restore", contenders).run()

    def memory(self):
        self.servers()
        self.source.psql("postgres", "DROP DATABASE IF EXISTS wide WITH (FORCE)")
        self.source.psql("postgres", "DROP DATABASE IF EXISTS columns WITH (FORCE)")
        self.source.psql("postgres", "DROP DATABASE IF EXISTS many WITH (FORCE)")
        for name in ("wide", "columns", "many"):
            self.source.psql("postgres", f"CREATE DATABASE {name}")
        say(f"making {WIDE_ROWS} rows of 50 MB, 1600 columns, 10,000 tables")
        self.source.psql("wide", "CREATE TABLE big (id integer PRIMARY KEY, body bytea NOT NULL); ALTER TABLE big ALTER body SET STORAGE EXTERNAL")
        self.source.psql("wide", f"INSERT INTO big SELECT i, decode(repeat(md5(i::text), 50 * 1000 * 1000 / 16), 'hex') FROM generate_series(1, {WIDE_ROWS}) i")
        kinds = ["integer", "boolean", '"char"', "real"]
        columns = ", ".join(f"c{i} {kinds[i % 4]}" for i in range(1600))
        values = ", ".join(["g", "g % 2 = 0", "'x'", "g / 3.0"][i % 4] for i in range(1600))
        file = self.work / "columns.sql"
        file.write_text(f"CREATE TABLE wide ({columns}); INSERT INTO wide SELECT {values} FROM generate_series(1, 5000) g;")
        run([str(BIN / "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", self.source.url("columns"), "-f", str(file)])
        for first in range(1, 10_001, 1000):
            self.source.psql("many", f"DO $$ BEGIN FOR i IN {first}..{first + 999} LOOP EXECUTE format('CREATE TABLE t%s (id integer PRIMARY KEY, a text)', i); END LOOP; END $$")
        parts = []
        for database, title in (("wide", f"{WIDE_ROWS} rows of 50 MB"), ("columns", "1600 columns, 5000 rows"), ("many", "10,000 empty tables")):
            contenders = {}
            if PGCOPYDB:
                contenders["pgcopydb -> PostgreSQL"] = lambda d=database: self.memory_pgcopydb(d)
            if TIDEMARK:
                contenders["tidemark -> PostgreSQL"] = lambda d=database: self.memory_postgres(d)
                contenders["tidemark -> Parquet"] = lambda d=database: self.memory_parquet(d)
            part = Part(f"memory-{database}", title, "pgcopydb -> PostgreSQL", contenders)
            parts.append(part.run())
        for name in ("wide", "columns", "many"):
            self.source.psql("postgres", f"DROP DATABASE {name}")
        return parts

    def memory_postgres(self, database):
        self.fresh_target()
        return self.tidemark(self.source.url(database), self.target.url("copy"))

    def memory_parquet(self, database):
        lake = self.work / "lake"
        shutil.rmtree(lake, ignore_errors=True)
        result = self.tidemark(self.source.url(database), f"file://{lake}")
        shutil.rmtree(lake, ignore_errors=True)
        return result

    def memory_pgcopydb(self, database):
        self.fresh_target()
        place = self.work / "pgcopydb"
        shutil.rmtree(place, ignore_errors=True)
        return measure([PGCOPYDB, "clone", "--source", self.source.url(database), "--target", self.target.url("copy"), "--dir", str(place),
                        "--table-jobs", "2", "--index-jobs", "2", "--no-acl", "--no-owner"], {"PATH": f"{BIN}:{os.environ.get('PATH', '')}"})


def machine():
    model = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8") if line.startswith("model name")), "?")
    memory = next(int(line.split()[1]) // 1024 for line in open("/proc/meminfo", encoding="utf-8") if line.startswith("MemTotal"))
    return {"cpu": model, "cores": os.cpu_count(), "memory_mb": memory, "kernel": platform.release(), "load": os.getloadavg()[0]}


def ended(number, _frame):
    """Leaves by way of the `finally` that stops the servers; a second signal does not cut that short."""
    for other in (signal.SIGTERM, signal.SIGINT):
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


def measured(names, make):
    """The parts that were asked for, or all, measured by what `make` makes in a directory of its own."""
    wanted = sys.argv[1:] or names
    if not set(wanted) <= set(names):
        sys.exit(f"parts are: {' '.join(names)}")
    if not TIDEMARK or not Path(TIDEMARK).exists():
        sys.exit("there is no tidemark binary")
    work = Path(tempfile.mkdtemp(prefix="tidemark-bench-"))
    work.chmod(0o755)
    subject = make(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ended)
    try:
        return [getattr(subject, name)() for name in wanted]
    finally:
        subject.stop()
        shutil.rmtree(work, ignore_errors=True)


class Followed:
    """pgbench's tables on one server, and a job that keeps another one in step with them."""

    def __init__(self, work, scale):
        self.work, self.scale = work, scale
        self.servers = {role: Server(work / f"followed-{role}", free_port()) for role in ("source", "target")}
        self.source, self.target = (server.url("app") for server in self.servers.values())
        file = work / "followed.toml"
        file.write_text('[job]\nname = "bench"\n')
        self.job = ["-c", str(file), "--source", self.source, "--target", self.target, "--state-dir", str(work / "followed-state"), "--progress", "none"]
        self.follower = self.load = None

    def start(self):
        for server in self.servers.values():
            server.init().start()
            server.psql("postgres", "CREATE DATABASE app")
        run(unprivileged([str(BIN / "pgbench"), "-i", "-s", str(self.scale), "-q", self.source]))
        self.servers["source"].psql("app", "ALTER TABLE pgbench_history ADD id bigserial PRIMARY KEY")
        self.servers["source"].psql("app", "VACUUM ANALYZE")
        demand(measure([TIDEMARK, "sync", *self.job, "--until", "now"]))
        self.servers["target"].psql("app", "VACUUM ANALYZE")
        self.follower = subprocess.Popen([TIDEMARK, "sync", *self.job], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def write(self):
        """1,000 transactions a second, from now on."""
        self.load = subprocess.Popen([str(BIN / "pgbench"), "-n", "-c", "4", "-R", "1000", "-T", "3600", self.source],
                                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self):
        for process in (self.load, self.follower):
            if process:
                process.terminate()
                process.wait()
        for server in self.servers.values():
            server.stop()


def main():
    wanted = sys.argv[1:] or ["lineitem", "database", "memory"]
    if not set(wanted) <= {"lineitem", "database", "memory"}:
        sys.exit("parts are: lineitem database memory")
    if not TIDEMARK or not Path(TIDEMARK).exists():
        globals()["TIDEMARK"] = ""
        say("there is no tidemark binary: only the peers are measured")
    work = Path(tempfile.mkdtemp(prefix="tidemark-bench-"))
    work.chmod(0o755)
    bench = Bench(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ended)
    try:
        parts = []
        for name in wanted:
            done = getattr(bench, name)()
            parts += done if isinstance(done, list) else [done]
    finally:
        bench.stop()
        shutil.rmtree(work, ignore_errors=True)
    versions = {"postgres": version_of([str(BIN / "postgres"), "--version"]), "tidemark": version_of([TIDEMARK, "--version"]) if TIDEMARK else "none",
                "pgcopydb": version_of([PGCOPYDB, "--version"]) if PGCOPYDB else "none",
                "duckdb": version_of([sys.executable, "-c", "import duckdb; print(duckdb.__version__)"])}
    publish("snapshot", versions, parts, scale=SCALE)


if __name__ == "__main__":
    main()
