"""A job table with a long history, made with SQL alone: millions of rows in a minute or two."""

from __future__ import annotations

import json
import os
import time

from src.core.jobs import JobRow, TaskRow
from src.store import Store
from tests.support.sim import spec

SPEC = json.dumps(spec(), separators=(",", ":"))
QUEUED = '{"waiting":[],"queued":[[0,1]],"cancelled":[]}'
DONE = '{"waiting":[],"queued":[],"cancelled":[]}'
_NUMBERS = "WITH RECURSIVE n(id) AS (SELECT :first UNION ALL SELECT id + 1 FROM n WHERE id < :last)"
_JOBS = f"""{_NUMBERS} INSERT INTO job ({", ".join(JobRow._fields)})
    SELECT id, lower(hex(randomblob(16))), NULL, 'job' || (id % 50), 'user' || (id % 20), 0,
    CASE WHEN :queued THEN 'queued' WHEN id % 100 = 0 THEN 'failed' ELSE 'succeeded' END, 1, 0, :queued, 0,
    NOT :queued AND id % 100 <> 0, NOT :queued AND id % 100 = 0, 0, :spec, :sets, :wall - :last + id,
    CASE WHEN :queued THEN NULL ELSE :wall - :last + id END, CASE WHEN :queued THEN NULL ELSE :wall - :last + id + 1 END,
    NULL FROM n"""
_TASKS = f"""{_NUMBERS} INSERT INTO task ({", ".join(TaskRow._fields)})
    SELECT id, 0, CASE WHEN id % 100 = 0 THEN 'failed' ELSE 'succeeded' END, 1, 'w1', :wall - :last + id,
    :wall - :last + id + 1, id % 100 = 0, NULL, NULL, 0.1, 9000000, 12, 0, 0, 0, 0, 0, NULL,
    '00000000000000000000000000000000' FROM n"""
_OUTPUTS = f"{_NUMBERS} INSERT INTO output SELECT id, 0, CAST('hello world' || char(10) AS BLOB), x'' FROM n"


def add_history(folder: str, finished: int, queued: int, spec_text: str = SPEC) -> None:
    """Single jobs, a second apart, the last one now: finished ones first, then queued ones."""
    store = Store(folder)
    store.open()
    store.db.execute("PRAGMA synchronous = OFF")
    first = store.load().next_id
    for count, is_queued in ((finished, 0), (queued, 1)):
        if count:
            values = {
                "first": first, "last": first + count - 1, "queued": is_queued, "spec": spec_text,
                "sets": QUEUED if is_queued else DONE, "wall": time.time(),
            }  # fmt: skip
            store.db.execute("BEGIN")
            for sql in (_JOBS,) if is_queued else (_JOBS, _TASKS, _OUTPUTS):
                store.db.execute(sql, values)
            store.db.execute("INSERT OR REPLACE INTO meta VALUES ('next_id', ?)", (first + count,))
            store.db.execute("COMMIT")
            first += count
    store.close()
    with open(store.path, "rb") as file:
        os.fsync(file.fileno())
