"""Measures a cutover.

Started by `scripts/bench migrate`. Two PostgreSQL 15 servers on this machine; the second is kept in step with the first.

    block    for how long nobody may write: pgbench with 5 M accounts at 1,000 transactions a second, which are ended by the
             fence and begun again before the next cutover; a fallback lies between each two
"""

import json
import os
import statistics
import subprocess
import sys
import time

import bench
from bench import Followed, Part, demand, measure, say

CUTOVERS = int(os.environ.get("TIDEMARK_BENCH_CUTOVERS", "5"))
SCALE = int(os.environ.get("TIDEMARK_BENCH_PGBENCH_SCALE", "50"))


class MigrateBench:
    def __init__(self, work):
        self.pair = Followed(work, SCALE)

    def stop(self):
        self.pair.stop()

    def block(self):
        """Cutovers under load."""
        self.pair.start()
        part = Part("block", f"cutover under pgbench, {SCALE * 100_000:,} accounts, 1,000 transactions/s", "tidemark cutover", {"tidemark cutover": None})
        blocks, steps = [], []
        for _ in range(CUTOVERS):
            self.pair.write()
            time.sleep(5)
            answer = subprocess.run([bench.TIDEMARK, "cutover", *self.pair.job, "--json"], capture_output=True, text=True, check=False)
            if answer.returncode != 0:
                sys.exit(answer.stderr)
            # The fence has ended it.
            self.pair.load.wait()
            ended = json.loads(answer.stdout)
            blocks.append(ended["write_block_ms"])
            steps.append(ended["steps"])
            say(f"{ended['write_block_ms']} ms: {ended['steps']}")
            demand(measure([bench.TIDEMARK, "fallback", *self.pair.job]))
        part.samples["tidemark cutover"] = [{"seconds": ms / 1000, "cpu": 0, "rss_mb": 0} for ms in blocks]
        part.figures = {"write_block_ms": blocks, "steps": steps}
        part.notes.append(f"nobody could write for {statistics.median(blocks):.0f} ms (median of {CUTOVERS}; {min(blocks)} to {max(blocks)})")
        return part


def main():
    parts = bench.measured(["block"], MigrateBench)
    bench.publish("migrate", {"tidemark": bench.version_of([bench.TIDEMARK, "--version"])}, parts, scale=SCALE)


if __name__ == "__main__":
    main()
