"""Shows the most frequent letters of a text. Imports `textstats.py`, which lies beside it and travels with it.

The text comes from the standard input, or is this docstring when there is none:

python3 client.py run --stdin README.md HOST PORT test_scripts/letter_count.py
"""

import sys

import textstats

text = sys.stdin.read() or __doc__
for letter, times in textstats.frequent_letters(text, 5):
    print(f"{letter}  {times:5}  {textstats.bar(times, len(text))}")
