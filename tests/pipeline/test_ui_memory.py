"""The page's process gives memory back: in a process of its own, since allocators are set once."""

import subprocess
import sys

CODE = """
import pyarrow as pa
from vlpipe.pipeline.ui.memory import return_freed_memory

return_freed_memory()


def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) >> 10


before = resident()
pieces = [pa.py_buffer(bytes(100_000)).to_pybytes() for _ in range(1_000)]  # 100 MB in pieces
between = resident()
del pieces
print(pa.default_memory_pool().backend_name, between - before > 80, resident() - before < 20)
"""


def test_what_is_freed_goes_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["system", "True", "True"]
