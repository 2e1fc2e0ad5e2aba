"""Counts the ways to place N queens on an N x N board, none attacking another. Argument: N (default 8).

Real work that grows quickly with its argument (N = 12 takes seconds). All boards up to 12, one task each:

python3 client.py run --array 4-12 HOST PORT test_scripts/n_queens.py
"""

import os
import sys


def count(size: int, row: int = 0, columns: int = 0, falling: int = 0, rising: int = 0) -> int:
    """Ways to fill the rows from `row` on; the bit sets say which columns and diagonals are attacked there."""
    if row == size:
        return 1
    ways = 0
    free = ~(columns | falling | rising) & ((1 << size) - 1)
    while free:
        queen = free & -free
        free ^= queen
        ways += count(size, row + 1, columns | queen, (falling | queen) << 1, (rising | queen) >> 1)
    return ways


if __name__ == "__main__":
    in_array = int(os.environ.get("MICROCLUSTER_TASK_COUNT", "1")) > 1
    size = int(sys.argv[1] if len(sys.argv) > 1 else os.environ["MICROCLUSTER_TASK_INDEX"] if in_array else 8)
    print(f"{size} queens: {count(size)} ways")
