"""How a pipeline of ONNX graphs lies in a folder: the names of its parts, their inputs and outputs.

As optimum and diffusers write them: a folder a component with its `model.onnx` and the `config.json` of the module it
was, the VAE in two halves; tokenizers and scheduler as ever.
"""

import re

PREFIX = re.compile(r"^(Onnx|ORT)(?=[A-Z])")  # of the pipeline's class in the index: diffusers' and optimum's
COMPONENT_CLASS = ("diffusers", "OnnxRuntimeModel")  # what the index says of each graph
GRAPH_FILE = "model.onnx"
GRAPH_SUFFIXES = frozenset({".onnx", ".data", ".onnx_data", ".pb"})  # of graphs, and of weights beside them
VAE_ENCODER, VAE_DECODER = "vae_encoder", "vae_decoder"

HIDDEN_STATES = "hidden_states"  # "hidden_states.0", …: what each layer of a text encoder makes
UNET_EXTRAS = ("text_embeds", "time_ids")  # SDXL's
