"""What the workers offer, and which model a request gets that names none."""

from typing import Any

from orchestrator.registry import offers as module
from orchestrator.registry.offers import Offers, with_names

PAINTS = ["inference.text2img", "inference.img2img", "inference.lora"]
PREDICTS = ["inference.predict", "predict.batch"]


class Profile:
    def __init__(self, *resident: str) -> None:
        self.resident = frozenset(resident)


class Worker:
    def __init__(self, *resident: str) -> None:
        self.profile = Profile(*resident)


class Fleet:
    """The connected workers, as the core's fleet tells them."""

    def __init__(self) -> None:
        self.by_id: dict[str, Worker] = {}


def entry(model_id: str, actions: list[str] | None = None, **more: Any) -> dict[str, Any]:
    return {"model_id": model_id, **({} if actions is None else {"actions": actions}), **more}


def offering(preferred: str | None = None, **workers: dict[str, list[str] | None]) -> tuple[Offers, Fleet]:
    fleet = Fleet()
    offers = Offers(fleet, preferred)
    for worker_id, models in workers.items():
        fleet.by_id[worker_id] = Worker()
        offers.said(worker_id, {model_id: entry(model_id, actions) for model_id, actions in models.items()})
    return offers, fleet


def test_pictures_get_the_one_model_that_paints() -> None:
    offers, _ = offering(w={"demo": PAINTS, "localisation:1": PREDICTS, "localisation:2": PREDICTS})
    assert offers.default("inference.text2img") == "demo"
    assert offers.default("inference.predict") == "localisation"
    assert offers.default("predict.batch") == "localisation"
    assert offers.default("lora.load") == "demo"  # what it is about is done by that one alone
    assert offers.default("inference.controlnet") is None


def test_of_two_that_can_none_is_the_default() -> None:
    offers, _ = offering(a={"demo": PAINTS}, b={"other": PAINTS})
    assert offers.default("inference.text2img") is None


def test_the_setting_goes_first_where_it_can() -> None:
    there: dict[str, list[str] | None] = {"demo": PAINTS, "other": PAINTS, "localisation:1": PREDICTS}

    def default(action: str, preferred: str) -> str | None:
        return offering(preferred, w=there)[0].default(action)

    assert default("inference.text2img", "other") == "other"
    assert default("inference.predict", "other") == "localisation"
    assert default("inference.text2img", "not-here-yet") == "not-here-yet"
    assert default("inference.text2img", "localisation@prod") is None
    assert default("inference.predict", "localisation@prod") == "localisation@prod"


def test_a_model_that_does_not_say_what_it_can_may_do_anything() -> None:
    offers, _ = offering(w={"only": None})
    assert offers.default("inference.text2img") == "only"


def test_a_later_hello_changes_what_there_is() -> None:
    offers, _ = offering(w={"demo": PAINTS})
    assert offers.default("inference.text2img") == "demo"
    offers.said("w", {"demo": entry("demo", PAINTS), "other": entry("other", PAINTS)})
    assert offers.default("inference.text2img") is None
    offers.said("w", {"other": entry("other", PAINTS)})
    assert offers.default("inference.text2img") == "other"
    assert "demo" not in offers
    assert list(offers) == ["other"]


def test_a_version_whose_files_are_damaged_does_not_answer_for_the_name() -> None:
    offers, fleet = offering()
    fleet.by_id["a"] = Worker()
    offers.said("a", {"m:1": entry("m:1"), "m:2": entry("m:2", problem="Not a whole file.")})
    assert offers.newest("m") == "1"
    fleet.by_id["b"] = Worker()
    offers.said("b", {"m:2": entry("m:2")})  # whose files are whole
    assert offers.newest("m") == "2"
    offers.said("a", {"m:2": entry("m:2", problem="Not a whole file.")})
    offers.said("b", {})
    assert offers.newest("m") == "2"  # nothing else is there: its worker says what is wrong


def test_the_newest_version_is_one_that_a_connected_worker_has() -> None:
    offers, fleet = offering(a={"m:9": None, "m:1": None}, b={"m:10": None, "m:2-rc": None})
    assert offers.versions("m") == ["10", "9", "2-rc", "1"]
    assert offers.newest("m") == "10"
    del fleet.by_id["b"]
    assert offers.newest("m") == "9"
    del fleet.by_id["a"]
    assert offers.newest("m") == "10"  # both may come back
    assert offers.newest("n") is None


def test_the_list_tells_of_connected_workers_alone() -> None:
    offers, fleet = offering(a={"m:1": PAINTS}, b={"m:1": PAINTS, "n": None})
    fleet.by_id["a"] = Worker("m:1")
    told = entry("m:1", PAINTS, workers=["a", "b"], resident_on=["a"])
    assert offers.listed() == [told, entry("n", workers=["b"], resident_on=[])]
    del fleet.by_id["b"]
    assert [item["model_id"] for item in offers.listed()] == ["m:1"]


def test_a_worker_that_takes_any_name_may_have_more() -> None:
    offers, _ = offering(w={"demo": PAINTS})
    assert offers.complete
    offers.said("any", None)
    assert not offers.complete
    offers.said("any", {})
    assert offers.complete
    assert not Offers(Fleet(), None).complete  # nobody was here to say


def test_only_so_many_workers_are_remembered() -> None:
    offers, _ = offering()
    for number in range(module.WORKERS_MAX + 1):
        offers.said(f"w{number}", {"first": entry("first")} if number == 0 else {})
    assert "first" not in offers


def test_a_name_stands_for_its_versions() -> None:
    assert with_names(["demo", "m:1", "m:2"]) == {"demo", "m", "m:1", "m:2"}


def test_what_came_to_a_worker_does_what_its_other_versions_do() -> None:
    offers, _ = offering(w={"m:1": PREDICTS, "demo": PAINTS}, other={"n": PAINTS})
    offers.came("w", entry("m:2", family="onnx"))
    assert offers.newest("m") == "2"
    assert dict(offers.entries("m:2")) == {"w": entry("m:2", sorted(PREDICTS), family="onnx")}
    assert offers.default("inference.predict") == "m"
    offers.came("w", entry("new:1"))  # of the first version nobody knows it yet
    assert "new:1" in offers
    assert offers.default("inference.predict") == "m"
    offers.came("nobody", entry("m:3"))
    assert "m:3" not in offers
