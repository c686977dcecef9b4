"""The orchestrator's settings: command line > environment `ATELIER_*` > `atelier.toml` > default.

Field names are the keys everywhere: `lease_ms` in the file, `ATELIER_LEASE_MS` in the environment, `--lease-ms`.
"""

import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from orchestrator.telemetry import LogFormat, LogLevel
from protocol.limits import DEFAULT_LIMITS, MIB, WireLimits
from protocol.schemas.base import nearest
from protocol.sockets import check_bind_endpoint

ENV_PREFIX = "ATELIER_"
CONFIG_ENV = "ATELIER_CONFIG"
OTHER_ENV = frozenset({CONFIG_ENV, "ATELIER_CACHE_URL"})  # ATELIER_* variables that are no settings of its own
DEFAULT_CONFIG = Path("atelier.toml")  # in the working directory


class SettingsError(ValueError):
    """The settings cannot be used; the message says which, where it came from and what would do."""


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _bindable(endpoints: list[str]) -> list[str]:
    for endpoint in endpoints:
        check_bind_endpoint(endpoint)
    return endpoints


def _sqlite(url: str) -> str:
    if not url.startswith("sqlite:///") or url == "sqlite:///":
        raise ValueError("only SQLite files are supported: sqlite:///<path>")
    return url


def _folder(path: Path) -> Path:
    return path.expanduser().absolute()


def _default_runtime_dir() -> Path:
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base, "atelier") if base else Path(f"/tmp/atelier-{os.getuid()}")


def _default_models_dir(values: dict[str, Any]) -> Path:
    here = Path("models").absolute()
    return here if here.is_dir() else values["data_dir"] / "models"


