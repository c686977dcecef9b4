"""Ids of requests, jobs, sessions and artifacts."""

import os
import time
import uuid


def new_id() -> str:
    """A UUIDv7: unique, and sorted by the time it was made."""
    bits = int.from_bytes(os.urandom(10), "big") | (time.time_ns() // 1_000_000) << 80
    bits = bits & ~(0xF << 76) | 7 << 76  # version
    bits = bits & ~(0b11 << 62) | 0b10 << 62  # variant
    return str(uuid.UUID(int=bits))
