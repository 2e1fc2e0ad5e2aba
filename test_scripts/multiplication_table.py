"""Writes a file, table.csv, into its working directory. Argument: the size of the table (default 10).

On a cluster the working directory is gone after the script; --return says which files to keep, fetch downloads them:

python3 client.py run --return '*.csv' HOST PORT test_scripts/multiplication_table.py 12
python3 client.py fetch HOST PORT last
"""

import csv
import sys

size = int(sys.argv[1]) if len(sys.argv) > 1 else 10
numbers = range(1, size + 1)

with open("table.csv", "w", newline="", encoding="utf-8") as file:
    csv.writer(file).writerows([a * b for b in numbers] for a in numbers)
print(f"table.csv: {size} rows of {size} products")