Folder = Annotated[Path, AfterValidator(_folder)]
# A list is a TOML list, or a comma-separated string in the environment.
Endpoints = Annotated[
    list[str], NoDecode, BeforeValidator(_split), Field(min_length=1, max_length=16), AfterValidator(_bindable)
]
Count = Annotated[int, Field(ge=1)]
SpanMs = Annotated[int, Field(ge=1, le=365 * 24 * 3600 * 1000)]
Nbytes = Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """All settings, checked. Made by `load_settings`; built directly, it reads neither environment nor file."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
    )

    runtime_dir: Folder = Field(default_factory=_default_runtime_dir)
    """Sockets; mode 0700. Default: $XDG_RUNTIME_DIR/atelier, else /tmp/atelier-<uid>."""
    data_dir: Folder = Path("~/.local/share/atelier")
    """Database and artifacts; mode 0700."""
    database_url: Annotated[str, AfterValidator(_sqlite)] = Field(
        default_factory=lambda values: f"sqlite:///{values['data_dir']}/atelier.db"
    )
    """Where jobs and sessions are kept: sqlite:///<path>. Default: atelier.db in data_dir."""
    models_dir: Folder = Field(default_factory=_default_models_dir)
    """The models that local workers serve. Default: ./models if it exists, else models in data_dir."""
    default_model_id: str | None = None
    """The model of requests that name none, where it can do what they ask. Default: the only model that can."""
    client_endpoints: Endpoints = Field(
        default_factory=lambda values: ["tcp://127.0.0.1:5555", f"ipc://{values['runtime_dir']}/client"]
    )
    """Where clients connect: loopback TCP or ipc. Default: tcp://127.0.0.1:5555 and client in runtime_dir."""
    worker_endpoints: Endpoints = Field(default_factory=lambda values: [f"ipc://{values['runtime_dir']}/workers"])
    """Where workers connect. Default: workers in runtime_dir."""

    header_bytes_max: Nbytes = DEFAULT_LIMITS.header_bytes_max
    """Size of a message's header."""
    attachments_max: Count = DEFAULT_LIMITS.attachments_max
    """Attachments of one message."""
    attachment_bytes_max: Nbytes = DEFAULT_LIMITS.attachment_bytes_max
    """Size of all attachments of one message together."""
    frame_bytes_max: Nbytes = DEFAULT_LIMITS.frame_bytes_max
    """Size of one frame; a connection that sends a larger one is dropped unanswered."""
    connection_requests_max: Count = 1024
    """Requests in flight on one connection."""
    outbox_bytes_max: Nbytes = 256 * MIB
    """Bytes waiting to be sent to one connection; above it previews and progress are left out first."""
    queue_jobs_max: Count = 100_000
    """Jobs waiting for a worker."""
    sessions_max: Count = 10_000
    """Active sessions."""
    payload_bytes_max: Nbytes = 1024 * MIB
    """Attachments of waiting and running jobs, and uploads, held in memory."""

    aging_ms: SpanMs = 30_000
    """After each such span a waiting job counts as one priority higher."""
    heartbeat_ms: SpanMs = 2000
    """How often a worker reports."""
    lease_ms: SpanMs = 15_000
    """A worker silent for so long is taken for lost."""
    adoption_ms: SpanMs = 10_000
    """After a restart, running jobs wait so long for the worker that holds them before they are queued again."""
    reconnect_grace_ms: SpanMs = 10_000
    """A vanished client's waiting jobs are cancelled after this."""
    assign_grace_ms: SpanMs = 6000
    """A job sent to a worker that does not report it after this is taken for undelivered."""
    retry_backoff_ms: SpanMs = 500
    """Pause before the second attempt of a job that failed in a retryable way; doubles with each attempt."""
    retry_backoff_ms_max: SpanMs = 30_000
    """The longest pause between attempts."""
    attempts_max: Count = 3
    """Attempts of a job that fails in a retryable way."""
    result_keep_ms: SpanMs = 60_000
    """Results of waiting requests are kept in memory so long, for a client that asks again."""
    result_keep_bytes_max: Nbytes = 256 * MIB
    """Bytes of such results."""
    retention_ms: SpanMs = 24 * 3600 * 1000
    """Finished jobs, their results and uploads are deleted after this."""
    drain_ms: SpanMs = 30_000
    """On SIGTERM, running jobs have so long to finish."""
    alive_ms: SpanMs = 2000
    """How often a client with an open request hears that the server lives."""

    log_level: LogLevel = "info"
    """debug, info, warning or error."""
    log_format: LogFormat = "auto"
    """json, console, or auto: console on a terminal, else json."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """`load_settings` puts the layers together, so that an error can name the one it comes from."""
        return (init_settings,)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.lease_ms < 2 * self.heartbeat_ms:
            raise ValueError("lease_ms must be at least twice heartbeat_ms, or one late heartbeat loses a worker")
        if self.header_bytes_max > self.frame_bytes_max:
            raise ValueError("header_bytes_max must not exceed frame_bytes_max, for the header is a frame")
        return self

    @property
    def wire_limits(self) -> WireLimits:
        """The limits of one message."""
        return WireLimits(
            header_bytes_max=self.header_bytes_max,
            attachments_max=self.attachments_max,
            attachment_bytes_max=self.attachment_bytes_max,
            frame_bytes_max=self.frame_bytes_max,
        )

    @property
    def artifacts_dir(self) -> Path:
        return self.data_dir / "artifacts"

    def make_folders(self) -> None:
        """Make runtime_dir and data_dir, for their owner alone. Raises SettingsError where others may enter."""
        for name in ("runtime_dir", "data_dir"):
            _make_private(getattr(self, name), name)


def load_settings(cli: Mapping[str, Any], config: Path | None = None) -> Settings:
    """The settings from all layers. `cli` holds the options given (None: not given), `config` the file to read.

    Without `config`, the file is what ATELIER_CONFIG names, else atelier.toml here if there is one.
    Raises SettingsError.
    """
    layers = {"environment": _from_environment(), "command line": {k: v for k, v in cli.items() if v is not None}}
    named = config or (Path(os.environ[CONFIG_ENV]) if os.environ.get(CONFIG_ENV) else None)
    if named or DEFAULT_CONFIG.is_file():
        path = named or DEFAULT_CONFIG
        layers = {str(path): _from_file(path), **layers}
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, layer in layers.items():
        _refuse_unknown(layer, name)
        values |= layer
        origin |= dict.fromkeys(layer, name)
    try:
        return Settings(**values)
    except ValidationError as error:
        # A default made from a wrong setting is no error of its own.
        wrong = [item for item in error.errors() if item["type"] != "default_factory_not_called"]
        raise SettingsError("\n".join(_sentence(item, origin) for item in wrong)) from None


def _from_environment() -> dict[str, Any]:
    names = [name for name in os.environ if name.upper().startswith(ENV_PREFIX) and name.upper() not in OTHER_ENV]
    _refuse_unknown({name[len(ENV_PREFIX) :].lower(): None for name in names}, "environment", ENV_PREFIX)
    return EnvSettingsSource(Settings)()


def _from_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"The configuration file {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise SettingsError(f"The configuration file {path} is not valid TOML: {error}.") from None


def _refuse_unknown(keys: Mapping[str, Any], origin: str, prefix: str = "") -> None:
    for key in keys:
        if key not in Settings.model_fields:
            near = nearest(key, Settings.model_fields)
            hint = f" Did you mean {_spelled(near, prefix)}?" if near else ""
            raise SettingsError(f"Unknown setting {_spelled(key, prefix)} ({origin}).{hint}")


def _spelled(key: str, prefix: str) -> str:
    return prefix + key.upper() if prefix else key


def _sentence(item: Any, origin: Mapping[str, str]) -> str:
    key = str(item["loc"][0]) if item["loc"] else ""
    problem = item["msg"].removeprefix("Value error, ").rstrip(".")
    return f"{key} ({origin.get(key, 'default')}): {problem}." if key else f"{problem}."


def _make_private(folder: Path, name: str) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        link, status = folder.lstat(), folder.stat()
    except OSError as error:
        raise SettingsError(f"{name}: the folder {folder} cannot be made: {error.strerror}.") from None
    # Others could have put a link there first, as into /tmp: its owner counts too.
    if {link.st_uid, status.st_uid} != {os.getuid()} or stat.S_IMODE(status.st_mode) & 0o077:
        raise SettingsError(f"{name}: {folder} must belong to you with mode 0700 (chmod 700 it).")
