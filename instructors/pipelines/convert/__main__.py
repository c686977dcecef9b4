"""The process that converts: an order on its standard input, lines of JSON on its standard output.

A line is `{"progress", "doing"}`, at the end `{"components"}` or `{"error"}`. It ends when its standard input does.
"""

import json
import logging
import os
import sys
import threading
import warnings
from typing import Any

from instructors.convert_source import no_room
from protocol.errors import AtelierError, ModelInvalid

NICENESS = 10  # the worker beside it has requests to answer


def main() -> None:
    """Convert once."""
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is for the log

    def tell(message: dict[str, Any]) -> None:
        lines.write(json.dumps(message) + "\n")

    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")  # the tracer warns of what is compared afterwards
    logging.disable(logging.WARNING)
    os.nice(NICENESS)
    try:
        tell({"components": _convert(order, tell)})
    except AtelierError as error:
        tell({"error": error.to_wire()})
    except Exception as error:
        print(repr(error), file=sys.stderr)
        tell({"error": _blamed(error).to_wire()})


def _convert(wire: dict[str, str], tell: Any) -> dict[str, Any]:
    from instructors.pipelines.convert import pipelines, texts
    from instructors.pipelines.convert.order import Order

    ways = {"pipeline": pipelines.convert, "transformers": texts.convert}
    order = Order.from_wire(wire)
    return ways[order.kind](order, lambda progress, doing: tell({"progress": progress, "doing": doing}))


def _blamed(error: Exception) -> AtelierError:
    if isinstance(error, OSError) and error.errno is not None:
        return no_room(error)
    return ModelInvalid("Its files cannot be converted: the libraries do not take them.")


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
