"""VAEs that stand beside the models, in the model folder's `vaes/`, and decode in place of a model's own."""

import torch
from diffusers import AutoencoderKL

from instructors.pipelines.diffusion import LoadedModel
from instructors.pipelines.loading import LoadedComponent, component
from instructors.pipelines.sharing import share_decode
from instructors.shelf import ComponentFiles, Shelf
from instructors.task import Context
from protocol.errors import AtelierError, ModelInvalid

SHELF = Shelf("vaes", "VAE", ("AutoencoderKL",))
SETTINGS = ("latent_channels", "in_channels", "out_channels")


def resident(vae_id: str, loaded: LoadedModel, context: Context) -> LoadedComponent:
    """The VAE on the context's device, in the model's dtype.

    Raises ModelNotFound, Forbidden, ModelInvalid, also where its latents are not the model's, and OutOfMemory.
    """
    try:
        loaded.check_additions("other VAE")
        files = SHELF.find(vae_id, context.models)
        _check_fits(files, loaded)
        vae = component("VAE", AutoencoderKL, files, getattr(torch, loaded.dtype), context)
    except AtelierError as error:
        error.details["vae_id"] = vae_id
        raise
    share_decode(vae.module, context.padding)  # also for an offloaded model: it may decode for others meanwhile
    return vae


def _check_fits(files: ComponentFiles, loaded: LoadedModel) -> None:
    """Reads no tensor."""
    own = loaded.component("vae")
    if type(own) is not AutoencoderKL:
        raise ModelInvalid(f"Models of the family {loaded.model.family} take no other VAE.")
    ours = {name: own.config[name] for name in SETTINGS}
    theirs = {name: files.config.get(name, ours[name]) for name in SETTINGS}
    sizes = files.config.get("block_out_channels")
    factor = 2 ** (len(sizes) - 1) if isinstance(sizes, list) and sizes else 1
    if theirs != ours or factor != loaded.scale_factor:
        raise ModelInvalid(
            f"This VAE was made for other latents: {theirs['latent_channels']} channels, {factor} pixels a side; the "
            f"model has {ours['latent_channels']} and {loaded.scale_factor}."
        )
