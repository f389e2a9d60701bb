"""Measures a delta run beside a bare COPY scan of the source, in turn.

Started by `scripts/bench delta`. Two PostgreSQL 15 servers on this machine; the source has one table of TIDEMARK_BENCH_ROWS rows
(default 5,000,000), and the target what the first run has moved. Before each round 1 % of the rows are new, 1 % modified
and 0.5 % deleted, scattered over the table; the run applies all of them.

    changes     as above
    nothing     nothing has changed
    target      the same changes, compared with the target's rows (--scan-target)
    slot        the same changes while no slot was there: sync --target-not-empty reconcile beside a new copy of everything
"""

import os

import bench
from bench import BIN, Part, Server, demand, free_port, measure, say

ROWS = int(os.environ.get("TIDEMARK_BENCH_ROWS", "5000000"))
TABLE = "CREATE TABLE items (id bigint PRIMARY KEY, customer int NOT NULL, amount numeric(12,2), note text, at timestamptz NOT NULL)"
ROW = "i, i % 10007, (i % 100000) / 100.0, md5(i::text) || repeat('x', (i % 40)::int), timestamptz '2024-01-01' + i * interval '1 second'"


class DeltaBench:
    def __init__(self, work):
        self.work = work
        self.source, self.copy = Server(work / "source", free_port()), Server(work / "target", free_port())
        self.state, self.round = work / "state", None

    def start(self):
        self.round = 0
        for server in (self.source, self.copy):
            server.init().start()
            server.psql("postgres", "CREATE DATABASE shop")
            server.psql("shop", TABLE)
        say(f"making {ROWS:,} rows")
        self.source.psql("shop", f"INSERT INTO items SELECT {ROW} FROM generate_series(1, {ROWS}) i")
        self.source.psql("shop", "VACUUM (FREEZE, ANALYZE) items")
        first = demand(self.delta())
        say(f"the first run, everything new: {first['seconds']:.1f} s, {first['rss_mb']:.0f} MB")
        self.copy.psql("shop", "VACUUM (FREEZE, ANALYZE) items")
        self.calm()

    def stop(self):
        for server in (self.source, self.copy):
            server.stop()

    def calm(self):
        for server in (self.source, self.copy):
            server.psql("shop", "CHECKPOINT")

    def change(self):
        """1 % new, 1 % modified, 0.5 % deleted."""
        self.round += 1
        part, high = self.round % 200, ROWS * 10 + self.round * ROWS
        self.source.psql("shop", f"INSERT INTO items SELECT {ROW} FROM generate_series({high}, {high} + {ROWS // 100} - 1) i")
        self.source.psql("shop", f"UPDATE items SET note = note || '!' WHERE id % 100 = {part % 100} AND id <= {ROWS}")
        self.source.psql("shop", f"DELETE FROM items WHERE id % 200 = {(part + 50) % 200} AND id <= {ROWS}")
        self.source.psql("shop", "VACUUM items")
        self.calm()

    def delta(self, *more):
        return measure([bench.TIDEMARK, "delta", "--source", self.source.url("shop"), "--target", self.copy.url("shop"), "--deleted", "apply",
                        "--job", "bench", "--state-dir", str(self.state), "--progress", "none", *more])

    def sync(self, not_empty):
        """Follows anew after the slot was lost, up to now."""
        self.source.psql("shop", "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        return measure([bench.TIDEMARK, "sync", "--source", self.source.url("shop"), "--target", self.copy.url("shop"), "--until", "now",
                        "--job", "again", "--state-dir", str(self.work / "again"), "--progress", "none", "--target-not-empty", not_empty, "--yes"])

    def bare(self):
        return measure([str(BIN / "psql"), "-XAtq", "-o", "/dev/null", "-d", self.source.url("shop"), "-c", "COPY items TO STDOUT (FORMAT binary)"])

    def check(self, result):
        """A run that has not moved everything does not count."""
        sql = "SELECT concat_ws(' ', count(*), sum(hashtext(t::text)::bigint)) FROM items t"
        ours, theirs = self.source.psql("shop", sql), self.copy.psql("shop", sql)
        if "error" not in result and ours != theirs:
            result["error"] = f"the target has {theirs} instead of {ours}"
        return result

    def part(self, name, title, prepare, work):
        if self.round is None:
            self.start()

        def bare():
            prepare()
            return self.bare()
        return Part(name, f"{title}, {ROWS:,} rows", "bare COPY of the source", {"bare COPY of the source": bare, "tidemark delta": work}).run()

    def changes(self):
        return self.part("changes", "1 % new, 1 % modified, 0.5 % deleted", self.change, lambda: self.check(self.delta()))

    def nothing(self):
        return self.part("nothing", "nothing has changed", self.calm, self.delta)

    def slot(self):
        if self.round is None:
            self.start()

        def anew(not_empty):
            self.change()
            return self.check(self.sync(not_empty))
        ways = {"a new copy (truncate)": lambda: anew("truncate"), "tidemark reconcile": lambda: anew("reconcile")}
        return Part("slot", f"following again after a lost slot, {ROWS:,} rows", "a new copy (truncate)", ways).run()

    def target(self):
        return self.part("target", "the same changes, compared with the target", self.change, lambda: self.check(self.delta("--scan-target")))


def main():
    parts = bench.measured(["changes", "nothing", "target", "slot"], DeltaBench)
    bench.publish("delta", {"tidemark": bench.version_of([bench.TIDEMARK, "--version"])}, parts, rows=ROWS)


if __name__ == "__main__":
    main()
