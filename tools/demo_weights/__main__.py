"""Run one step of making the demo models: python -m tools.demo_weights draw|tower|describe|listing|examples."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tools.demo_weights import describe, listing
from tools.demo_weights.evaluate import DEMO, DESCRIBE_FOLDER, LISTING_FOLDER
from tools.demo_weights.examples import draw_examples
from tools.demo_weights.pictures import PictureSet, load_or_draw


def _pictures(work: Path) -> PictureSet:
    plan = describe.Plan()
    return load_or_draw(work / "pictures", plan.pictures, plan.seed)


def _tower(work: Path, _demo: Path) -> None:
    describe.train_tower(_pictures(work), describe.Plan(), work / "tower.pt")


def _describe(work: Path, demo: Path) -> None:
    pictures, folder = _pictures(work), demo / DESCRIBE_FOLDER.name
    describe.train_jointly(pictures, describe.Plan(), work / "tower.pt", folder)
    describe.train_answers(pictures, describe.Plan(), folder)


_STEPS: dict[str, Callable[[Path, Path], object]] = {
    "draw": lambda work, demo: _pictures(work),
    "tower": _tower,
    "describe": _describe,
    "listing": lambda work, demo: listing.train(listing.Plan(), demo / LISTING_FOLDER.name),
    "examples": lambda work, demo: draw_examples(),
}


def main() -> None:
    """Run the steps named on the command line, in that order."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo_weights", description=__doc__)
    parser.add_argument("steps", nargs="+", choices=_STEPS)
    parser.add_argument("--work", type=Path, default=Path(".train"), help="folder of pictures and checkpoints")
    parser.add_argument("--demo", type=Path, default=DEMO, help="folder that the models' folders are written to")
    parser.add_argument("--threads", type=int, default=1, help="of torch; more hardly pay for models this small")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.steps:
        wall_s, cpu_s = time.monotonic(), time.process_time()
        _STEPS[name](options.work, options.demo)
        wall_s, cpu_s = time.monotonic() - wall_s, time.process_time() - cpu_s
        print(f"{name}: done in {wall_s:.0f} s, CPU {cpu_s:.0f} s", flush=True)


if __name__ == "__main__":
    main()
