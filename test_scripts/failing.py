"""Fails, as scripts do: some output, then an uncaught exception, its traceback and exit code 1.

`client.py run` shows both and exits with 1; `client.py status HOST PORT last` shows the job as failed.
"""

import sys

MEASUREMENTS = {"monday": 3.5, "tuesday": 4.25}


def mean(days: list) -> float:
    return sum(MEASUREMENTS[day] for day in days) / len(days)


print("mean of two days:", mean(["monday", "tuesday"]))
print("now with a day that was never measured", file=sys.stderr)
print("mean of three days:", mean(["monday", "tuesday", "wednesday"]))
