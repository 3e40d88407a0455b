"""Run by torchrun in two processes as ``several_runs.py RECIPE FOLDER ...``: each recipe in its folder."""

import os
import sys
from pathlib import Path

import torch

from pugdft.training.run import finetune, read_recipe

if __name__ == "__main__":
    torch.set_num_threads(1)
    for recipe, folder in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        record, _ = finetune(read_recipe(recipe), Path(folder))
        assert record.status == "completed", record
    sys.stdout.flush()
    os._exit(0)  # torch's own end is now and then an abort
