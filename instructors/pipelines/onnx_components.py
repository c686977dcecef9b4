"""Components of a stock pipeline whose forwards are computed by ONNX graphs, each in a process of its own.

A stand-in is the stock class built without weights: config and all that pipelines ask of it are there, and `forward`,
or the VAE's `encode` and `decode`, go to the graph. The pipeline around it computes on the CPU in float32, whatever the
graphs compute in and on; they get their inputs in their own types.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPTextModelOutput

from instructors.onnx_layout import HIDDEN_STATES
from instructors.pipelines.onnx.runner import Runner, RunnerSpec
from protocol.errors import ModelInvalid, Unavailable

NUMBERS = ("float16", "float32", "float64", "int32", "int64")  # that numpy turns into each other
RUN_TIMEOUT_S = 100.0  # of one forward; the worker counts as hung soon after

log = structlog.get_logger("instructors.onnx")


class GraphForward:
    """A graph in its process. A process that is lost is started again, once a call."""

    def __init__(self, file: Path, device: str, cache: Path | None = None) -> None:
        """Waits until it is loaded. `cache`: where optimised graphs are kept. Raises what `Runner.start` does, and
        ModelInvalid."""
        self._spec = RunnerSpec(path=file, device=device, cache=cache, run_timeout_s=RUN_TIMEOUT_S)
        self._runner = Runner.start(self._spec)
        facts = self._runner.facts
        strange = [info for info in (*facts.inputs, *facts.outputs) if info.dtype not in NUMBERS]
        if strange:
            self.close()
            raise ModelInvalid(
                f"Its graph's {strange[0].name[:60]!r} is {strange[0].told}, which no pipeline gives or takes."
            )
        self.nbytes = max(facts.nbytes, file.stat().st_size)
        self.outputs = tuple(info.name for info in facts.outputs)
        self._takes = {info.name: (info.dtype, len(info.shape)) for info in facts.inputs}

    def __call__(self, given: Mapping[str, Tensor], outputs: Sequence[str]) -> list[Tensor]:
        """These outputs in float32. Raises ModelInvalid where the graph wants more than is given, and what
        `Runner.run` does."""
        feed = {name: self._input(name, given) for name in self._takes}
        try:
            found = self._run(feed, outputs)
        except Unavailable:
            log.warning("the process of a graph was lost: starting it again")
            found = self._run(feed, outputs)
        return [torch.from_numpy(np.asarray(found[name], np.float32)) for name in outputs]

    def _run(self, feed: dict[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        if not self._runner.alive:
            self._runner.close()
            self._runner = Runner.start(self._spec)
        return self._runner.run(feed, outputs)

    def _input(self, name: str, given: Mapping[str, Tensor]) -> Any:
        if name not in given:
            raise ModelInvalid(f"Its graph wants an input {name[:60]!r}, which no pipeline of its family gives.")
        dtype, _ = self._takes[name]
        return np.ascontiguousarray(given[name].numpy().astype(dtype, copy=False))

    @property
    def providers(self) -> tuple[str, ...]:
        """What it really runs on."""
        return self._runner.facts.providers

    def rank(self, name: str) -> int:
        """How many axes an input has."""
        return self._takes[name][1] if name in self._takes else 0

    def close(self) -> None:
        """End the process."""
        self._runner.close()


class StandIn:
    """What all of them are to their pipeline."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")


