#!/usr/bin/env python3
"""The machines of a cluster: python3 run.py manager|worker|local|key [OPTIONS] [HOST [PORT]]"""

import sys

from src.machines import main

if __name__ == "__main__":
    sys.exit(main())
