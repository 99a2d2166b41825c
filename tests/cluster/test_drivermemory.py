"""The driver returns memory that it has freed."""

import subprocess
import sys

CODE = """
import threading
import psutil, pyarrow as pa
from xlr.cluster.drivermemory import return_freed_memory
{call}
def work():
    rows = [bytes(2000) for _ in range(20000)]
    table = pa.array(rows)
    keep.append(rows[-1])  # at the end of the thread's memory
keep = []
for _ in range(8):
    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
print(psutil.Process().memory_info().rss >> 20, pa.default_memory_pool().backend_name)
"""


def megabytes(call: str) -> tuple[int, str]:
    printed = subprocess.run([sys.executable, "-c", CODE.format(call=call)], capture_output=True, text=True, check=True)
    size, backend = printed.stdout.split()
    return int(size), backend


def test_freed_memory_is_returned() -> None:
    kept, _ = megabytes("")
    returned, backend = megabytes("return_freed_memory()")
    assert backend == "system"
    assert returned < 0.8 * kept