class OnnxUNet(StandIn, UNet2DConditionModel):
    """Takes no ControlNets' residuals and no LoRAs."""

    graph: GraphForward

    def forward(
        self,
        sample: Tensor,
        timestep: Any,
        encoder_hidden_states: Tensor,
        timestep_cond: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        return_dict: bool = True,
    ) -> Any:
        given = {"sample": sample, "encoder_hidden_states": encoder_hidden_states, **(added_cond_kwargs or {})}
        if timestep_cond is not None:
            given["timestep_cond"] = timestep_cond
        timesteps = torch.as_tensor(timestep).float().reshape(-1).expand(sample.shape[0])
        found = self._by_row(given, timesteps) if self.graph.rank("timestep") else self._by_time(given, timesteps)
        return UNet2DConditionOutput(sample=found) if return_dict else (found,)

    def _by_row(self, given: dict[str, Tensor], timesteps: Tensor) -> Tensor:
        return self.graph({**given, "timestep": timesteps}, self.graph.outputs[:1])[0]

    def _by_time(self, given: dict[str, Tensor], timesteps: Tensor) -> Tensor:
        """Of a graph that takes one timestep for all rows: those of each time by themselves."""
        found: Tensor | None = None
        for time in timesteps.unique():
            rows = timesteps == time
            part = self.graph(
                {name: value[rows] for name, value in given.items()} | {"timestep": time}, self.graph.outputs[:1]
            )[0]
            found = part.new_empty((len(rows), *part.shape[1:])) if found is None else found
            found[rows] = part
        assert found is not None
        return found


class OnnxVae(StandIn, AutoencoderKL):
    """Two graphs."""

    encoder_graph: GraphForward
    decoder_graph: GraphForward

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Older exports draw the latents themselves; ours, and those of today, tell mean and log variance."""
        found = self.encoder_graph({"sample": x}, self.encoder_graph.outputs[:1])[0]
        if found.shape[1] == self.config.latent_channels:
            found = torch.cat([found, torch.full_like(found, -30.0)], dim=1)  # as good as no variance
        latents = DiagonalGaussianDistribution(found)
        return AutoencoderKLOutput(latent_dist=latents) if return_dict else (latents,)

    def decode(self, z: Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        found = self.decoder_graph({"latent_sample": z}, self.decoder_graph.outputs[:1])[0]
        return DecoderOutput(sample=found) if return_dict else (found,)


class _Encodes(StandIn):
    graph: GraphForward

    def _encode(self, input_ids: Tensor, hidden_states: bool) -> tuple[list[Tensor], tuple[Tensor, ...] | None]:
        """The last hidden state and the pooled text, and all hidden states if they are asked for."""
        first = [name for name in ("last_hidden_state", "pooler_output", "text_embeds") if name in self.graph.outputs]
        states = [name for name in self.graph.outputs if name.startswith(HIDDEN_STATES)] if hidden_states else []
        found = self.graph({"input_ids": input_ids}, [*first, *states])
        return found[: len(first)], tuple(found[len(first) :]) if hidden_states else None


class OnnxTextEncoder(_Encodes, CLIPTextModel):
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        (last, *pooled), states = self._encode(input_ids, bool(output_hidden_states))
        return BaseModelOutputWithPooling(last, pooled[0] if pooled else None, hidden_states=states)


class OnnxTextEncoderWithProjection(_Encodes, CLIPTextModelWithProjection):
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        found, states = self._encode(input_ids, bool(output_hidden_states))
        return CLIPTextModelOutput(text_embeds=found[-1], last_hidden_state=found[0], hidden_states=states)


def text_encoder(folder: Path, graph: GraphForward) -> Any:
    """The stand-in for a text encoder, by its config."""
    kind = OnnxTextEncoderWithProjection if "text_embeds" in graph.outputs else OnnxTextEncoder
    with torch.device("meta"):
        module = kind(kind.config_class.from_pretrained(folder, local_files_only=True))
    module.graph = graph
    return module.eval()


def unet(folder: Path, graph: GraphForward) -> Any:
    """The stand-in for a UNet."""
    module = _shell(OnnxUNet, folder)
    module.graph = graph
    return module


def vae(folder: Path, encoder: GraphForward, decoder: GraphForward) -> Any:
    """The stand-in for a VAE; `folder` is that of its decoder, whose config is the whole VAE's."""
    module = _shell(OnnxVae, folder)
    module.encoder_graph, module.decoder_graph = encoder, decoder
    return module


def _shell(kind: Any, folder: Path) -> Any:
    """Without weights: on the meta device."""
    config, unused = kind.load_config(folder, local_files_only=True, return_unused_kwargs=True)
    with torch.device("meta"), suppress(AttributeError):
        return kind.from_config({**config, **unused}).eval()
    raise ModelInvalid("Its config makes no component.")
