"""Trains a network of ``modcap.zoo`` on Fashion-MNIST and writes a safetensors checkpoint.

    python examples/fashion_mnist/train.py mobilenet_v2_x0_5 --epochs 30

Writes ``checkpoints/NAME.safetensors``, its log ``NAME.train.json`` and its model card ``NAME.md``.
Needs the full 60,000 training images (Debian: ``dataset-fashion-mnist``) in the folder ``--data``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from modcap import zoo

MEAN, STD = 0.2860, 0.3530
HERE = Path(__file__).parent


def read_idx(path: Path) -> np.ndarray:
    with gzip.open(path) as file:
        raw = file.read()
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def load(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    images = read_idx(folder / f"{split}-images-idx3-ubyte.gz").astype(np.float32) / 255
    labels = read_idx(folder / f"{split}-labels-idx1-ubyte.gz").astype(np.int64)
    return torch.from_numpy((images - MEAN) / STD)[:, None], torch.from_numpy(labels)


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """One random shift of up to two pixels for each image, a flip for half of them."""
    n, _, height, width = x.shape
    padded = F.pad(x, (2, 2, 2, 2), value=-MEAN / STD)
    dy, dx = torch.randint(0, 5, (2, n, 1), generator=generator)
    rows = dy + torch.arange(height)
    columns = dx + torch.arange(width)
    flip = torch.rand(n, 1, generator=generator) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)
    return padded[torch.arange(n)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


@torch.no_grad()
def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    hits = sum(
        int((model(x.contiguous(memory_format=torch.channels_last)).argmax(1) == y).sum())
        for x, y in zip(images.split(500), labels.split(500), strict=True)
    )
    return 100 * hits / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("network", choices=zoo.__all__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=HERE / "checkpoints")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    images, labels = load(args.data, "train")
    test_images, test_labels = load(args.data, "t10k")
    model = getattr(zoo, args.network)().to(memory_format=torch.channels_last)
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [
            {"params": decay, "weight_decay": args.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ],
        lr=args.lr,
        momentum=0.9,
        nesterov=True,
    )
    steps = math.ceil(len(images) / args.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=args.epochs * steps, pct_start=0.2
    )
    log = []
    for epoch in range(args.epochs):
        start = time.perf_counter()
        model.train()
        total = 0.0
        for index in torch.randperm(len(images), generator=generator).split(args.batch):
            x = augment(images[index], generator).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(model(x), labels[index], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(index)
        log.append(
            {
                "epoch": epoch + 1,
                "loss": round(total / len(images), 4),
                "test_top1": top1(model, test_images, test_labels),
                "seconds": round(time.perf_counter() - start, 1),
            }
        )
        print(json.dumps(log[-1]), flush=True)

    args.out.mkdir(parents=True, exist_ok=True)
    weights = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(
        weights,
        args.out / f"{args.network}.safetensors",
        {"architecture": f"modcap.zoo:{args.network}"},
    )
    settings = {
        k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "out"
    }
    record = {"settings": settings, "torch": torch.__version__, "epochs": log}
    (args.out / f"{args.network}.train.json").write_text(json.dumps(record, indent=1) + "\n")
    parameters = sum(p.numel() for p in model.parameters())
    options = ("epochs", "batch", "lr", "weight_decay", "seed", "threads")
    flags = " ".join(f"--{name.replace('_', '-')} {getattr(args, name)}" for name in options)
    command = f"python examples/fashion_mnist/train.py {args.network} {flags}"
    (args.out / f"{args.network}.md").write_text(
        f"""# {args.network}

{getattr(zoo, args.network).__doc__.strip()}

| | |
|---|---|
| architecture | `modcap.zoo:{args.network}` |
| input | (N, 1, 28, 28) float32, (pixel / 255 - {MEAN}) / {STD} |
| parameters | {parameters:,} |
| top-1, 10,000 test images | **{log[-1]["test_top1"]:.2f} %** (last epoch, not a picked one) |
| data | Fashion-MNIST (arXiv 1708.07747, MIT), 60,000 images, random shifts and flips |
| training | SGD, one-cycle schedule; see the command |
| command | `{command}` |
| log | `{args.network}.train.json` |

Meant for showing and testing quantization; not for deciding anything about people.
"""
    )


if __name__ == "__main__":
    main()
