"""Estimates pi by throwing darts at a square. Arguments: number of darts (default 200,000), seed (default 0).

Each task of an array is a seed of its own; the mean of all is better than any:

python3 client.py run --array 0-9 HOST PORT test_scripts/monte_carlo_pi.py 200000
"""

import os
import random
import sys

darts = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(os.environ.get("MICROCLUSTER_TASK_INDEX", "0"))

throw = random.Random(seed).random
hits = sum(throw() ** 2 + throw() ** 2 <= 1 for _ in range(darts))
print(f"seed {seed}: pi is about {4 * hits / darts:.5f} after {darts} darts")
