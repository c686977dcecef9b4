"""The step `rename`, with which one model's outputs become the next one's inputs."""

from instructors.processing import Params, Values, add
from protocol.errors import ModelInvalid


class Rename(Params):
    names: dict[str, str]  # name -> what it is called from here on


def rename(values: Values, params: Rename) -> Values:
    """Raises ModelInvalid where there is no value of such a name."""
    for name in params.names:
        if name not in values:
            known = ", ".join(values)
            raise ModelInvalid(f"The manifest's step 'rename': there is no {name[:60]!r}; there are {known}.")
    return {params.names.get(name, name): value for name, value in values.items()}


add("rename", Rename, rename)
