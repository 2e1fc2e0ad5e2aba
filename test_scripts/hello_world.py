"""Greets its first argument: the smallest script that shows whether a cluster works.

python3 client.py run HOST PORT test_scripts/hello_world.py Alice
"""

import sys

print(f"Hello, {sys.argv[1] if len(sys.argv) > 1 else 'World'}!")
