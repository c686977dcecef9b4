"""Where a setting comes from, and what is said of a wrong one."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.settings import Settings, SettingsError, load_settings
from protocol.limits import WireLimits


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory and no ATELIER_* of the machine's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    for name in ("ATELIER_CONFIG", *[f"ATELIER_{field.upper()}" for field in Settings.model_fields]):
        monkeypatch.delenv(name, raising=False)


def refusal(cli: dict[str, Any], config: Path | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(cli, config)
    return str(caught.value)


def test_command_line_then_environment_then_file_then_default(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("atelier.toml").write_text("lease_ms = 20000\nheartbeat_ms = 3000\naging_ms = 7\n")
    monkeypatch.setenv("ATELIER_LEASE_MS", "21000")
    monkeypatch.setenv("ATELIER_HEARTBEAT_MS", "4000")
    settings = load_settings({"lease_ms": 22000, "aging_ms": None})
    assert settings.lease_ms == 22000
    assert settings.heartbeat_ms == 4000
    assert settings.aging_ms == 7
    assert settings.alive_ms == 2000


def test_the_file_may_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Path("atelier.toml").write_text("aging_ms = 1\n")
    Path("other.toml").write_text("aging_ms = 2\n")
    Path("third.toml").write_text("aging_ms = 3\n")
    assert load_settings({}).aging_ms == 1
    monkeypatch.setenv("ATELIER_CONFIG", str(tmp_path / "other.toml"))
    assert load_settings({}).aging_ms == 2
    assert load_settings({}, Path("third.toml")).aging_ms == 3
    assert "cannot be read" in refusal({}, Path("missing.toml"))
    Path("third.toml").write_text("aging_ms = = 3\n")
    assert "not valid TOML" in refusal({}, Path("third.toml"))


def test_a_variable_of_the_workers_is_no_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_CACHE_URL", "redis://127.0.0.1:6379/0")
    load_settings({})


def test_a_wrong_key_is_refused_with_the_nearest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal({"leese_ms": 1}) == "Unknown setting leese_ms (command line). Did you mean lease_ms?"
    monkeypatch.setenv("ATELIER_LEASE_MSS", "1")
    assert refusal({}) == "Unknown setting ATELIER_LEASE_MSS (environment). Did you mean ATELIER_LEASE_MS?"
    monkeypatch.delenv("ATELIER_LEASE_MSS")
    Path("atelier.toml").write_text("data_dirs = '/tmp'\n")
    assert refusal({}) == "Unknown setting data_dirs (atelier.toml). Did you mean data_dir?"
    Path("atelier.toml").write_text("[store]\nqqqqqqqq = 1\n")
    assert refusal({}).startswith("Unknown setting store (atelier.toml).")


def test_a_wrong_value_names_the_setting_and_its_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal({"lease_ms": 0}).startswith("lease_ms (command line): ")
    monkeypatch.setenv("ATELIER_LEASE_MS", "soon")
    assert refusal({}).startswith("lease_ms (environment): ")
    Path("atelier.toml").write_text("data_dir = 5\nlog_level = 'loud'\n")
    lines = refusal({"lease_ms": 20000}).splitlines()
    assert [line.split(":")[0] for line in lines] == ["data_dir (atelier.toml)", "log_level (atelier.toml)"]


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://0.0.0.0:5555", "tcp://*:5555", "tcp://192.168.1.4:5555", "tcp://example.org:1", "udp://127.0.0.1:1"],
)
def test_endpoints_others_could_reach_are_refused(endpoint: str) -> None:
    for name in ("client_endpoints", "worker_endpoints"):
        assert refusal({name: ["tcp://127.0.0.1:5555", endpoint]}).startswith(f"{name} (command line): ")


def test_lists_come_from_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("atelier.toml").write_text('client_endpoints = ["tcp://127.0.0.1:1"]\n')
    assert load_settings({}).client_endpoints == ["tcp://127.0.0.1:1"]
    monkeypatch.setenv("ATELIER_CLIENT_ENDPOINTS", "tcp://127.0.0.1:2, ipc:///tmp/x/y")
    assert load_settings({}).client_endpoints == ["tcp://127.0.0.1:2", "ipc:///tmp/x/y"]
    assert load_settings({"client_endpoints": ("tcp://[::1]:3",)}).client_endpoints == ["tcp://[::1]:3"]
    assert refusal({"client_endpoints": []}).startswith("client_endpoints (command line): ")


def test_defaults_follow_the_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = load_settings({"data_dir": "data", "runtime_dir": "/run/a"})
    assert settings.data_dir == tmp_path / "data"
    assert settings.database_url == f"sqlite:///{tmp_path}/data/atelier.db"
    assert settings.artifacts_dir == tmp_path / "data" / "artifacts"
    assert settings.models_dir == tmp_path / "data" / "models"
    assert settings.client_endpoints == ["tcp://127.0.0.1:5555", "ipc:///run/a/client"]
    assert settings.worker_endpoints == ["ipc:///run/a/workers"]
    (tmp_path / "models").mkdir()
    assert load_settings({}).models_dir == tmp_path / "models"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert load_settings({}).runtime_dir == Path("/run/user/7/atelier")


def test_settings_that_contradict_each_other_are_refused() -> None:
    assert "at least twice heartbeat_ms" in refusal({"lease_ms": 3000})
    assert "must not exceed frame_bytes_max" in refusal({"frame_bytes_max": 1000})


def test_the_default_wire_limits_are_the_contracts() -> None:
    assert load_settings({}).wire_limits == WireLimits()
    assert load_settings({"attachments_max": 3}).wire_limits == WireLimits(attachments_max=3)


def test_every_setting_is_described() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name


def test_settings_made_directly_read_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_AGING_MS", "1")
    Path("atelier.toml").write_text("aging_ms = 1\n")
    assert Settings().aging_ms == 30_000


def test_folders_are_made_private(tmp_path: Path) -> None:
    settings = Settings(runtime_dir=tmp_path / "run" / "deep", data_dir=tmp_path / "data")
    settings.make_folders()
    settings.make_folders()
    assert (tmp_path / "run" / "deep").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


def test_folders_others_may_enter_are_refused(tmp_path: Path) -> None:
    shared, link, file = tmp_path / "shared", tmp_path / "link", tmp_path / "file"
    shared.mkdir(mode=0o755)
    link.symlink_to(shared)
    file.touch()
    for bad in (shared, link, file, file / "below"):
        with pytest.raises(SettingsError, match="runtime_dir"):
            Settings(runtime_dir=bad, data_dir=tmp_path / "data").make_folders()
    shared.chmod(0o700)
    Settings(runtime_dir=link, data_dir=shared).make_folders()  # the owner's own link, as to a larger disk
