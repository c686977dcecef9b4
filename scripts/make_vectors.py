"""Write the golden vectors of the wire, `protocol/vectors/*.json`, from the cases in `vector_cases.py`,
`picture_cases.py`, `predict_cases.py`, `model_file_cases.py`, `registry_cases.py` and `model_worker_cases.py`.

    python -m scripts.make_vectors            write them
    python -m scripts.make_vectors --check    exit 1 if a file is not what this would write

Run it after a change of contract, and read the difference before you commit it: a changed vector is a changed wire.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from scripts import model_file_cases, model_worker_cases, picture_cases, predict_cases, registry_cases, vector_cases

FOLDER = Path(__file__).parent.parent / "protocol" / "vectors"


def to_json(value: Any) -> Any:
    """A header value in JSON: bin as {"$bin": hex}, a number JSON lacks as {"$float": word}."""
    if isinstance(value, bytes):
        return {"$bin": value.hex()}
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return {"$float": str(value)}
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return [to_json(item) for item in value] if isinstance(value, list) else value


def files() -> dict[str, str]:
    """File name -> text."""
    groups = {
        "requests": vector_cases.requests()
        + picture_cases.requests()
        + predict_cases.requests()
        + model_file_cases.requests()
        + registry_cases.requests()
        + model_worker_cases.requests(),
        "responses_and_events": vector_cases.responses_and_events()
        + picture_cases.answers()
        + predict_cases.answers()
        + model_file_cases.answers()
        + registry_cases.answers()
        + model_worker_cases.answers(),
        "worker_plane": vector_cases.worker_plane(),
        "encodings": vector_cases.encodings(),
        "refused_framing": vector_cases.refused_framing(),
        "refused_fields": vector_cases.refused_fields()
        + picture_cases.refused()
        + predict_cases.refused()
        + model_file_cases.refused()
        + registry_cases.refused()
        + model_worker_cases.refused(),
        "fingerprints": vector_cases.fingerprints(),
    }
    return {f"{name}.json": json.dumps(to_json(cases), indent=1) + "\n" for name, cases in groups.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the golden vectors of the wire.")
    parser.add_argument("--check", action="store_true", help="only tell whether the files are up to date")
    check = parser.parse_args().check
    stale = [
        name for name, text in files().items() if not (FOLDER / name).exists() or (FOLDER / name).read_text() != text
    ]
    if check:
        for name in stale:
            print(f"protocol/vectors/{name} is stale: run python -m scripts.make_vectors", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        (FOLDER / name).write_text(files()[name])
        print(f"wrote protocol/vectors/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
