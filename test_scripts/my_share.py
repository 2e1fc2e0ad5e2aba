"""Sums the square roots of its share of 0 .. 999,999: the way to split one big loop over an array.

Every task takes the numbers that leave its index as remainder; alone, the script is the only task and takes them all:

python3 client.py run --array 0-7 HOST PORT test_scripts/my_share.py
"""

import math
import os

index = int(os.environ.get("MICROCLUSTER_TASK_INDEX", "0"))
tasks = int(os.environ.get("MICROCLUSTER_TASK_COUNT", "1"))

share = range(index, 1_000_000, tasks)
print(f"task {index} of {tasks}: {len(share)} numbers, sum {math.fsum(math.sqrt(number) for number in share):.3f}")
