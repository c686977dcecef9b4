"""The components of Stable Diffusion's pipelines as graphs: what each takes and answers, in the names usual for them.

The names are those of optimum's exports, so that such folders and ours are loaded alike.
"""

from typing import Any

import torch
from torch import Tensor, nn

from instructors.onnx_layout import HIDDEN_STATES, UNET_EXTRAS
from instructors.pipelines.convert.graphs import BATCH, Graph, Inputs

PICTURE = {0: BATCH, 2: "height", 3: "width"}  # open axes
COMPARED_SIDE_MAX = 32  # latents: enough to see a wrong graph, and quick


class TextEncoder(nn.Module):
    """[rows, 77] ids -> the last hidden state, the pooled text (or its projection), and all hidden states."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        found = self.encoder(input_ids, output_hidden_states=True)
        pooled = found.text_embeds if "text_embeds" in found else found.pooler_output
        return found.last_hidden_state, pooled, *found.hidden_states


class Unet(nn.Module):
    """Latents, a timestep a row and the encoded text -> what the scheduler takes."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]


class UnetXL(Unet):
    """With what SDXL adds: the pooled text, and the sizes of the picture."""

    def forward(  # type: ignore[override]
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, text_embeds: Tensor, time_ids: Tensor
    ) -> Tensor:
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        found = self.unet(sample, timestep, encoder_hidden_states, added_cond_kwargs=added, return_dict=False)
        return found[0]


class VaeEncoder(nn.Module):
    """Pictures -> mean and log variance of their latents, one after the other along the channels."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, sample: Tensor) -> Tensor:
        return self.vae.encode(sample, return_dict=False)[0].parameters


class VaeDecoder(nn.Module):
    """Latents -> pictures."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample: Tensor) -> Tensor:
        return self.vae.decode(latent_sample, return_dict=False)[0]


def text_encoder(encoder: Any) -> Graph:
    """Of a CLIPTextModel, or one with a projection."""
    config = encoder.config
    length, ends = config.max_position_embeddings, config.eos_token_id

    def example(case: int) -> Inputs:
        rows = (2, 1, 3)[case]
        ids = torch.randint(0, config.vocab_size, (rows, length), generator=_seeded(case))
        for row in range(rows):
            ids[row, 5 + 7 * row :] = ends if ends != 2 else config.vocab_size - 1  # configs of old say 2, and mean it
        return {"input_ids": ids}

    pooled = "text_embeds" if type(encoder).__name__.endswith("WithProjection") else "pooler_output"
    states = tuple(f"{HIDDEN_STATES}.{index}" for index in range(config.num_hidden_layers + 1))
    return Graph(TextEncoder(encoder), ("last_hidden_state", pooled, *states), {"input_ids": {0: BATCH}}, example)


def unet(unet: Any) -> Graph:
    """Of a UNet2DConditionModel with no more inputs than SD's and SDXL's. Any size of latents may come: it is traced
    with one that is halved with a rest on the way down."""
    config = unet.config
    factor = 2 ** (len(config.block_out_channels) - 1)
    own = min(config.sample_size, COMPARED_SIDE_MAX)
    takes_added = config.addition_embed_type == "text_time"

    def example(case: int) -> Inputs:
        rows = (2, 1, 3)[case]
        height, width = ((2 * factor + 1, 3 * factor + 2), (own, own), (2 * factor, 5 * factor - 1))[case]
        seeded = _seeded(case)
        inputs = {
            "sample": torch.randn(rows, config.in_channels, height, width, generator=seeded),
            "timestep": torch.rand(rows, generator=seeded) * 999,
            "encoder_hidden_states": torch.randn(rows, 77, config.cross_attention_dim, generator=seeded),
        }
        if takes_added:
            ids = 6
            pooled = config.projection_class_embeddings_input_dim - ids * config.addition_time_embed_dim
            inputs["text_embeds"] = torch.randn(rows, pooled, generator=seeded)
            inputs["time_ids"] = torch.tensor([[64.0, 96.0, 0.0, 0.0, 64.0, 96.0]]).repeat(rows, 1)
        return inputs

    extras = UNET_EXTRAS if takes_added else ()
    axes = {"sample": PICTURE, **{name: {0: BATCH} for name in ("timestep", "encoder_hidden_states", *extras)}}
    return Graph(UnetXL(unet) if takes_added else Unet(unet), ("out_sample",), axes, example)


def vae_encoder(vae: Any) -> Graph:
    """Of an AutoencoderKL."""
    factor = _pixels_per_latent(vae)

    def example(case: int) -> Inputs:
        rows, height, width = ((2, 5, 7), (1, 8, 8), (3, 6, 9))[case]
        pixels = torch.rand(rows, vae.config.in_channels, height * factor, width * factor, generator=_seeded(case))
        return {"sample": 2 * pixels - 1}

    return Graph(VaeEncoder(vae), ("latent_parameters",), {"sample": PICTURE}, example)


def vae_decoder(vae: Any) -> Graph:
    """Of an AutoencoderKL."""

    def example(case: int) -> Inputs:
        rows, height, width = ((2, 5, 7), (1, 8, 8), (3, 6, 9))[case]
        return {"latent_sample": torch.randn(rows, vae.config.latent_channels, height, width, generator=_seeded(case))}

    return Graph(VaeDecoder(vae), ("sample",), {"latent_sample": PICTURE}, example)


def _pixels_per_latent(vae: Any) -> int:
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def _seeded(case: int) -> torch.Generator:
    return torch.Generator().manual_seed(case)
