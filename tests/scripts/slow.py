"""Says nothing for longer than its hang_timeout: it rests for a while, and computes in a process of its own."""

import subprocess
import sys
import time

WORK = "import time; end = time.monotonic() + 14\nwhile time.monotonic() < end: sum(range(1000))"

time.sleep(6.0)
subprocess.run([sys.executable, "-c", WORK], check=True)
time.sleep(6.0)
