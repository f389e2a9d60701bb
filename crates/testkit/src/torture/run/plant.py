"""Writes the snapshot files of one table of a lake anew, with some rows edited.

Arguments: their directory; a list of pairs: the columns that find a row, and what becomes of it: rows with these columns
changed, none when it is gone.
"""

import json
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq

directory, edits = sys.argv[1], json.loads(sys.argv[2])


def text(value):
    return None if value is None else str(value)


def find(rows, wanted):
    for at, row in enumerate(rows):
        if all(text(row[name]) == text(value) for name, value in wanted.items()):
            return at
    return None


files = {}
for name in sorted(os.listdir(directory)):
    # Not by its path: a directory of that name might be taken for a partition.
    table = pq.ParquetFile(os.path.join(directory, name)).read()
    files[name] = (table.schema, table.to_pylist())

taken = []
for wanted, becomes in edits:
    for name, (schema, rows) in files.items():
        at = find(rows, wanted)
        if at is not None:
            taken.append((name, rows.pop(at), becomes))
            break
    else:
        sys.exit(f"no row {wanted} in {directory}")

for name, row, becomes in taken:
    schema, rows = files[name]
    for changes in becomes:
        rows.append({**row, **{column: value for column, value in changes.items() if column in row}})

for name in {name for name, _, _ in taken}:
    schema, rows = files[name]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), os.path.join(directory, name))
