"""Names of models: what may stand where one is asked for, and which of two versions is newer.

A model's id is `name`, or `name:version` where it comes in versions. Asking for one takes more forms, see `parse`.
"""

import re
from functools import lru_cache
from typing import NamedTuple

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ALIAS = VERSION
MLFLOW = "models:/"
STAGES = frozenset({"none", "staging", "production", "archived"})  # MLflow's, before it had aliases


class Reference(NamedTuple):
    """What was asked for: a name, perhaps with a version or an alias. `stage`: the alias was written as a stage."""

    name: str
    version: str | None = None
    alias: str | None = None
    stage: bool = False

    @property
    def plain(self) -> bool:
        return self.version is None and self.alias is None


@lru_cache(4096)  # a few different ones in very many requests
def parse(text: str) -> Reference | None:
    """Read `name`, `name:version`, `name@alias`, and MLflow's `models:/name`, `models:/name@alias`,
    `models:/name/version`, `models:/name/Stage`. None: no model can be called so."""
    mlflow = text.startswith(MLFLOW)
    name, mark, rest = re.fullmatch(r"([^:@/]*)([:@/]?)(.*)", text.removeprefix(MLFLOW), re.DOTALL).groups()  # type: ignore[union-attr]
    if not NAME.fullmatch(name) or (mark and not VERSION.fullmatch(rest)):
        return None
    if mark == "@":
        return Reference(name, alias=rest)
    if mark == ("/" if mlflow else ":"):
        stage = mlflow and rest.lower() in STAGES
        return Reference(name, alias=rest.lower(), stage=True) if stage else Reference(name, version=rest)
    return None if mark else Reference(name)


def model_id_of(name: str, version: str | None) -> str:
    return name if version is None else f"{name}:{version}"


def split(model_id: str) -> tuple[str, str | None]:
    """`name:version` as its two parts; the second is None where it has no version."""
    name, colon, version = model_id.partition(":")
    return name, version if colon else None


def by_age(version: str) -> list[tuple[bool, int, str]]:
    """The key that sorts versions, the oldest first: numbers within them count as numbers."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.findall(r"\d+|\D+", version)]
