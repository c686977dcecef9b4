"""Train the demo model."""
import sys
from pathlib import Path

import torch

from scripts.demo_model.vae import train_vae

torch.set_num_threads(1)
train_vae(Path(sys.argv[1]), seed=1, steps=int(sys.argv[2]))
