"""What a crash left behind is cleared away."""

import os

from tests.e2e.house import House, eventually

ORPHAN = "01a1faee-ea61-7fba-8699-62656381ec00"  # in the shard that is looked through first
YOUNG = "01a1faee-ea61-7fba-8699-6265638e0d00"


def test_a_file_without_a_record_goes_when_it_is_old() -> None:
    with House() as house:
        shard = house.data_dir / "artifacts" / "00"
        shard.mkdir(mode=0o700, parents=True)
        for folder in (house.data_dir, house.data_dir / "artifacts"):
            folder.chmod(0o700)
        orphan, young = shard / ORPHAN, shard / YOUNG
        for file in (orphan, young):
            file.write_bytes(b"stored, and then the power went")
        os.utime(orphan, (0, 0))
        house.start_orchestrator()
        eventually(lambda: not orphan.exists())
        assert young.exists()
