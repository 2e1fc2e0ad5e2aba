#!/usr/bin/env python3
"""Work for a cluster: python3 client.py COMMAND [OPTIONS] HOST PORT .. (--help lists the commands)"""

import sys

from src.cli import main

if __name__ == "__main__":
    sys.exit(main())
