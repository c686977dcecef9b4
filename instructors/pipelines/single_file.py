"""From a checkpoint in one file to a pipeline of diffusers, without a look at the network."""

import lzma
from functools import cache
from typing import Any

import diffusers
import torch
from transformers import CLIPTokenizer

from instructors.single_files import SHIPPED, SingleFile

MERGES = SHIPPED / "clip" / "merges.txt.xz"
START, END = "<|startoftext|>", "<|endoftext|>"
TOKENS_MAX = 77
OPEN_CLIP_PADDING = "!"  # what OpenCLIP's text encoders were trained with; CLIP's were with END


def pipeline(file: SingleFile, dtype: torch.dtype, shared: dict[str, Any]) -> Any:
    """`shared`: components that another model has on the device. Raises what the library raises on files that do not
    fit."""
    class_name = str(file.index["_class_name"]).replace("InpaintPipeline", "Pipeline")
    absent = {name: None for name, value in file.index.items() if isinstance(value, list) and value[0] is None}
    made = getattr(diffusers, class_name).from_single_file(
        str(file.path),
        config=str(file.config),
        local_files_only=True,
        dtype=dtype,
        **{**absent, **(_tokenizers(file) if file.is_shipped else {}), **shared},
    )
    if "v_prediction" in file.kind.variants and made.scheduler.config.prediction_type != "v_prediction":
        told = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": "ztsnr" in file.header.tensors}
        made.scheduler = type(made.scheduler).from_config(made.scheduler.config, **told)
    return made


def _tokenizers(file: SingleFile) -> dict[str, Any]:
    """Of shipped configs. SD 1 has CLIP's text encoder, SD 2 OpenCLIP's, and SDXL one of each."""
    if "tokenizer_2" in file.index:
        return {"tokenizer": clip_tokenizer(END), "tokenizer_2": clip_tokenizer(OPEN_CLIP_PADDING)}
    return {"tokenizer": clip_tokenizer(OPEN_CLIP_PADDING if file.config.name.startswith("sd2") else END)}


def clip_tokenizer(padded_with: str) -> CLIPTokenizer:
    """CLIP's, from the merges that are shipped."""
    words, merges = _vocabulary()
    return CLIPTokenizer(
        vocab=dict(words),
        merges=list(merges),
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=padded_with,
        model_max_length=TOKENS_MAX,
    )


@cache
def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The words with their numbers, and the merges in order: bytes, bytes that end a word, pairs, the two marks."""
    lines = lzma.decompress(MERGES.read_bytes()).decode().split("\n")
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
    letters = _letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    return {word: number for number, word in enumerate(words)}, merges


def _letters() -> list[str]:
    """One for each byte, in CLIP's order: printable ones stand for themselves, the others for letters after Latin."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in plain] + [chr(256 + number) for number in range(256 - len(plain))]
