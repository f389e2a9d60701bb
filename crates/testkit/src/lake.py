"""Prints a psql script that loads the present state of a lake, read as docs/lake-format.md says, into empty tables.

Shares nothing with what wrote the lake: pyarrow reads the files, and the changes are applied row by row in the order of
(_commit_lsn, _seq). What no commit lists is not read. Fails on whatever a reader could not make sense of.
"""

import collections
import datetime
import glob
import json
import os
import sys

import pyarrow.parquet as parquet


def text(value):
    """A value as PostgreSQL reads it."""
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    if isinstance(value, (datetime.datetime, datetime.date)):
        return value.isoformat()
    if isinstance(value, (list, tuple)):
        return "{" + ",".join("NULL" if item is None else quoted(text(item)) for item in value) + "}"
    return str(value)


def quoted(item):
    return '"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"'


def copied(value):
    """A value in COPY's text format."""
    if value is None:
        return "\\N"
    out = text(value)
    for plain, escaped in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        out = out.replace(plain, escaped)
    return out


def hashable(value):
    return tuple(hashable(item) for item in value) if isinstance(value, list) else value


class Table:
    def __init__(self, described):
        self.name = described["name"]
        self.columns = [column["name"] for column in described["columns"]]
        self.key = described["key"]
        self.rows = {}
        self.bag = collections.Counter()

    def image(self, row):
        return tuple(hashable(row[name]) for name in self.columns)

    def insert(self, row):
        if not self.key:
            self.bag[self.image(row)] += 1
            return
        key = tuple(row[name] for name in self.key)
        if key in self.rows:
            raise SystemExit(f"{self.name}: a row with the key of another is inserted: {key}")
        self.rows[key] = self.image(row)

    def apply(self, row):
        operation = row["_op"]
        if operation == "t":
            self.rows.clear()
            self.bag.clear()
        elif operation == "i":
            self.insert(row)
        elif operation == "d" and not self.key:
            image = self.image(row)
            if self.bag[image] == 0:
                raise SystemExit(f"{self.name}: a row is deleted that is not there: {image}")
            self.bag[image] -= 1
        elif operation in "ud":
            old = row["_old_key"]
            key = tuple((row if old is None else old)[name] for name in self.key)
            if key not in self.rows:
                raise SystemExit(f"{self.name}: {operation} of a row that is not there: {key}")
            before = dict(zip(self.columns, self.rows.pop(key)))
            if operation == "u":
                self.insert({**row, **{name: before[name] for name in row["_unchanged"]}})
        else:
            raise SystemExit(f"unknown operation {operation}")

    def all(self):
        yield from self.rows.values()
        for image, count in self.bag.items():
            for _ in range(count):
                yield image


class Part:
    """What the commits list of a table since it began anew."""

    def __init__(self, described):
        self.described, self.base, self.changes = described, described["files"], []


def listed(root):
    """The tables as the commits leave them, each with its files."""
    tables, last = {}, 0
    for number, path in enumerate(sorted(glob.glob(os.path.join(root, "_tidemark/commits/*.json")))):
        with open(path, encoding="utf-8") as document:
            commit = json.load(document)
        if commit["commit"] != number or int(os.path.basename(path)[:-5]) != number:
            raise SystemExit(f"commits are not dense: {path}")
        high, low = commit["end_lsn"].split("/")
        end_lsn = int(high, 16) << 32 | int(low, 16)
        if end_lsn < last:
            raise SystemExit(f"the position goes back in {path}")
        if commit["kind"] in ("join", "reset") and end_lsn != last:
            raise SystemExit(f"the position moves in {path}")
        for described in commit["tables"]:
            name = described["schema"], described["name"]
            if commit["kind"] == "reset":
                del tables[name]
            elif commit["kind"] in ("snapshot", "join"):
                if (number == 0) != (commit["kind"] == "snapshot") or name in tables:
                    raise SystemExit(f"{path} begins a table that is there: {name}")
                tables[name] = Part(described)
            elif commit["kind"] == "changes" and name in tables:
                # What tells a row apart in the stream may be another index than the primary key.
                tables[name].described = {**tables[name].described, "key": described["key"]}
                tables[name].changes += [(file, path, last, end_lsn) for file in described["files"]]
            else:
                raise SystemExit(f"{path}: {commit['kind']} lists {name}")
        last = end_lsn
    return tables


def read(root, file):
    rows = parquet.read_table(os.path.join(root, file["path"])).to_pylist()
    if len(rows) != file["rows"]:
        raise SystemExit(f"{file['path']} has {len(rows)} rows, the commit says {file['rows']}")
    return rows


def changes_of(root, name, part):
    changes = []
    for file, path, last, end_lsn in part.changes:
        rows = read(root, file)
        for row in rows:
            if not last < row["_commit_lsn"] <= end_lsn:
                raise SystemExit(f"{path} has a change of another commit's range: {row['_commit_lsn']}")
        changes.extend(rows)
    changes.sort(key=lambda row: (row["_commit_lsn"], row["_seq"]))
    for before, after in zip(changes, changes[1:]):
        if (before["_commit_lsn"], before["_seq"]) == (after["_commit_lsn"], after["_seq"]):
            raise SystemExit(f"two changes of {name} have one number: {after['_commit_lsn']} {after['_seq']}")
    return changes


def main(root):
    for name, part in listed(root).items():
        table = Table(part.described)
        for file in part.base:
            for row in read(root, file):
                table.insert(row)
        for row in changes_of(root, name, part):
            table.apply(row)
        columns = ", ".join('"' + column + '"' for column in table.columns)
        print(f'COPY "{name[0]}"."{name[1]}" ({columns}) FROM STDIN;')
        for image in table.all():
            print("\t".join(copied(value) for value in image))
        print("\\.")


if __name__ == "__main__":
    main(sys.argv[1])
