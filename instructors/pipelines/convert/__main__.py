"""The process that converts: an order on its standard input, lines of JSON on its standard output.

A line is `{"progress", "doing"}`, the last one `{"components"}` or `{"error"}`. It ends when its standard input does.
"""

import errno
import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from importlib import import_module
from typing import Any, cast

from instructors.convert_source import RECORD
from instructors.models import ModelFolder
from instructors.pipelines.convert.order import Order, Report
from instructors.sources.placing import put_in_place
from protocol.errors import AtelierError, ModelInvalid, Unavailable

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NICENESS = 10  # the worker beside it has requests to answer


def main() -> None:
    """Convert once."""
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is for the log

    def tell(message: dict[str, Any]) -> None:
        lines.write(json.dumps(message) + "\n")

    order = Order.from_wire(json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.disable(logging.WARNING)
    os.nice(NICENESS)
    try:
        tell({"components": convert(order, lambda progress, doing: tell({"progress": progress, "doing": doing}))})
    except AtelierError as error:
        tell({"error": error.to_wire()})
    except OSError as error:
        traceback.print_exc()
        problem = "has no room left" if error.errno in FULL else "cannot be written to or read"
        tell({"error": Unavailable(f"The disk of the model folder {problem}; nothing was put there.").to_wire()})
    except Exception:
        traceback.print_exc()
        tell({"error": ModelInvalid("The libraries cannot convert what its files hold.").to_wire()})


def convert(order: Order, report: Report) -> dict[str, Any]:
    """Make the model, note what it was made of, check it as any model, and put it in place. Gives each part's
    difference from the source. Raises what makes it unusable."""
    order.folder.mkdir(parents=True)
    components = _way(order.source.kind)(order, report)
    record = {"made_of": order.source.to_wire(), "components": components}
    (order.folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    model = ModelFolder(order.staging).find(f"{order.target.parent.name}:{order.target.name}")
    put_in_place(model, order.target.parent.parent)
    return components


def _way(kind: str) -> Callable[[Order, Report], dict[str, Any]]:
    """By kind of source. The libraries are slow to import, so only those that are needed are."""
    module = {"pipeline": "pipelines", "transformers": "texts", "single_file": "checkpoints"}[kind]
    way = import_module(f"instructors.pipelines.convert.{module}").convert
    return cast(Callable[[Order, Report], dict[str, Any]], way)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
