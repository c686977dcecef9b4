"""That memory of large frames is kept: counted in page faults, in processes of their own."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, threading
from protocol.frames import keep_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def burst():
    held = [bytes(2**20) for _ in range(20)]

def work():
    burst()
    before = faults()
    for _ in range(10):
        burst()
    print(faults() - before)

if sys.argv[1] == "keep":
    keep_memory()
thread = threading.Thread(target=work)  # as libzmq's, which has a heap of its own
thread.start()
thread.join()
"""


def faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True, timeout=30)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_frames_of_a_mebibyte_take_the_memory_of_earlier_ones() -> None:
    kept, given_back = faults("keep"), faults("plain")
    assert kept < given_back / 4, (kept, given_back)
