"""Freed memory stays with the process, where the C library can be told so."""

import subprocess
import sys

import pytest

# Maps and frees an array of 64 MB over and over; prints the pages that the system had to clear.
PROGRAM = """
import resource, sys
import mlx.core as mx
from mlx_eagle.training.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
mx.set_cache_limit(0)
for _ in range(12):
    mx.eval(mx.zeros((16 << 20,)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt")
def test_memory_that_is_used_again_is_not_cleared_again() -> None:
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", PROGRAM, how]))
        for how in ("keep", "give back")
    }
    assert faults["keep"] < faults["give back"] / 4
