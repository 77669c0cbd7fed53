"""Pretrain the bundled `resnet_glyphs` on printed glyphs and write its weights: about two minutes on one core.

`python scripts/pretrain_glyphs.py` gives the shipped file again; `--out` writes it elsewhere.
"""

import argparse
import hashlib
from pathlib import Path

import torch
from rich.progress import track
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms import v2

from thaw.data.glyphs import batches, glyph_bank
from thaw.model.glyphs import WEIGHTS, resnet_glyphs

STEPS, BATCH_SIZE, LR, EMA_DECAY = 1_000, 128, 4e-3, 0.995


def pretrain(seed: int) -> nn.Module:
    """Train from random weights; the result is the moving average of the weights (arXiv:1407.6740)."""
    torch.manual_seed(seed)
    model = resnet_glyphs().to(memory_format=torch.channels_last)
    normalize = v2.Normalize(model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY), use_buffers=True)
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=STEPS, pct_start=0.1)
    data = batches(*glyph_bank(), BATCH_SIZE, STEPS, seed)
    for images, labels in track(data, description="Pretraining", total=STEPS):
        loss = F.cross_entropy(model(normalize(images)), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
    return nn.Sequential(normalize, average.module).eval()


@torch.no_grad()
def accuracy(model: nn.Module, seed: int) -> float:
    """Share of freshly augmented glyphs that are told right."""
    hits = [(model(images).argmax(1) == labels).float() for images, labels in batches(*glyph_bank(), 512, 20, seed)]
    return torch.cat(hits).mean().item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # sums in one order, so that the same seed gives the same file
    trained = pretrain(arguments.seed)
    state = {name: value.contiguous() for name, value in trained[1].state_dict().items()}
    save_file(state, arguments.out)
    print(
        f"accuracy {accuracy(trained, arguments.seed + 1):.4f} on fresh glyphs of {len(glyph_bank()[1])} in 62 classes"
    )
    print(f"sha256 {hashlib.sha256(arguments.out.read_bytes()).hexdigest()}  {arguments.out}")
