"""What can go wrong on the client's side alone. Everything a server says is a class of `protocol.errors`."""

WORKER_EXTRA = 'pip install ".[worker]" in Atelier\'s folder'
NUMPY_EXTRA = "pip install numpy"
IMAGES_EXTRA = 'pip install ".[images]" in Atelier\'s folder'


class ServerUnreachable(ConnectionError):
    """No server answered at the endpoint for the whole connect timeout."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(f"No server answers at {endpoint}. Start one with `atelier up`.")
        self.endpoint = endpoint


class ClientClosed(RuntimeError):
    """The client was closed before the answer came; the server may still do the work."""

    def __init__(self) -> None:
        super().__init__("The client is closed.")
