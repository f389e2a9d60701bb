"""Measures a cutover.

Started by `scripts/bench migrate`. Two PostgreSQL 15 servers on this machine; the second is kept in step with the first.

    block    for how long nobody may write: pgbench with 5 M accounts at 1,000 transactions a second, which are ended by the
             fence and begun again before the next cutover; a fallback lies between each two
"""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench
from bench import BIN, Part, Server, demand, free_port, measure, run, say, unprivileged

CUTOVERS = int(os.environ.get("TIDEMARK_BENCH_CUTOVERS", "5"))
SCALE = int(os.environ.get("TIDEMARK_BENCH_PGBENCH_SCALE", "50"))


def block(work):
    servers = {role: Server(work / role, free_port()).init().start() for role in ("source", "target")}
    follower = load = None
    try:
        for server in servers.values():
            server.psql("postgres", "CREATE DATABASE app")
        source, target = (servers[role].url("app") for role in ("source", "target"))
        run(unprivileged([str(BIN / "pgbench"), "-i", "-s", str(SCALE), "-q", source]))
        servers["source"].psql("app", "ALTER TABLE pgbench_history ADD id bigserial PRIMARY KEY")
        servers["source"].psql("app", "VACUUM ANALYZE")
        file, state = work / "block.toml", work / "state"
        file.write_text('[job]\nname = "bench"\n')
        job = ["-c", str(file), "--source", source, "--target", target, "--state-dir", str(state), "--progress", "none"]
        demand(measure([bench.TIDEMARK, "sync", *job, "--until", "now"]))
        servers["target"].psql("app", "VACUUM ANALYZE")
        follower = subprocess.Popen([bench.TIDEMARK, "sync", *job], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        part = Part("block", f"cutover under pgbench, {SCALE * 100_000:,} accounts, 1,000 transactions/s", "tidemark cutover", {"tidemark cutover": None})
        blocks, steps = [], []
        for _ in range(CUTOVERS):
            load = subprocess.Popen([str(BIN / "pgbench"), "-n", "-c", "4", "-R", "1000", "-T", "3600", source],
                                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(5)
            answer = subprocess.run([bench.TIDEMARK, "cutover", *job, "--json"], capture_output=True, text=True, check=False)
            load.wait()
            if answer.returncode != 0:
                sys.exit(answer.stderr)
            ended = json.loads(answer.stdout)
            blocks.append(ended["write_block_ms"])
            steps.append(ended["steps"])
            say(f"{ended['write_block_ms']} ms: {ended['steps']}")
            demand(measure([bench.TIDEMARK, "fallback", *job]))
        part.samples["tidemark cutover"] = [{"seconds": ms / 1000, "cpu": 0, "rss_mb": 0} for ms in blocks]
        part.figures = {"write_block_ms": blocks, "steps": steps}
        part.notes.append(f"nobody could write for {statistics.median(blocks):.0f} ms (median of {CUTOVERS}; {min(blocks)} to {max(blocks)})")
        return part
    finally:
        for process in (load, follower):
            if process:
                process.terminate()
                process.wait()
        for server in servers.values():
            server.stop()


def main():
    names = ["block"]
    wanted = sys.argv[1:] or names
    if not set(wanted) <= set(names):
        sys.exit(f"parts are: {' '.join(names)}")
    if not bench.TIDEMARK or not Path(bench.TIDEMARK).exists():
        sys.exit("there is no tidemark binary")
    work = Path(tempfile.mkdtemp(prefix="tidemark-bench-"))
    work.chmod(0o755)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, bench.ended)
    try:
        parts = [block(work)]
    finally:
        shutil.rmtree(work, ignore_errors=True)
    bench.publish("migrate", {"tidemark": bench.version_of([bench.TIDEMARK, "--version"])}, parts, scale=SCALE)


if __name__ == "__main__":
    main()
