"""Predicted times, learned from what workers report: load times of models and run times per unit of work."""

from orchestrator.core.model import Cost

WEIGHT = 0.3  # of the newest measurement in the moving average
KEYS_MAX = 10_000  # learned values; past it the oldest goes
GUESS_RUN_MS_PER_UNIT = 250.0
GUESS_LOAD_MS = 5_000.0


class Averages:
    """Moving averages by key, bounded."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], float] = {}

    def learn(self, device_kind: str, key: str, value: float) -> None:
        place = device_kind, key
        known = self._values.pop(place, None)
        self._values[place] = value if known is None else known + WEIGHT * (value - known)
        if len(self._values) > KEYS_MAX:
            del self._values[next(iter(self._values))]

    def get(self, device_kind: str, key: str) -> float | None:
        return self._values.get((device_kind, key))


class Estimates:
    def __init__(self) -> None:
        self._run = Averages()
        self._load = Averages()
        self._any_run = Averages()  # over all kinds of device, for jobs nobody has taken yet

    def learn(self, device_kind: str, cost: Cost, model_id: str | None, load_ms: int, running_ms: int) -> None:
        """Take in one finished attempt; `running_ms` excludes loading."""
        per_unit = running_ms / max(cost.units, 1.0)
        self._run.learn(device_kind, cost.key, per_unit)
        self._any_run.learn("", cost.key, per_unit)
        if load_ms and model_id is not None:
            self._load.learn(device_kind, model_id, load_ms)

    def run_ms(self, cost: Cost, device_kind: str | None = None) -> int:
        per_unit = self._run.get(device_kind, cost.key) if device_kind is not None else None
        if per_unit is None:
            per_unit = self._any_run.get("", cost.key)
        return round((GUESS_RUN_MS_PER_UNIT if per_unit is None else per_unit) * cost.units)

    def load_ms(self, device_kind: str, model_id: str) -> int:
        learned = self._load.get(device_kind, model_id)
        return round(GUESS_LOAD_MS if learned is None else learned)

    def measured(self, cost: Cost) -> bool:
        return self._any_run.get("", cost.key) is not None
