"""What a port keeps of its connections."""

import zmq

from orchestrator.ports import TRACKED_BYTES, Port
from protocol.limits import DEFAULT_LIMITS
from protocol.sockets import make_socket
from tests.e2e.house import eventually


def test_connections_that_took_a_large_answer_and_left_leave_nothing_behind() -> None:
    context = zmq.Context()
    port = Port(context, ["tcp://127.0.0.1:*"], DEFAULT_LIMITS, outbox_bytes_max=1024 * 1024)
    endpoint = port.socket.getsockopt_string(zmq.LAST_ENDPOINT)
    for _ in range(20):
        with make_socket(context, zmq.DEALER) as client:
            client.connect(endpoint)
            client.send(b"request")
            assert port.socket.poll(5000)
            received = port.receive()
            assert received is not None
            port.post(received.connection, {}, [bytes(TRACKED_BYTES)])
            port.flush()
            assert client.poll(5000)
            client.recv_multipart()
            eventually(lambda: all(not outbox.behind(0, False) for outbox in port._outbox.values()), 5)
    assert len(port._outbox) == 1
    port.close()
    context.term()
