"""Times in buckets: what is told of many times is close to the truth, however they were counted and merged."""

import math

from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.histogram import BUCKET_MAX, GROWTH, Histogram, bucket_of, middle_us, summary

SPANS_US = st.integers(1, 10**9) | st.integers(1_000, 50_000)  # up to 17 minutes; and many of like size


def nearest_rank(spans: list[int], share: float) -> int:
    return sorted(spans)[max(1, math.ceil(share * len(spans) - 1e-9)) - 1]


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.lists(st.lists(SPANS_US, max_size=120), min_size=1, max_size=5).filter(any))
@example([[1]])
@example([[1, 2, 3], [10**9]])
def test_percentiles_of_merged_histograms_are_within_a_tenth_of_the_truth(workers: list[list[int]]) -> None:
    merged = Histogram()
    for spans in workers:
        one = Histogram()
        for span_us in spans:
            one.add(span_us)
        merged.merge(Histogram(one.to_wire(), one.total_us))  # as it travels
    everything = [span_us for spans in workers for span_us in spans]
    assert merged.count == len(everything)
    assert merged.mean_ms() == sum(everything) / len(everything) / 1000
    for share in (0.5, 0.95, 0.99):
        exact_ms = nearest_rank(everything, share) / 1000
        told_ms = merged.percentile_ms(share)
        assert told_ms is not None
        assert abs(told_ms - exact_ms) <= 0.04 * exact_ms


def test_merging_is_the_same_as_counting_in_one_place() -> None:
    spans = [1, 7, 7, 130, 99_999, 10**7]
    apart, together = [Histogram() for _ in range(3)], Histogram()
    for index, span_us in enumerate(spans):
        apart[index % 3].add(span_us)
        together.add(span_us)
    merged = Histogram()
    for one in apart:
        merged.merge(one)
    assert (merged.to_wire(), merged.total_us) == (together.to_wire(), together.total_us)


def test_buckets_hold_what_they_say() -> None:
    assert [bucket_of(span_us) for span_us in (0, 0.5, 1)] == [0, 0, 0]
    for bucket in (1, 2, 57, 180, 300):
        low, high = GROWTH ** (bucket - 1), GROWTH**bucket
        assert bucket_of(low * 1.0001) == bucket_of(high * 0.9999) == bucket
        assert low < middle_us(bucket) < high
    assert bucket_of(10**30) == BUCKET_MAX
    assert bucket_of(1e6 * 86_400 * 200) < BUCKET_MAX  # 200 days


def test_nothing_is_told_of_no_times() -> None:
    assert summary(Histogram()) == {"avg_ms": None, "p50_ms": None, "p95_ms": None, "p99_ms": None}


def test_a_summary_is_in_ms() -> None:
    histogram = Histogram()
    for _ in range(99):
        histogram.add(10_000)
    histogram.add(1_000_000)
    told = summary(histogram)
    assert told["avg_ms"] == 19.9
    assert 9.6 <= (told["p50_ms"] or 0) <= 10.4
    assert told["p50_ms"] == told["p95_ms"] == told["p99_ms"]
