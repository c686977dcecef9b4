"""The written contract: up to date with the code (see test_protocol_vectors too), whole, and with working links."""

import json
import re
from pathlib import Path

import pytest

from protocol import messages
from protocol.enums import ErrorCode
from protocol.messages import FROM_WORKER, TO_CLIENT, TO_WORKER
from protocol.schemas import ACTIONS
from scripts import make_vectors, spec_tables

TEXT = spec_tables.SPEC.read_text()
HEADINGS = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL), re.MULTILINE)


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_link_leads_somewhere() -> None:
    anchors = [anchor(heading) for heading in HEADINGS]
    assert len(set(anchors)) == len(anchors)
    assert set(re.findall(r"\]\(#([^)]*)\)", TEXT)) <= set(anchors)


def test_every_message_has_its_table() -> None:
    told = set(re.findall(r"<!-- generated: message (\w+) -->", TEXT))
    models = {model for known in (FROM_WORKER, TO_WORKER, TO_CLIENT) for model in known.values()}
    shapes = {"Request", "Attachment", "Timing", "HeldJob", "DeviceFacts", "Capabilities", "AttemptRef", "ModelFigures"}
    assert told == shapes | {model.__name__ for model in models}


def test_every_action_and_code_is_told() -> None:
    for name in ACTIONS:
        assert f"#### {name}\n" in TEXT
    for code in ErrorCode:
        assert f"| `{code.value}` | {code.meaning} |" in TEXT


def test_a_table_tells_types_limits_defaults_and_meanings() -> None:
    lines = spec_tables.fields_of(messages.Request).splitlines()
    assert "| `priority` | int, 0–9 or null | `null` | 9 most urgent; null: the session's, else 4 |" in lines
    assert "| `wait` | bool | `true` |" in "".join(lines)
    assert "which events to stream; ignored on REQ" in "".join(lines)  # a comment on the line after its field


def test_a_change_makes_the_spec_stale() -> None:
    assert spec_tables.filled(TEXT) == TEXT
    damaged = TEXT.replace("| `queue_full` | A", "| `queue_fool` | A")
    assert damaged != TEXT
    assert spec_tables.filled(damaged) == TEXT


def test_a_missing_vector_file_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_vectors, "FOLDER", tmp_path)
    monkeypatch.setattr("sys.argv", ["make_vectors"])
    assert make_vectors.main() == 0
    assert {path.name for path in tmp_path.iterdir()} == set(make_vectors.files())
    (tmp_path / "requests.json").write_text("[]")
    monkeypatch.setattr("sys.argv", ["make_vectors", "--check"])
    assert make_vectors.main() == 1


def test_the_bytes_explained_are_the_example_s() -> None:
    vectors = json.loads((spec_tables.VECTORS / "requests.json").read_text())
    frame = next(vector["frames"][0] for vector in vectors if vector["name"] == "text2img")
    explained = TEXT.split("the request begins so:")[1].split("```")[1]
    position = 0
    for line in explained.strip().splitlines()[:-1]:
        codes = re.match(r" *((?:[0-9a-f]+ ?)+)", line)
        assert codes, line
        piece = codes[1].replace(" ", "")
        found = frame.index(piece, position)
        assert found == position or "…" in explained.splitlines()[explained.splitlines().index(line) - 1], line
        position = found + len(piece)
