#!/usr/bin/env python3
"""Work for a cluster: python3 client.py COMMAND [OPTIONS] HOST PORT .. (--help lists the commands)"""

import gc

gc.disable()  # what starting makes stays; the command collects again

from src.cli import program_main  # noqa: E402

if __name__ == "__main__":
    program_main()
