"""Ids of requests, jobs, sessions and artifacts."""

import os
import time

VARIANTS = "89ab"


def new_id() -> str:
    """A UUIDv7: unique, and sorted by the time it was made (to a millisecond)."""
    # Written out rather than through uuid.UUID, which takes longer, for an id is made for every job.
    stamp, noise = f"{time.time_ns() // 1_000_000:012x}", os.urandom(10).hex()
    variant = VARIANTS[int(noise[3], 16) % 4]
    return f"{stamp[:8]}-{stamp[8:]}-7{noise[:3]}-{variant}{noise[4:7]}-{noise[7:19]}"
