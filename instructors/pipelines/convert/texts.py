"""An encoder or classifier of text, of transformers, as one ONNX graph."""

import shutil
from inspect import isclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from instructors.convert_source import CONFIG, check_text_model
from instructors.onnx_layout import GRAPH_FILE
from instructors.pipelines.convert.graphs import BATCH, Graph, Inputs, made
from instructors.pipelines.convert.order import Order, Report
from protocol.errors import InvalidRequest, ModelInvalid

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt"
)  # fmt: skip
TOKENS = 16  # in the rows that are traced


class TextModel(nn.Module):
    """[rows, tokens] ids and mask -> the tensors of the library's answer, in its order."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)
        return tuple(value for value in found.values() if isinstance(value, Tensor))


def convert(order: Order, report: Report) -> dict[str, Any]:
    """Write the model into the order's folder. Gives its difference, as `agreed` tells it.

    Raises InvalidRequest for another kind of model, and ModelInvalid.
    """
    report(0.0, "model")
    kind: Any = getattr(transformers, check_text_model(order.source.path / CONFIG), None)
    known = isclass(kind) and issubclass(kind, transformers.PreTrainedModel)
    if not known:
        raise InvalidRequest("Its class is none of transformers'.")
    if kind.main_input_name != "input_ids":
        raise InvalidRequest("Only encoders and classifiers of text are converted.")
    model, found = kind.from_pretrained(
        order.source.path, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True,
        attn_implementation="eager",
    )  # fmt: skip
    if wrong := [*found["missing_keys"], *found["mismatched_keys"]]:
        raise ModelInvalid(f"The weights and the config do not fit together: {str(wrong[0])[:100]!r}.")
    model.eval().requires_grad_(False)
    model.config.use_cache = False
    report(0.1, "model")
    difference = made(_graph(model), order.folder / GRAPH_FILE, order.source.precision, "model")
    for name in (CONFIG, *TOKENIZER_FILES):
        if (order.source.path / name).is_file():
            shutil.copy(order.source.path / name, order.folder)
    return {"model": difference}


def _graph(model: Any) -> Graph:
    length = min(TOKENS, model.config.max_position_embeddings // 4)

    def example(case: int) -> Inputs:
        rows, tokens = ((2, length), (1, length - 3), (3, 2 * length))[case]
        generator = torch.Generator().manual_seed(case)
        mask = torch.ones(rows, tokens, dtype=torch.int64)
        for row in range(rows):
            mask[row, tokens - row :] = 0
        return {
            "input_ids": torch.randint(0, model.config.vocab_size, mask.shape, generator=generator),
            "attention_mask": mask,
        }

    wrapped = TextModel(model)
    with torch.inference_mode():
        found = model(**example(1), return_dict=True)
    outputs = tuple(name for name, value in found.items() if isinstance(value, Tensor))
    axes = {0: BATCH, 1: "tokens"}
    return Graph(wrapped, outputs, {"input_ids": axes, "attention_mask": axes}, example)
