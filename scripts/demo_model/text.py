"""Tokenizer and text encoder of the demo model: CLIP's classes, a vocabulary of its own."""

import re

from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from scripts.demo_model.shapes import (
    COLOURS,
    KINDS,
    TEMPLATES,
    WITHOUT_BACKGROUND,
    WITHOUT_COLOUR,
    WITHOUT_KIND,
)

LENGTH = 77
WIDTH = 64
END_OF_WORD = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"


def new_tokenizer() -> CLIPTokenizer:
    """A byte-pair tokenizer that makes one token of each word the captions use and can spell all others."""
    symbols = list(bytes_to_unicode().values())
    tokens = symbols + [symbol + END_OF_WORD for symbol in symbols]
    merges: list[tuple[str, str]] = []
    for word in _words():
        _add_merges(word, merges)
    tokens += ["".join(pair) for pair in merges] + [START, END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        model_max_length=LENGTH,
    )


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained text encoder, about 0.15 M parameters.

    CLIP's own initial embeddings are so small that a short training hardly tells words apart, hence larger.
    """
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    embeddings = encoder.get_input_embeddings()
    embeddings.weight.data.mul_(10)
    return encoder


def _words() -> list[str]:
    """Every word of the captions, sorted."""
    templates = (*TEMPLATES, WITHOUT_COLOUR, WITHOUT_BACKGROUND, WITHOUT_KIND)
    spoken = re.findall(r"[a-z]+", " ".join(re.sub(r"\{.*?\}", "", t) for t in templates))
    return sorted({*spoken, *COLOURS, *KINDS, "small", "large"})


def _add_merges(word: str, merges: list[tuple[str, str]]) -> None:
    """Append the merges, after the existing ones, that make `word` one token.

    What is appended ranks below all that stands, so the words already spelled keep their merges.
    """
    pieces = [*word[:-1], word[-1] + END_OF_WORD]
    for left, right in merges:
        index = 0
        while index < len(pieces) - 1:
            if (pieces[index], pieces[index + 1]) == (left, right):
                pieces[index : index + 2] = [left + right]
            index += 1
    while len(pieces) > 1:
        merges.append((pieces[0], pieces[1]))
        pieces[:2] = ["".join(pieces[:2])]
