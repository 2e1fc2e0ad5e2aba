# /// script
# requires-python = ">=3.9"
# dependencies = []
# ///
"""Says in its first lines what it needs (inline script metadata, PEP 723).

`requires-python` chooses the worker's interpreter. Packages listed under `dependencies`, such as "numpy>=1.26", get a
virtual environment, made once per worker and then reused. There are none here, so that it runs without a network:

python3 client.py run HOST PORT test_scripts/needs.py
"""

import sys

assert sys.version_info >= (3, 9), "the metadata above was not respected"
print("Python is new enough for this script")
