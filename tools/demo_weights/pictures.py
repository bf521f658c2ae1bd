"""Sets of drawn pictures as the picture model's patches, made once by a pool of processes and kept on disk."""

import functools
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tools.demo_weights.drawing import draw, random_canvas
from tools.demo_weights.products import ATTRIBUTES, Product, random_product

PATCH_SIZE = 8
MERGE_SIZE = 2
_SHARD = 500

Grid = tuple[int, int]
"""Rows and columns of patches."""


@functools.cache
def image_processor() -> Qwen2VLImageProcessorPil:
    """Give the picture model's own image processor.

    72 x 72 = 5184 pixels: 64 x 64 for a square and 96 x 48 for 2:1, the areas next below in multiples of 16.
    """
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH_SIZE, merge_size=MERGE_SIZE, size={"shortest_edge": 64 * 64, "longest_edge": 72 * 72}
    )


@attrs.frozen(eq=False)
class PictureSet:
    """Pictures as patches, grouped by grid so that a batch needs no padding.

    Args:
        patches: For each grid the pixels 0..255, uint8, shape (pictures, patches, 3 * 8 * 8).
        labels: For each grid the index of each attribute's word, int64, shape (pictures, attributes).
    """

    patches: dict[Grid, torch.Tensor]
    labels: dict[Grid, torch.Tensor]

    def __len__(self) -> int:
        """Count the pictures."""
        return sum(len(labels) for labels in self.labels.values())

    def batches(self, size: int, rng: np.random.Generator) -> list[tuple[Grid, NDArray[np.int64]]]:
        """Give one epoch in random order: for each batch its grid and the pictures' indices in it."""
        batches = []
        for grid, labels in self.labels.items():
            order = rng.permutation(len(labels))
            batches += [(grid, order[i : i + size]) for i in range(0, len(order), size)]
        return [batches[i] for i in rng.permutation(len(batches))]


def product_of(labels: Sequence[int] | torch.Tensor) -> Product:
    """Give the product that a row of labels stands for."""
    return Product(**{name: words[int(i)] for (name, words), i in zip(ATTRIBUTES.items(), labels, strict=True)})


def labels_of(product: Product) -> list[int]:
    """Give a product as the indices of its words, in the order of ATTRIBUTES."""
    return [words.index(getattr(product, name)) for name, words in ATTRIBUTES.items()]


def picture(
    seed: Sequence[int], *, held_out: bool, shortest: int = 200, longest: int = 600
) -> tuple[Product, Image.Image]:
    """Draw the picture of a seed: a random product of one side of the split on a canvas of random size (pixels)."""
    rng = np.random.default_rng(seed)
    product = random_product(rng, held_out=held_out)
    width, height = random_canvas(rng, shortest=shortest, longest=longest)
    return product, draw(product, width, height, rng)


def load_or_draw(folder: Path, count: int, seed: int, workers: int = 2) -> PictureSet:
    """Give `count` pictures of training pairs from the folder, drawing what is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = [(seed, start, min(start + _SHARD, count)) for start in range(0, count, _SHARD)]
    paths = {folder / f"{seed}-{start}-{end}.npz": (seed, start, end) for seed, start, end in shards}
    missing = {path: shard for path, shard in paths.items() if not path.exists()}
    with ProcessPoolExecutor(workers) if workers > 1 else nullcontext() as pool:
        drawn = (pool.map if pool else map)(_draw_shard, missing, missing.values())
        for done, path in enumerate(drawn, start=1):
            if done % 10 == 0 or done == len(missing):
                print(f"pictures: {done} of {len(missing)} parts drawn ({path.name})", flush=True)
    return _gather(list(paths))


def _draw_shard(path: Path, shard: tuple[int, int, int]) -> Path:
    """Draw the pictures of a seed from one index up to another."""
    seed, start, end = shard
    # Smaller canvases than in use: they are faster to draw, and the processor reduces all to the same area.
    drawn = [picture((seed, i), held_out=False, shortest=140, longest=420) for i in range(start, end)]
    patches, grids = zip(*(_processed(image) for _, image in drawn), strict=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(
            file,
            patches=np.concatenate(patches),
            grids=np.array(grids),
            labels=np.array([labels_of(product) for product, _ in drawn]),
        )
    partial.rename(path)
    return path


def _processed(image: Image.Image) -> tuple[NDArray[np.uint8], Grid]:
    """Resize and cut as the model's processor does; the second frame of each patch repeats the first."""
    batch = image_processor()(image, do_rescale=False, do_normalize=False, return_tensors="np")
    _, rows, columns = (int(side) for side in batch["image_grid_thw"][0])
    patches = batch["pixel_values"].reshape(rows * columns, 3, 2, PATCH_SIZE**2)[:, :, 0]
    return patches.reshape(rows * columns, -1).round().astype(np.uint8), (rows, columns)


def _gather(paths: Sequence[Path]) -> PictureSet:
    patches: defaultdict[Grid, list[NDArray[np.uint8]]] = defaultdict(list)
    labels: defaultdict[Grid, list[NDArray[np.int64]]] = defaultdict(list)
    for path in paths:
        shard = np.load(path)
        offsets = np.concatenate([[0], np.cumsum(shard["grids"].prod(axis=1))])
        pixels = shard["patches"]
        for i, (rows, columns) in enumerate(shard["grids"].tolist()):
            patches[rows, columns].append(pixels[offsets[i] : offsets[i + 1]])
            labels[rows, columns].append(shard["labels"][i])
    return PictureSet(
        patches={grid: torch.from_numpy(np.stack(found)) for grid, found in patches.items()},
        labels={grid: torch.from_numpy(np.stack(found)) for grid, found in labels.items()},
    )
