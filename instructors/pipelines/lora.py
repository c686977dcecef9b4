"""LoRA in a running batch: adapters beside the model, and a mix of its own for each row.

An adapter's tensors are never fused into the model's weights, and loading one does not touch the model. For one pass,
`LoraBase.rows` covers the `forward` of the layers that the batch's adapters change, and uncovers them after it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import structlog
import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from instructors.lora_files import COMPONENTS, LoraFile, resident_name
from instructors.pipelines.lora_match import Target, match
from protocol.errors import InvalidRequest, ModelInvalid

log = structlog.get_logger("instructors.lora")


@dataclass(frozen=True, slots=True)
class Delta:
    """What one adapter adds to one layer: `up(down(x)) * scale * alpha / divisor`.

    `down`: [rank, in] or [rank, in, k, k]; `up`: [out, rank] or [out, rank, 1, 1].
    """

    down: Tensor
    up: Tensor
    alpha: float
    divisor: float


@dataclass(slots=True, eq=False, weakref_slot=True)
class Adapter:
    """A loaded LoRA. `name` and `nbytes` are for the worker's residency, where no model's name is like it.

    `deltas`: component -> layer -> delta.
    """

    name: str
    content_hash: str
    nbytes: int
    deltas: Mapping[str, Mapping[str, Delta]]


Mix = tuple[tuple[Adapter, float], ...]  # the adapters of one row with their scales; empty: the base


def mix_key(component: str, mix: Mix) -> tuple[tuple[str, float], ...]:
    """What a mix means to a component, for caches of its results: equal for equal files, and holds no adapter."""
    return tuple((adapter.content_hash, scale) for adapter, scale in mix if scale and adapter.deltas.get(component))


@dataclass(slots=True)
class _Group:
    """The rows of a batch that an adapter changes. `rows` None: all. `scales`: one for all, or one a row.

    What is needed on the device is made when the first layer asks for it.
    """

    adapter: Adapter
    rows: slice | tuple[int, ...] | None
    scales: tuple[float, ...]
    _index: Tensor | None = None
    _factors: dict[tuple[float, float], float | Tensor] = field(default_factory=dict)

    def index(self, rows: tuple[int, ...], device: torch.device) -> Tensor:
        if self._index is None:
            self._index = torch.tensor(rows, device=device)
        return self._index

    def factor(self, delta: Delta, device: torch.device) -> float | Tensor:
        """What the delta is multiplied by: a number, or [rows] where rows differ. In stock's order of operations."""
        key = (delta.alpha, delta.divisor)
        if key not in self._factors:
            products = [scale * delta.alpha / delta.divisor for scale in self.scales]
            self._factors[key] = products[0] if len(products) == 1 else torch.tensor(products, device=device)
        return self._factors[key]


