"""Times in buckets that grow by a constant factor: small to send, exact to merge, and percentiles within 4 %."""

import math
from collections.abc import Iterable, Mapping

GROWTH = 1.08  # of a bucket's upper bound over the one before
BUCKET_MAX = 400  # 1.08^400 µs are 270 days
_LOG_GROWTH = math.log(GROWTH)


def bucket_of(span_us: float) -> int:
    """The bucket of a time in µs: number b holds those above 1.08^(b-1), up to 1.08^b; number 0 all up to 1 µs."""
    if span_us <= 1:
        return 0
    return min(math.ceil(math.log(span_us) / _LOG_GROWTH), BUCKET_MAX)


class Histogram:
    """How many times fell into which bucket, and their sum, which is exact."""

    __slots__ = ("buckets", "total_us")

    def __init__(self, buckets: Iterable[Iterable[int]] = (), total_us: int = 0) -> None:
        self.buckets: dict[int, int] = dict(map(tuple, buckets))  # type: ignore[arg-type]
        self.total_us = total_us

    def add(self, span_us: int) -> None:
        bucket = bucket_of(span_us)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.total_us += span_us

    def merge(self, other: "Histogram", times: int = 1) -> None:
        """Add the other's times; with -1, take them out again."""
        for bucket, count in other.buckets.items():
            now = self.buckets.get(bucket, 0) + times * count
            if now:
                self.buckets[bucket] = now
            else:
                self.buckets.pop(bucket, None)
        self.total_us += times * other.total_us

    @property
    def count(self) -> int:
        return sum(self.buckets.values())

    def mean_ms(self) -> float | None:
        """None where there are no times."""
        count = self.count
        return self.total_us / count / 1000 if count else None

    def percentile_ms(self, share: float) -> float | None:
        """The time below or at which this share (0 to 1) of all times lies: the middle of its bucket."""
        rank, seen = max(1, math.ceil(share * self.count - 1e-9)), 0
        for bucket, count in sorted(self.buckets.items()):
            seen += count
            if seen >= rank:
                return middle_us(bucket) / 1000
        return None

    def to_wire(self) -> list[list[int]]:
        """[bucket, count] of each bucket that is not empty, in order."""
        return [[bucket, count] for bucket, count in sorted(self.buckets.items())]


def middle_us(bucket: int) -> float:
    """What all times of a bucket are taken for."""
    return 1.0 if bucket == 0 else GROWTH ** (bucket - 0.5)


def summary(histogram: Histogram) -> Mapping[str, float | None]:
    """Mean and percentiles in ms, to the µs; None where there are no times."""
    figures = {"avg_ms": histogram.mean_ms()}
    figures |= {f"p{percent}_ms": histogram.percentile_ms(percent / 100) for percent in (50, 95, 99)}
    return {name: None if figure is None else round(figure, 3) for name, figure in figures.items()}
