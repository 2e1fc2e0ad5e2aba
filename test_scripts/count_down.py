"""Counts down, slowly: output arrives line by line while the script runs. Arguments: from (default 5), pause (0.2 s).

Look at it from another terminal, or from another machine, while it runs:

python3 client.py submit HOST PORT test_scripts/count_down.py 60 1
python3 client.py result --follow HOST PORT last
"""

import sys
import time

start = int(sys.argv[1]) if len(sys.argv) > 1 else 5
pause = float(sys.argv[2]) if len(sys.argv) > 2 else 0.2

for left in range(start, 0, -1):
    print(f"{left} ..")
    time.sleep(pause)
print("lift-off")
