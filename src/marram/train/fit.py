"""Fit a small convolutional network to examples, and write it as ONNX. The only file of `train` that needs PyTorch."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marram.runtime import image as pictures
from marram.runtime.contract import TensorInfo
from marram.runtime.engines.torch import pytorch
from marram.runtime.fit import plan
from marram.runtime.preprocess import Preprocessor
from marram.train.data import Example
from marram.train.recipe import Recipe

Progress = Callable[[int, int, float], None]  # epoch, epochs, mean loss


def inputs(recipe: Recipe, examples: list[Example]) -> NDArray[np.float32]:
    """What the network sees: float32 [N, C, H, W], made by the very preprocessing that runs on the device."""
    rows, columns = recipe.input.size
    channels = 1 if recipe.input.colour == "gray" else 3
    preprocess = Preprocessor(recipe.input, TensorInfo("input", (1, channels, rows, columns), "float32"), recipe.recipe)
    ready = [
        preprocess.image(pictures.apply(plan(recipe.input, *e.image.shape[:2]), e.image)).astype(np.float32)
        for e in examples
    ]
    return np.concatenate(ready)  # (N, C, H, W)


def fit(recipe: Recipe, examples: list[Example], progress: Progress | None = None) -> Any:
    """Train the recipe's network on `examples`; returns the torch module, in eval mode.

    A slice weighs as the square root of its size (sampling with temperature 2, as in multilingual training: Arivazhagan
    et al. 2019, section 4.2): a changed site's few samples are heard, and a handful does not drown the base set. Adam
    with a cosine learning rate. Raises NotReady where PyTorch is not installed.
    """
    torch = pytorch()
    generator = torch.Generator().manual_seed(recipe.seed)
    torch.manual_seed(recipe.seed)
    model = _network(torch, recipe)
    x = torch.from_numpy(inputs(recipe, examples))  # (N, C, H, W)
    y = torch.tensor([e.label for e in examples])  # (N,)
    sizes = Counter(e.slice for e in examples)
    weights = torch.tensor([sizes[e.slice] ** -0.5 for e in examples], dtype=torch.double)
    batches = max(1, -(-max(sizes.values()) * len(sizes) // recipe.batch))
    optimiser = torch.optim.Adam(model.parameters(), lr=recipe.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.epochs * batches)
    model.train()
    for epoch in range(1, recipe.epochs + 1):
        picked = torch.multinomial(weights, batches * recipe.batch, replacement=True, generator=generator)
        total = 0.0
        for batch in picked.split(recipe.batch):
            seen = _shifted(torch, x[batch], recipe.shift, generator)
            loss = torch.nn.functional.cross_entropy(model(seen), y[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        if progress:
            progress(epoch, recipe.epochs, total / batches)
    return model.eval()


def _shifted(torch: Any, x: Any, most: int, generator: Any) -> Any:
    """`x` (B, C, H, W) moved as a batch by up to `most` pixels each way, its edge pixels repeated."""
    if not most:
        return x
    down, right = torch.randint(0, 2 * most + 1, (2,), generator=generator).tolist()
    padded = torch.nn.functional.pad(x, (most, most, most, most), mode="replicate")
    return padded[:, :, down : down + x.shape[2], right : right + x.shape[3]]


def export_onnx(recipe: Recipe, model: Any, path: Path) -> None:
    """Write `model` as ONNX: input float32 [1, C, H, W], output logits float32 [1, labels]."""
    torch = pytorch()
    rows, columns = recipe.input.size
    example = torch.zeros(1, 1 if recipe.input.colour == "gray" else 3, rows, columns)
    # The exporter warns of its own deprecated insides, and of torchvision, which nothing here uses.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, (example,), dynamo=True, verbose=False, input_names=["input"], output_names=["logits"]
        )
    program.save(str(path), external_data=False)


def _network(torch: Any, recipe: Recipe) -> Any:
    """small-cnn: three 3×3 convolutions (width, 2 ×, 4 ×) with batch norm and ReLU, two poolings, one linear layer."""
    nn = torch.nn
    layers: list[Any] = []
    channels = 1 if recipe.input.colour == "gray" else 3
    for index, width in enumerate((recipe.width, 2 * recipe.width, 4 * recipe.width)):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        if index < 2:
            layers.append(nn.MaxPool2d(2))
        channels = width
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.1), nn.Linear(16 * channels, len(recipe.labels))
    )
