"""The one maker of sockets: every option set, and no endpoint that another machine could reach."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from protocol.limits import MIB, WireLimits
from protocol.sockets import EndpointRefused, check_bind_endpoint, make_socket, prepare_ipc_folder


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context = zmq.Context()
    yield context
    context.term()


@pytest.mark.parametrize("kind", [zmq.ROUTER, zmq.DEALER, zmq.REQ])
def test_every_option_is_set(context: zmq.Context, kind: int) -> None:
    with make_socket(context, kind, WireLimits(frame_bytes_max=2 * MIB), high_water_mark=77) as socket:
        options = {
            zmq.LINGER: 0,
            zmq.SNDHWM: 77,
            zmq.RCVHWM: 77,
            zmq.MAXMSGSIZE: 2 * MIB,
            zmq.HEARTBEAT_IVL: 2000,
            zmq.HEARTBEAT_TIMEOUT: 6000,
            zmq.HANDSHAKE_IVL: 6000,
            zmq.IPV6: 1,
        }
        if kind != zmq.ROUTER:
            options |= {zmq.RECONNECT_IVL: 100, zmq.RECONNECT_IVL_MAX: 1000}
        assert {option: socket.getsockopt(option) for option in options} == options
        assert socket.getsockopt(zmq.IDENTITY) == b""  # libzmq gives a fresh one per connection


def test_a_router_says_when_a_peer_is_gone(context: zmq.Context) -> None:
    with make_socket(context, zmq.ROUTER) as router, pytest.raises(zmq.ZMQError) as caught:
        router.send_multipart([b"nobody", b"hello"], zmq.DONTWAIT)  # without ROUTER_MANDATORY it would vanish
    assert caught.value.errno == zmq.EHOSTUNREACH


def test_an_inproc_pair_is_bounded_and_does_not_linger(context: zmq.Context) -> None:
    with make_socket(context, zmq.PAIR) as pair:
        assert (pair.getsockopt(zmq.LINGER), pair.getsockopt(zmq.SNDHWM)) == (0, 10_000)


def test_term_does_not_hang_on_unsent_messages() -> None:
    context = zmq.Context()
    dealer = make_socket(context, zmq.DEALER)
    dealer.connect("tcp://127.0.0.1:9")
    dealer.send(b"never delivered")
    dealer.close()
    context.term()  # the test's time limit is what fails here
    assert context.closed


def test_a_frame_over_the_limit_costs_its_sender_the_connection(context: zmq.Context) -> None:
    limits = WireLimits(frame_bytes_max=1000)
    with make_socket(context, zmq.ROUTER, limits) as router, make_socket(context, zmq.DEALER) as dealer:
        port = router.bind_to_random_port("tcp://127.0.0.1")
        dealer.connect(f"tcp://127.0.0.1:{port}")
        dealer.send(bytes(1000))
        first, _ = router.recv_multipart()
        dealer.send(bytes(1001))
        while True:  # the dealer reconnects, and is a new peer
            dealer.send(b"again")
            if router.poll(100):
                again, body = router.recv_multipart()
                assert body == b"again"
                if again != first:
                    break


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://127.0.0.1:5555",
        "tcp://127.0.0.1:*",
        "tcp://127.255.255.254:1",
        "tcp://[::1]:5555",
        "tcp://localhost:5555",
        "ipc:///run/user/1000/atelier/client.sock",
        "ipc://relative/client.sock",
        "ipc:///" + "a" * 98,
    ],
)
def test_loopback_and_ipc_are_fine(endpoint: str) -> None:
    check_bind_endpoint(endpoint)


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://0.0.0.0:5555", "tcp://*:5555", "tcp://[::]:5555", "tcp://[::ffff:0.0.0.0]:5555", "tcp://0:5555",
        "tcp://192.168.1.2:5555", "tcp://10.0.0.1:5555", "tcp://8.8.8.8:5555", "tcp://[2001:db8::1]:5555",
        "tcp://example.org:5555", "tcp://localhost.example.org:5555", "tcp://lo:5555", "tcp://eth0:5555",
        "tcp://127.1:5555", "tcp://2130706433:5555", "tcp://0.0.0.0@127.0.0.1:5555", "tcp://127.0.0.1@0.0.0.0:5555",
        "tcp://0.0.0.0;127.0.0.1:5555", "tcp://[::1]evil:5555", "tcp://127.0.0.1:70000", "tcp://127.0.0.1",
        "tcp://127.0.0.1:5555\n", "tcp://127.0.0.1:5555,tcp://0.0.0.0:5555", "tcp://", "", "127.0.0.1:5555",
        "ipc://", "ipc://*", "ipc://@abstract", "ipc:///" + "a" * 99, "ipc:///" + "é" * 50,
        "inproc://x", "pgm://127.0.0.1:5555", "ws://127.0.0.1:5555", "TCP://0.0.0.0:5555",
    ],
)  # fmt: skip
def test_everything_else_is_refused(endpoint: str) -> None:
    with pytest.raises(EndpointRefused):
        check_bind_endpoint(endpoint)


def test_the_refusal_says_what_to_do() -> None:
    with pytest.raises(EndpointRefused, match=r"CURVE keys.*Bind to 127\.0\.0\.1"):
        check_bind_endpoint("tcp://0.0.0.0:5555")


def test_the_longest_ipc_path_binds(context: zmq.Context, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("i")
    endpoint = f"ipc://{folder}/".ljust(6 + 99, "s")
    check_bind_endpoint(endpoint)
    with make_socket(context, zmq.ROUTER) as router:
        router.bind(endpoint)


def test_the_ipc_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    prepare_ipc_folder(f"ipc://{folder}/client.sock")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    prepare_ipc_folder(f"ipc://{folder}/worker.sock")  # there already: fine
    prepare_ipc_folder("tcp://127.0.0.1:5555")  # nothing to make
    for mode in (0o755, 0o710, 0o701, 0o777):
        folder.chmod(mode)
        with pytest.raises(EndpointRefused, match="0700"):
            prepare_ipc_folder(f"ipc://{folder}/client.sock")


def test_an_ipc_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in ("file", "file/below"):
        with pytest.raises(EndpointRefused, match="cannot be made"):
            prepare_ipc_folder(f"ipc://{tmp_path}/{folder}/client.sock")
