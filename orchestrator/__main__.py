"""`python -m orchestrator`: the same as `atelier orchestrator`."""

import sys

from orchestrator.cli import main

if __name__ == "__main__":
    main(["orchestrator", *sys.argv[1:]])
