"""A source that writes more than the target can take, what is kept meanwhile, and the way back.

Started by bench_stream.py. The target's sessions of tidemark run a small part of the time only (SIGSTOP and SIGCONT), as on a
machine without CPU to spare, while pgbench writes many times what they take. Every second what `status --json` says is set beside what
the servers themselves say. Three stretches:

    overload   the target is held back: memory is flat, the WAL kept because of us stays at limits.source_wal, lag is told as it is
    recovery   the target runs freely and the writer goes on: how long until it is there
    hold       a transaction of somebody else stays open on the source: what is kept because of it is told apart and named
"""

import json
import os
import signal
import statistics
import subprocess
import threading
import time
from pathlib import Path

import bench
from bench import BIN, say

SECONDS = int(os.environ.get("TIDEMARK_BENCH_OVERLOAD_SECONDS", "120"))
HOLD_SECONDS = int(os.environ.get("TIDEMARK_BENCH_HOLD_SECONDS", "80"))
# The part of the time that the target's sessions run.
SHARE = float(os.environ.get("TIDEMARK_BENCH_TARGET_SHARE", "0.001"))
PULSE_SECONDS = 0.5
# Between two looks which sessions there are.
LOOK_SECONDS = 15
# Transactions a second of the writer, four changes each.
RATE = int(os.environ.get("TIDEMARK_BENCH_WRITER_RATE", "2000"))
MIB = 1 << 20
MEMORY, SOURCE_WAL = 128 * MIB, 64 * MIB
CONFIG = f'[limits]\nmemory = "{MEMORY // MIB}MiB"\nsource_wal = "{SOURCE_WAL // MIB}MiB"\n'
# limits.memory is about rows; the program itself comes on top (as for the snapshot).
RSS_MAX = MEMORY + 100 * MIB
# The guard looks once a second and acknowledges in steps: what is written meanwhile comes on top.
KEPT_MAX = SOURCE_WAL + 48 * MIB
# status looks at the source once a second, the bench in its own rhythm.
SECONDS_WRONG_MAX = 3.0

HEAD = ("SELECT json_build_object('head', pg_current_wal_insert_lsn() - '0/0', 'confirmed', confirmed_flush_lsn - '0/0', "
        "'restart', restart_lsn - '0/0', 'now', extract(epoch FROM clock_timestamp())) FROM pg_replication_slots WHERE slot_name = 'tidemark_bench'")
STANDS = ("SELECT json_build_object('end', (SELECT end_lsn - '0/0' FROM tidemark.progress), "
          "'stamp', (SELECT extract(epoch FROM stamp) FROM pgbench_history ORDER BY id DESC LIMIT 1))")


