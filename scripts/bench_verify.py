"""Compares two copies of the same data by tidemark and by others, in turn.

Started by `scripts/bench verify`. Two PostgreSQL 15 servers on this machine hold TPC-H; the second is a copy that
tidemark made before anything is measured.

    database     every table of both sides, level digest; beside a 32-bit hash sum per table in the server (what pgcopydb's
                 `compare data` asks for; a pgcopydb that has the command is measured itself, too) and beside a bare COPY
                 of both sides to nobody
    lineitem     the one large table; beside reladiff
    differences  the same database with 1,000 scattered rows changed on the target, beside the clean one
    again        a job that follows: everything read, the source's side known from the copy, one leaf in a hundred touched, and
                 nothing touched since the last verification
    pause        how long the stream stands at the barrier, under pgbench
"""

import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from pathlib import Path

import bench
from bench import BIN, PGCOPYDB, TABLES, Followed, Part, demand, measure

PAUSES = int(os.environ.get("TIDEMARK_BENCH_PAUSES", "21"))
DIFFERENCES = 1000


class VerifyBench:
    def __init__(self, work):
        self.work, self.bench, self.target, self.followed = work, bench.Bench(work), None, None

    def stop(self):
        self.bench.stop()
        if self.followed:
            self.followed.stop()

    def copies(self):
        """Source and target, the same."""
        if self.target is None:
            self.bench.servers()
            demand(self.bench.to_postgres())
            self.target = self.bench.target
            self.target.psql("copy", "VACUUM (FREEZE, ANALYZE)")
            self.target.psql("copy", "CHECKPOINT")
        return self.urls()

    def urls(self):
        return self.bench.source.url("tpch"), self.target.url("copy")

    def ours(self, *more, differs=False):
        source, target = self.copies()
        result = measure([bench.TIDEMARK, "verify", "--quiesced", "--source", source, "--target", target, "--progress", "none", *more])
        # 1 is the answer that is expected where rows differ.
        if differs and result.get("error", "").startswith("exit 1:"):
            return {key: value for key, value in result.items() if key != "error"}
        if differs and "error" not in result:
            result["error"] = "it found no difference"
        return result

    def both(self, statement, tables):
        """A statement for each of these tables on both sides, two sessions on each."""
        lists = [[], []]
        for number, table in enumerate(tables):
            lists[number % 2].append(statement.format(table=table))
        script = ""
        for url in self.copies():
            for statements in lists:
                asked = " ".join(f'-c "{each}"' for each in statements)
                script += f"{BIN}/psql -XAtq -o /dev/null -d {url} {asked} & "
        return measure(["sh", "-c", script + "wait"])

    def hash_sums(self, tables):
        return self.both("SELECT count(*), sum(hashtext(t::text)::bigint) FROM ONLY {table} t", tables)

    def bare_copy(self, tables):
        return self.both("COPY {table} TO STDOUT (FORMAT binary)", tables)

    def compare_data(self):
        source, target = self.copies()
        place = self.work / "pgcopydb"
        shutil.rmtree(place, ignore_errors=True)
        return measure([PGCOPYDB, "compare", "data", "--source", source, "--target", target, "--dir", str(place)],
                       {"PATH": f"{BIN}:{os.environ.get('PATH', '')}"})

    def database(self):
        self.copies()
        # The largest first, so that the two sessions end at about the same time.
        tables = sorted(TABLES, key=lambda table: -int(self.bench.source.psql("tpch", f"SELECT pg_table_size('{table}')")))
        contenders = {}
        if PGCOPYDB and "compare" in subprocess.run([PGCOPYDB], capture_output=True, text=True, check=False).stderr:
            contenders["pgcopydb compare data"] = self.compare_data
        contenders["hash sums in the server"] = lambda: self.hash_sums(tables)
        contenders["bare COPY of both"] = lambda: self.bare_copy(tables)
        contenders["tidemark verify"] = self.ours
        return Part("database", f"both sides of TPC-H at scale {bench.SCALE:g}, level digest", next(iter(contenders)), contenders).run()

    def lineitem(self):
        source, target = self.copies()
        contenders = {"tidemark verify": lambda: self.ours("--table", "public.lineitem")}
        reladiff = Path(sys.executable).parent / "reladiff"
        if reladiff.exists():
            # It ends with 0 whatever happens, also for a URL that libpq understands and it does not.
            one, other = (url.replace("postgres://", "postgresql://") for url in (source, target))
            contenders["reladiff"] = lambda: measure([str(reladiff), one, "lineitem", other, "lineitem", "-k", "l_orderkey", "-k", "l_linenumber",
                                                      "-c", "%", "--threads", "4", "--stats"], says="rows in table B")
        part = Part("lineitem", f"both sides of lineitem at scale {bench.SCALE:g}", "tidemark verify", contenders).run()
        if not reladiff.exists():
            part.leave_out("reladiff", "it could not be installed")
        return part

    def differences(self):
        self.copies()
        rows = int(self.target.psql("copy", "SELECT count(*) FROM lineitem"))
        change = "UPDATE lineitem SET l_quantity = l_quantity {sign} 1 WHERE (l_orderkey, l_linenumber) IN (" \
                 f"SELECT l_orderkey, l_linenumber FROM (SELECT *, row_number() OVER (ORDER BY l_orderkey, l_linenumber) n FROM lineitem) x WHERE n % {rows // DIFFERENCES} = 0)"

        def other():
            self.target.psql("copy", change.format(sign="+"))
            self.target.psql("copy", "CHECKPOINT")
            found = self.work / "found"
            shutil.rmtree(found, ignore_errors=True)
            result = self.ours("--table", "public.lineitem", "--report", str(found), differs=True)
            self.target.psql("copy", change.format(sign="-"))
            self.target.psql("copy", "VACUUM lineitem")
            if "error" not in result:
                result["keys"] = sum(1 for line in open(found / "diff.ndjson", encoding="utf-8") if '"key"' in line)
            return result

        contenders = {"the same": lambda: self.ours("--table", "public.lineitem"), "with differences": other}
        part = Part("differences", f"lineitem with {DIFFERENCES:,} rows changed", "the same", contenders).run()
        part.figures = {"keys": [sample.get("keys") for sample in part.samples["with differences"]]}
        part.notes.append(f"keys in diff.ndjson: {part.figures['keys']}")
        return part

    def again(self):
        """A job that follows, of which less and less is read."""
        self.copies()
        server, target = self.bench.source, self.target.url("followed")
        self.target.psql("postgres", "CREATE DATABASE followed")
        file, state = self.work / "again.toml", self.work / "again-state"
        file.write_text('[job]\nname = "again"\n')
        job = ["-c", str(file), "--source", server.url("tpch"), "--target", target, "--state-dir", str(state), "--progress", "none"]
        demand(measure([bench.TIDEMARK, "sync", *job, "--until", "now"]))
        self.target.psql("followed", "VACUUM (FREEZE, ANALYZE)")
        follower = subprocess.Popen([bench.TIDEMARK, "sync", *job], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        orders = int(server.psql("tpch", "SELECT max(o_orderkey) FROM orders"))
        turn = 0

        def verify(*more):
            report = self.work / "again-report"
            shutil.rmtree(report, ignore_errors=True)
            result = measure([bench.TIDEMARK, "verify", *job, "--report", str(report), *more])
            if "error" not in result:
                reading = json.loads((report / "report.json").read_text())["reading"]
                result["bytes"] = reading["source_bytes"] + reading["target_bytes"]
            return result

        def copied():
            # As it was after the copy: what verifications have proven since is forgotten.
            with sqlite3.connect(state / "ledger.sqlite") as ledger:
                ledger.execute("DELETE FROM proven")
                ledger.execute("DELETE FROM proof")
            ledger.close()
            return verify("--dirty")

        def touched():
            nonlocal turn
            turn += 1
            at = orders * (turn % 90 + 5) // 100
            for table, key in (("orders", "o_orderkey"), ("lineitem", "l_orderkey")):
                column = table[0] + "_comment"
                server.psql("tpch", f"UPDATE {table} SET {column} = {column} WHERE {key} = (SELECT max({key}) FROM {table} WHERE {key} <= {at})")
            return verify("--dirty")

        try:
            time.sleep(3)
            tables = sorted(TABLES, key=lambda table: -int(server.psql("tpch", f"SELECT pg_table_size('{table}')")))
            contenders = {
                "hash sums in the server": lambda: self.hash_sums(tables),
                "right after the copy": copied,
                "everything": verify,
                "a leaf in a hundred": touched,
                "nothing touched": lambda: verify("--dirty"),
            }
            return Part("again", f"both sides of TPC-H at scale {bench.SCALE:g}, a job that follows", "hash sums in the server", contenders).run()
        finally:
            follower.terminate()
            follower.wait()

    def pause(self):
        """A job that follows under pgbench, verified again and again."""
        pair = self.followed = Followed(self.work, 10)
        pair.start()
        pair.write()
        time.sleep(3)
        part = Part("pause", "verified under pgbench, 1,000 transactions/s", "tidemark verify", {"tidemark verify": None})
        pauses = []
        for _ in range(PAUSES):
            report = self.work / "pause-report"
            shutil.rmtree(report, ignore_errors=True)
            part.samples["tidemark verify"].append(demand(measure([bench.TIDEMARK, "verify", *pair.job, "--report", str(report)])))
            pauses.append(pause_of(json.loads((report / "report.json").read_text())))
        part.figures = {"pause_ms": pauses, "median_ms": statistics.median(pauses)}
        part.notes.append(f"the stream stood for {statistics.median(pauses):.0f} ms (median of {PAUSES}; {min(pauses):.0f} to {max(pauses):.0f})")
        return part


def pause_of(report):
    """Milliseconds that the stream stood."""
    return max(float(barrier["pause_ms"]) for barrier in report["point"]["barriers"])


def main():
    parts = bench.measured(["database", "lineitem", "differences", "again", "pause"], VerifyBench)
    bench.publish("verify", {"tidemark": bench.version_of([bench.TIDEMARK, "--version"])}, parts, scale=bench.SCALE)


if __name__ == "__main__":
    main()
