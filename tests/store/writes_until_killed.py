"""Run by test_faults.py: writes jobs as fast as it can and prints each id once the store says it is on the disk."""

import os
import sys
import threading

from orchestrator.store import Store
from tests.store.support import event, job

url, prefix = sys.argv[1:]
woken = threading.Event()
store = Store(url, woken.set)
number = 0
for number in range(64):
    store.write([job(f"{prefix}-{number}"), event(f"{prefix}-{number}", 1)], f"{prefix}-{number}")
while True:
    woken.wait()
    woken.clear()
    while store.completions:
        completion = store.completions.popleft()
        assert completion == (completion.token, None, None)
        os.write(1, f"{completion.token}\n".encode())
        number += 1
        store.write([job(f"{prefix}-{number}"), event(f"{prefix}-{number}", 1)], f"{prefix}-{number}")
