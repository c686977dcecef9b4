"""Limits of the wire. The defaults are the contract's; a server may lower them by its settings."""

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB

INT_MAX = 2**53 - 1  # other languages' numbers are doubles
REQUEST_ID_PATTERN = r"^[A-Za-z0-9_.\-]{1,64}$"
NAME_LENGTH_MAX = 200
PRIORITY_MAX = 9
PRIORITY_DEFAULT = 4
SPAN_MS_MAX = 30 * 24 * 3600 * 1000  # no timeout is longer than 30 days
TIME_MS_MAX = 253_402_300_799_999  # the end of the year 9999, in ms since 1970
HEARTBEAT_MODELS_MAX = 64  # of which one heartbeat tells figures
ARTIFACT_INLINE_BYTES = 64 * KIB  # attachments above this are hashed off the broker thread


@dataclass(frozen=True, slots=True)
class WireLimits:
    """What one message may hold. Sizes in bytes."""

    header_bytes_max: int = 1 * MIB  # of the header frame
    nesting_max: int = 32  # containers around a value; the header's own map is the first
    entries_max: int = 16_384  # of one array or map in the header; longer lists travel as an attachment
    attachments_max: int = 64  # of one message
    attachment_bytes_max: int = 256 * MIB  # all of one message together
    frame_bytes_max: int = 64 * MIB  # of any one frame; above it libzmq drops the connection, unanswered


DEFAULT_LIMITS = WireLimits()
