"""Freed memory stays with the process."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from hadamard_adapter.allocator import keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(3)
before = resident()
block = b"x" * 100_000_000
del block
print(resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="another C library")
@pytest.mark.parametrize(
    ("how", "least", "most"), [("keep", 90_000_000, 200_000_000), ("plain", -1e9, 10_000_000)]
)
def test_what_is_freed_is_kept(how: str, least: float, most: float) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip("another C library")
    assert least < int(done.stdout) < most
