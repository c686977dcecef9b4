"""The one place that makes a ZeroMQ socket, with every limit set, and that judges endpoints.

Facts behind the options: a ROUTER drops silently unless ROUTER_MANDATORY is set; the default linger hangs
`term()`; MAXMSGSIZE is per frame; heartbeats are what tells a vanished peer from a quiet one.
"""

import ipaddress
import os
import re
import stat
from pathlib import Path

import zmq

from protocol.limits import DEFAULT_LIMITS, WireLimits

IPC_PATH_BYTES_MAX = 100  # sun_path holds 108, less the terminating zero and what libzmq adds
RECONNECT_MS, RECONNECT_MAX_MS = 100, 1000
ZMTP_HEARTBEAT_MS, ZMTP_TIMEOUT_MS = 2000, 6000
HIGH_WATER_MARK = 10_000  # messages; bytes are bounded by the owner of the socket
_TCP_ENDPOINT = re.compile(r"tcp://(\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[A-Za-z0-9_.*-]+)):(?P<port>[0-9]{1,5}|\*)")


class EndpointRefused(ValueError):
    """The endpoint would be reachable from other machines, or cannot be used at all."""


def make_socket(
    context: zmq.Context, kind: int, limits: WireLimits = DEFAULT_LIMITS, *, high_water_mark: int = HIGH_WATER_MARK
) -> zmq.Socket:
    """A ROUTER or DEALER (or an inproc PAIR) with this project's options, not yet bound or connected."""
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, high_water_mark)
    socket.setsockopt(zmq.RCVHWM, high_water_mark)
    if kind in (zmq.ROUTER, zmq.DEALER, zmq.REQ):
        socket.setsockopt(zmq.MAXMSGSIZE, limits.frame_bytes_max)
        socket.setsockopt(zmq.HEARTBEAT_IVL, ZMTP_HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, ZMTP_TIMEOUT_MS)
        socket.setsockopt(zmq.HANDSHAKE_IVL, ZMTP_TIMEOUT_MS)
        socket.setsockopt(zmq.IPV6, 1)
    if kind == zmq.ROUTER:
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    else:
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
    return socket


def check_bind_endpoint(endpoint: str) -> None:
    """Raise EndpointRefused unless `endpoint` is an ipc path in the file system or a loopback TCP address."""
    scheme, _, rest = endpoint.partition("://")
    if scheme == "ipc":
        _check_ipc_path(endpoint, rest)
        return
    match = _TCP_ENDPOINT.fullmatch(endpoint)
    if match is None or (match["port"] != "*" and int(match["port"]) > 65535):
        raise EndpointRefused(f"{endpoint!r} is neither tcp://HOST:PORT nor ipc://PATH.")
    host = match["v6"] or match["host"]
    if host != "localhost" and not _is_loopback(host):
        raise EndpointRefused(
            f"{endpoint!r} can be reached from other machines, and that needs CURVE keys, which this version "
            "does not have yet. Bind to 127.0.0.1, [::1] or ipc://, and tunnel from elsewhere (ssh -L)."
        )


def _check_ipc_path(endpoint: str, path: str) -> None:
    if path.startswith("@") or path in ("", "*"):  # Linux's abstract names have no folder that could protect them
        raise EndpointRefused(f"{endpoint!r} must name a file in a folder of yours.")
    if len(os.fsencode(path)) >= IPC_PATH_BYTES_MAX:
        raise EndpointRefused(f"The path of {endpoint!r} has {IPC_PATH_BYTES_MAX} bytes or more; use a shorter one.")


def prepare_ipc_folder(endpoint: str) -> None:
    """Make the folder of an ipc endpoint, readable by its owner alone; refuse one that others may enter."""
    if not endpoint.startswith("ipc://"):
        return
    folder = Path(endpoint.removeprefix("ipc://")).parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise EndpointRefused(f"The folder of {endpoint!r} cannot be made: {error.strerror}.") from error
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise EndpointRefused(f"The folder of {endpoint!r} must belong to you with mode 0700 (chmod 700 it).")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
