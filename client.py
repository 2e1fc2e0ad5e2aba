#!/usr/bin/env python3
"""Work for a cluster: python3 client.py COMMAND [OPTIONS] HOST PORT .. (--help lists the commands)"""

from src.cli import program_main

if __name__ == "__main__":
    program_main()