class LoraBase:
    """The parts of one loaded model that a LoRA may change."""

    def __init__(self, parts: Mapping[str, nn.Module], device: str, dtype: torch.dtype) -> None:
        """`parts`: "unet" and the text encoders, named as in the pipeline. Adapters are put on `device` as `dtype`."""
        self._parts = dict(parts)
        self._modules = {component: dict(part.named_modules()) for component, part in parts.items()}
        self._compiled = any(
            module._compiled_call_impl is not None for part in parts.values() for module in part.modules()
        )
        self._device = torch.device(device)
        self._dtype = dtype

    @classmethod
    def of(cls, pipeline: Any, device: str) -> "LoraBase":
        """Those of a pipeline. Raises InvalidRequest for a family whose LoRAs are not applied."""
        components = pipeline.components
        if type(components.get("unet")) is not UNet2DConditionModel:
            raise InvalidRequest("LoRAs are applied to Stable Diffusion 1, 2 and XL; this model is of another family.")
        parts = {name: components[name] for name in COMPONENTS if components.get(name) is not None}
        return cls(parts, device, pipeline.unet.dtype)

    def check(self, file: LoraFile) -> None:
        """Raise ModelInvalid if the LoRA does not fit this model. Reads no tensor."""
        match(file, self._parts)

    def nbytes(self, file: LoraFile) -> int:
        """What the LoRA will take in memory."""
        return file.elements * self._dtype.itemsize

    def load(self, file: LoraFile) -> Adapter:
        """The adapter's tensors, on the device. Raises ModelInvalid; running out of memory passes through."""
        targets = match(file, self._parts)
        deltas: dict[str, dict[str, Delta]] = {}
        try:
            with safe_open(file.path, framework="pt", device="cpu") as tensors:
                for target in targets:
                    delta = self._delta(target, tensors.get_tensor)
                    deltas.setdefault(target.component, {})[target.layer] = delta
        except (SafetensorError, OSError) as error:
            log.warning("a LoRA cannot be loaded", lora_id=file.lora_id, error=repr(error))
            raise ModelInvalid("This LoRA's file cannot be read, or has changed just now.") from None
        nbytes = sum(d.down.nbytes + d.up.nbytes for layers in deltas.values() for d in layers.values())
        return Adapter(resident_name(file.lora_id), file.content_hash, nbytes, deltas)

    def _delta(self, target: Target, read: Callable[[str], Tensor]) -> Delta:
        down, up = (read(name).to(self._dtype) for name in (target.down, target.up))
        alpha = target.settled_alpha if target.alpha is None else float(read(target.alpha))
        if not (math.isfinite(alpha) and torch.isfinite(down).all() and torch.isfinite(up).all()):
            raise ModelInvalid(
                f"This LoRA's layer {target.layer[:100]!r} has values that are not numbers, or too large for it."
            )
        return Delta(down.to(self._device), up.to(self._device), alpha, target.divisor)

    @contextmanager
    def rows(self, component: str, mixes: Sequence[Mix], reproducible: bool = False) -> Iterator[None]:
        """Within it, row i of a batch that goes through the component has the LoRAs of `mixes[i]`.

        Where all mixes are the same, the arithmetic is that of stock diffusers, bit for bit; else rows with the same
        adapter are computed together. `reproducible`: every row by itself, so that what is added to it depends on
        nothing else in the batch.
        """
        modules, plan = self._modules[component], self._plan(component, mixes, reproducible)
        covered: list[tuple[dict[str, Any], Any]] = []
        try:
            for layer, deltas in plan.items():
                attributes = modules[layer].__dict__  # set past torch, which would look at each for what it is
                covered.append((attributes, attributes.get("forward")))
                attributes["forward"] = _covered(modules[layer], deltas, len(mixes))
            with self._eager() if plan else nullcontext():
                yield
        finally:
            for attributes, forward in covered:
                if forward is None:
                    del attributes["forward"]
                else:  # a hook of another's, such as for offloading
                    attributes["forward"] = forward

    def _eager(self) -> AbstractContextManager[Any]:
        """Compiled blocks run as they were written: else each new mix would be compiled first."""
        return torch.compiler.set_stance("force_eager") if self._compiled else nullcontext()

    def _plan(self, component: str, mixes: Sequence[Mix], reproducible: bool) -> dict[str, list[tuple[Delta, _Group]]]:
        """Layer -> what is added to it, in order."""
        plan: dict[str, list[tuple[Delta, _Group]]] = {}
        for group in _groups(mixes, reproducible):
            for layer, delta in group.adapter.deltas.get(component, {}).items():
                plan.setdefault(layer, []).append((delta, group))
        return plan


def _groups(mixes: Sequence[Mix], reproducible: bool) -> list[_Group]:
    """Rows by adapter: first every row's first adapter, then every row's second, so that each row's own order of
    additions, which decides the rounding, does not depend on the other rows."""
    groups = []
    effective = [[(adapter, scale) for adapter, scale in mix if scale != 0] for mix in mixes]
    for place in range(max(map(len, effective), default=0)):
        members: dict[Any, list[tuple[int, Adapter, float]]] = {}
        for row, mix in enumerate(effective):
            if place < len(mix):
                adapter, scale = mix[place]
                members.setdefault(row if reproducible else adapter, []).append((row, adapter, scale))
        for group in members.values():
            rows, adapters, scales = zip(*group, strict=True)
            scales = scales[:1] if len(set(scales)) == 1 else scales
            groups.append(_Group(adapters[0], _selection(rows, len(mixes)), scales))
    return groups


def _selection(rows: tuple[int, ...], count: int) -> slice | tuple[int, ...] | None:
    """None for all rows, a slice for neighbours: neither is copied."""
    if len(rows) == count:
        return None
    return slice(rows[0], rows[-1] + 1) if rows[-1] - rows[0] == len(rows) - 1 else rows


def _covered(module: nn.Module, deltas: list[tuple[Delta, _Group]], count: int) -> Callable[[Tensor], Tensor]:
    """The layer's `forward` with its deltas, for `count` rows."""
    plain = module.forward

    def forward(x: Tensor) -> Tensor:
        if x.shape[0] != count:
            raise ValueError(f"{x.shape[0]} rows came to a layer with LoRAs for {count}")
        result = plain(x)
        for delta, group in deltas:
            rows = group.rows
            where = group.index(rows, x.device) if isinstance(rows, tuple) else rows
            added = _low_rank(module, x if where is None else x[where], delta)
            added = _scaled(added, group.factor(delta, x.device))
            if where is None:
                result = result + added
            elif isinstance(where, slice):
                result[where].add_(added)
            else:
                result.index_add_(0, where, added)
        return result

    return forward


def _low_rank(module: nn.Module, x: Tensor, delta: Delta) -> Tensor:
    if isinstance(module, nn.Conv2d):
        return F.conv2d(F.conv2d(x, delta.down, None, module.stride, module.padding), delta.up)
    return F.linear(F.linear(x, delta.down), delta.up)


def _scaled(added: Tensor, factor: float | Tensor) -> Tensor:
    """By one number, or by one a row in float32 and rounded once: the same result as row by row."""
    if isinstance(factor, Tensor):
        return (added * factor.view(-1, *[1] * (added.ndim - 1))).to(added.dtype)
    return added * factor