class Throttle(threading.Thread):
    """Lets the sessions of tidemark on a server run a part of the time."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.over, self.pids = server, threading.Event(), []

    def run(self):
        looked = 0.0
        while not self.over.is_set():
            if time.monotonic() - looked > LOOK_SECONDS:
                # They run meanwhile: a session that is stopped may hold what the question needs.
                sessions = self.server.psql("postgres", "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name <> 'psql'")
                self.pids, looked = [int(pid) for pid in sessions.split()], time.monotonic()
            time.sleep(PULSE_SECONDS * SHARE)
            self.signal(signal.SIGSTOP)
            self.over.wait(PULSE_SECONDS * (1 - SHARE))
            self.signal(signal.SIGCONT)

    def signal(self, number):
        for pid in self.pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def stop(self):
        self.over.set()
        self.join()


class Overload:
    def __init__(self, source, target, state):
        self.source, self.target, self.state = source, target, state
        self.log = state.parent / "overload.log"
        self.follower = self.writer = self.throttle = self.holder = None

    def run(self):
        try:
            self.start()
            figures = {"overload": self.overload(), "recovery": self.recovery(), "hold": self.hold()}
            return figures, self.is_equal()
        finally:
            self.stop()

    def start(self):
        file = self.state.parent / "overload.toml"
        file.write_text(f'[job]\nname = "bench"\n{CONFIG}')
        command = [bench.TIDEMARK, "sync", "-c", str(file), "--source", self.source.url("app"), "--target", self.target.url("app"),
                   "--state-dir", str(self.state), "--progress", "none"]
        with open(self.log, "wb") as log:
            self.follower = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        for _ in range(300):
            if self.status().get("phase") == "follow":
                break
            time.sleep(0.1)
        else:
            raise SystemExit(f"the job does not follow:\n{self.log.read_text()[-2000:]}")
        self.writer = subprocess.Popen([str(BIN / "pgbench"), "-n", "-c", "4", "-j", "2", "-R", str(RATE), "-T", "3600", self.source.url("app")],
                                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self):
        if self.throttle:
            self.throttle.stop()
        for process in (self.holder, self.writer, self.follower):
            if process and process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait()

    def status(self):
        done = subprocess.run([bench.TIDEMARK, "status", "--json", "--job", "bench", "--state-dir", str(self.state)],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        return json.loads(done.stdout) if done.returncode == 0 else {}

    def sample(self):
        """What status says, and right after it what is so."""
        if self.follower.poll() is not None:
            raise SystemExit(f"tidemark ended by itself:\n{self.log.read_text()[-2000:]}")
        status = self.status()
        head = json.loads(self.source.psql("app", HEAD))
        stands = json.loads(self.target.psql("app", STANDS))
        lag = status.get("lag", {})
        return {
            "rss": rss_of(self.follower.pid), "spool": tree_bytes(self.state / "spool"), "spool_told": status.get("spool_bytes", 0),
            "kept_for_us": head["head"] - head["confirmed"], "kept": head["head"] - head["restart"], "kept_told": status.get("retained_wal_bytes", 0),
            "bytes": head["head"] - stands["end"], "bytes_told": lag.get("bytes") or 0,
            "seconds": max(0.0, head["now"] - (stands["stamp"] or head["now"])), "seconds_told": lag.get("seconds") or 0.0,
            "head": head["head"], "others_told": status.get("retained_by_others") or "",
        }

    def samples(self, seconds, until=lambda sample: False):
        taken, began = [], time.monotonic()
        while time.monotonic() - began < seconds:
            taken.append({"at": time.monotonic() - began, **self.sample()})
            if until(taken[-1]):
                break
            time.sleep(max(0.0, len(taken) - (time.monotonic() - began)))
        return taken

    def overload(self):
        say(f"overload: {RATE} transactions a second for {SECONDS} s, the target's sessions run {SHARE:.1%} of the time")
        self.throttle = Throttle(self.target)
        self.throttle.start()
        taken = self.samples(SECONDS)
        self.throttle.stop()
        self.throttle = None
        return taken

    def recovery(self):
        say("recovery: the target runs freely, the writer goes on")
        return self.samples(900, lambda sample: sample["seconds"] < 1 and sample["spool_told"] == 0)

    def hold(self):
        say(f"hold: somebody's transaction is open for {HOLD_SECONDS} s")
        self.holder = subprocess.Popen([str(BIN / "psql"), "-XAtq", "-d", self.source.url("app"), "-c",
                                        f"BEGIN; CREATE TEMPORARY TABLE held AS SELECT pg_current_xact_id(); SELECT pg_sleep({HOLD_SECONDS + 60}); COMMIT"],
                                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        taken = self.samples(HOLD_SECONDS)
        self.source.psql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'BEGIN; CREATE TEMPORARY TABLE held%'")
        self.holder.wait()
        return taken

    def is_equal(self):
        self.writer.send_signal(signal.SIGTERM)
        self.writer.wait()
        sql = "SELECT concat_ws(' ', (SELECT count(*) FROM pgbench_history), (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches))"
        wanted = self.source.psql("app", sql)
        for _ in range(600):
            if self.target.psql("app", sql) == wanted:
                return True
            time.sleep(0.1)
        return False


def rss_of(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def tree_bytes(directory):
    total = 0
    for file in directory.glob("*"):
        try:
            total += file.stat().st_size
        except FileNotFoundError:
            pass
    return total


ROWS = [("RSS, MiB", "rss", MIB), ("WAL kept for us, MiB", "kept_for_us", MIB), ("WAL kept in all, MiB", "kept", MIB), ("  by status, MiB", "kept_told", MIB),
        ("spool, MiB", "spool", MIB), ("  by status, MiB", "spool_told", MIB), ("lag, MiB of WAL", "bytes", MIB), ("  by status, MiB", "bytes_told", MIB),
        ("lag, s", "seconds", 1), ("  by status, s", "seconds_told", 1)]


def table(figures):
    lines = []
    for stretch, samples in figures.items():
        lines.append(f"\n{stretch:<24} {'min':>9} {'median':>9} {'max':>9}   ({len(samples)} samples in {samples[-1]['at']:.0f} s)")
        for title, key, unit in ROWS:
            values = [sample[key] / unit for sample in samples]
            lines.append(f"{title:<24} {min(values):>9.1f} {statistics.median(values):>9.1f} {max(values):>9.1f}")
    return "\n".join(lines)


def judge(figures, is_equal):
    """What is not as it must be; empty if all is."""
    wrong = [] if is_equal else ["the target is not where the source is"]
    everything = [sample for samples in figures.values() for sample in samples]
    for key, limit, what in (("rss", RSS_MAX, "RSS"), ("kept_for_us", KEPT_MAX, "WAL kept for us")):
        most = max(sample[key] for sample in everything)
        if most > limit:
            wrong.append(f"{what}: {most / MIB:.0f} MiB, at most {limit / MIB:.0f} were allowed")
    off = max(abs(sample["seconds"] - sample["seconds_told"]) for sample in everything)
    if off > SECONDS_WRONG_MAX:
        wrong.append(f"lag: status is wrong by up to {off:.1f} s")
    if figures["overload"][-1]["seconds"] < SECONDS_WRONG_MAX:
        wrong.append("the target was not held back: lower TIDEMARK_BENCH_TARGET_SHARE")
    if HOLD_SECONDS > 65 and not any("transaction of process" in sample["others_told"] for sample in figures["hold"]):
        wrong.append("status does not name the transaction that keeps WAL")
    return wrong
