import uuid

from protocol.ids import COUNT_MAX, _Stamps, new_id


def test_ids_are_uuids_of_version_7_in_the_order_they_were_made() -> None:
    ids = [new_id() for _ in range(10_000)]
    assert ids == sorted(set(ids))
    for text in ids[:100]:
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 7, uuid.RFC_4122)


def test_more_ids_than_a_millisecond_counts_borrow_from_the_next() -> None:
    stamps = _Stamps()
    made = [stamps.next() for _ in range(3 * COUNT_MAX)]
    assert made == sorted(set(made))
