"""The wire between clients, orchestrator and workers. `SPEC.md` beside this file is the authority."""

PROTOCOL_VERSION = 1
