"""How near the engines come to what a GPU can do: ``scripts/bench gpu``. Takes under 8 minutes; the tables come last.

A Mistral of 7B's shape and a Qwen2.5-VL of 7B's shape with random weights in bfloat16, decoded at 1, 8, 32 and 128 rows
by the own engine and by vLLM, beside the rate at which the weights alone could be read from memory (the bound of
decoding); pictures of 1280 tokens read a second; and Chatterbox at full size beside its library (``scripts/bench
speech``). On a CPU (``--device cpu --hidden 256 --layers 2 --rows 1 4 --steps 8``) it only shows that the script runs.
Nothing fails because of a number.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import attrs
import torch
from PIL import Image

from aiservices.handler import Task
from aiservices.handlers.mistral import AUTO_CLASSES
from aiservices.handlers.qwen import DescribeImage
from aiservices.handlers.text.checkpoint import Checkpoint, read_checkpoint
from aiservices.handlers.text.engine import TextEngine, WarmUpContext, generate
from aiservices.handlers.text.generation import GenerationRequest
from aiservices.handlers.text.options import GenerationOptions
from aiservices.handlers.text.picture_size import read_picture_size
from aiservices.handlers.torch_runtime import prepare_torch
from tests.handlers.text.checkpoints.shapes import SHAPES, Shape, write

MISTRAL = next(shape for shape in SHAPES if "Mistral-7B" in shape.repository)
QWEN = next(shape for shape in SHAPES if "Qwen2.5-VL-7B" in shape.repository)
PROMPT_TOKENS = 128
PICTURE = (980, 1008)
"""Pixels that become 1260 tokens of 28 by 28."""
COPIED_BYTES = 1 << 30


@attrs.frozen
class Decoded:
    """Tokens a second of one engine at one number of rows; the bound is what reading the weights alone allows."""

    engine: str
    rows: int
    rate: float
    bound: float


def copy_rate(device: str) -> float:
    """Measure bytes a second that a copy within the device's memory reads."""
    source = torch.empty(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(10):
        _wait(device)
        began = time.perf_counter()
        target.copy_(source)
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * COPIED_BYTES / best  # read and written


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def write_shape(shape: Shape, folder: Path, asked: argparse.Namespace) -> Checkpoint:
    """Write a checkpoint's files with its released config, or a smaller one; the weights are made at load."""
    write(shape, folder)
    tiny = json.loads((folder / "config.json").read_text())
    if asked.hidden:
        tiny.update(hidden_size=asked.hidden, intermediate_size=3 * asked.hidden, num_hidden_layers=asked.layers)
        tiny.update(num_attention_heads=asked.hidden // 64, num_key_value_heads=max(1, asked.hidden // 256))
        if "vision_config" in tiny:
            tiny["vision_config"]["out_hidden_size"] = asked.hidden
            tiny["rope_scaling"]["mrope_section"] = [8, 12, 12]
        config = tiny
    else:  # as released, but for the tokens of the small tokenizer
        config = {**shape.config, **{name: value for name, value in tiny.items() if name.endswith("token_id")}}
    (folder / "config.json").write_text(json.dumps(config))
    return read_checkpoint(folder, {**AUTO_CLASSES, **DescribeImage.auto_classes})


@contextmanager
def random_weights() -> Iterator[None]:
    """Let both engines make weights instead of reading them."""
    from aiservices.handlers.text.own import loading

    def make(checkpoint: Checkpoint, device: str, options: GenerationOptions) -> Any:
        import transformers

        model_class = getattr(transformers, checkpoint.auto_class)._model_mapping[type(checkpoint.config)]
        with torch.device(device):
            before = torch.get_default_dtype()
            torch.set_default_dtype(getattr(torch, options.dtype))
            try:
                model = model_class(checkpoint.config)
            finally:
                torch.set_default_dtype(before)
        return model.eval().requires_grad_(False)

    with patch.object(loading, "load_weights", make):
        yield


def load(engine: str, checkpoint: Checkpoint, asked: argparse.Namespace, sees: bool) -> TextEngine:
    """Start an engine with random weights."""
    device = asked.device
    options = GenerationOptions(dtype=asked.dtype, max_new_tokens=4096, cpu_threads=1)
    pictures = read_picture_size(checkpoint, 1280) if sees else None
    if engine == "own":
        from aiservices.handlers.text.own.loading import load_engine as load_own

        with random_weights():
            return load_own(checkpoint, device, options, pictures)
    from aiservices.handlers.text.vllm import loading

    arguments = loading._arguments
    dummy = {"load_format": "dummy", "max_model_len": 8192}
    with patch.object(loading, "_arguments", lambda *given: {**arguments(*given), **dummy}):
        loaded: TextEngine = loading.load_engine(checkpoint, device, options, pictures, 1)
        return loaded


def decode(engine: TextEngine, rows: int, steps: int) -> float:
    """Decode so many rows for so many steps; tokens a second once all have begun."""
    prompt = engine.render([1, *range(10, 9 + PROMPT_TOKENS)])
    tasks = [Task(GenerationRequest(prompt, max_new_tokens=steps + 64), WarmUpContext()) for _ in range(rows)]
    engine.admit(tasks)
    for _ in range(48):  # until all prompts are read, graphs captured and kernels chosen
        engine.step()
    began = time.perf_counter()
    done = 0
    while done < steps and len(engine) == rows:
        engine.step()
        done += 1
    passed_s = time.perf_counter() - began
    engine.reset()
    return rows * done / passed_s


def read_pictures(engine: TextEngine, picture_token: int, count: int) -> float:
    """Read prompts of one large picture each; pictures a second."""
    pictures = [Image.effect_noise(PICTURE, 20 + place).convert("RGB") for place in range(count)]
    prompts = [engine.render([picture_token, 7, 8], [picture]) for picture in pictures]
    requests = [GenerationRequest(prompt, max_new_tokens=1) for prompt in prompts]
    generate(engine, requests[:1])
    began = time.perf_counter()
    generate(engine, requests[1:])
    return (count - 1) / (time.perf_counter() - began)


def measure_text(asked: argparse.Namespace, bytes_per_s: float) -> tuple[list[Decoded], dict[str, float]]:
    """Measure both engines, one after the other: each takes the GPU's memory for itself."""
    decoded, seen = [], {}
    with tempfile.TemporaryDirectory() as name:
        for engine in asked.engines:
            for shape in (MISTRAL,) if asked.no_pictures else (MISTRAL, QWEN):
                folder = Path(name) / f"{engine}-{shape.sees}"
                folder.mkdir()
                checkpoint = write_shape(shape, folder, asked)
                loaded = load(engine, checkpoint, asked, shape.sees)
                if shape.sees:
                    seen[engine] = read_pictures(loaded, checkpoint.config.image_token_id, asked.pictures)
                else:
                    weights = (2 if asked.dtype == "bfloat16" else 4) * (asked.billions or MISTRAL.parameters) * 1e9
                    for rows in asked.rows:
                        rate = decode(loaded, rows, asked.steps)
                        decoded.append(Decoded(engine, rows, rate, rows * bytes_per_s / weights))
                        print(f"{engine}, {rows} rows: {rate:.0f} tokens/s", file=sys.stderr, flush=True)
                loaded.close()
                del loaded
                if asked.device.startswith("cuda"):
                    torch.cuda.empty_cache()
    return decoded, seen


def speech(asked: argparse.Namespace) -> str:
    """Run the benchmark of Chatterbox in a process of its own; its table."""
    words = ["-m", "tools.benchmarks.speech", "--device", asked.device, "--repeats", "1", "--library-requests", "1"]
    words += ["--size", "tiny" if asked.hidden else "full", "--dtype", "float32" if asked.hidden else "bfloat16"]
    words += ["--callers", *(["1", "4"] if asked.hidden else ["1", "8", "32", "80"])]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    return done.stdout or f"speech was not measured: {done.stderr[-500:]}"


def report(asked: argparse.Namespace, rate: float, decoded: list[Decoded], seen: dict[str, float]) -> str:
    """The tables, in Markdown."""
    device = torch.cuda.get_device_name() if asked.device.startswith("cuda") else "CPU"
    lines = [
        f"{device}, torch {torch.__version__}, copies {rate / 1e9:.0f} GB/s",
        "",
        "| engine | rows | tokens/s | of the bound by memory |",
        "|---|---|---|---|",
    ]
    lines += [f"| {one.engine} | {one.rows} | {one.rate:.0f} | {one.rate / one.bound:.2f} |" for one in decoded]
    lines += ["", "| engine | pictures of 1260 tokens read a second |", "|---|---|"]
    lines += [f"| {engine} | {pictures:.1f} |" for engine, pictures in seen.items()]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="scripts/bench gpu", description=__doc__)
    add = parser.add_argument
    add("--device", default="cuda")
    add("--rows", type=int, nargs="+", default=[1, 8, 32, 128])
    add("--steps", type=int, default=128, help="tokens of each row; default: 128")
    add("--pictures", type=int, default=17, help="read by each engine; default: 17")
    add("--engines", nargs="+", default=["own", *(["vllm"] if find_spec("vllm") else [])])
    add("--hidden", type=int, default=0, help="a smaller model, of so many channels, to try the script out")
    add("--layers", type=int, default=2, help="of the smaller model")
    add("--billions", type=float, default=0.0, help="parameters of the smaller model, for the bound")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="default: bfloat16")
    add("--no-pictures", action="store_true", help="leave the pictures out")
    add("--no-speech", action="store_true", help="leave Chatterbox out")
    asked = parser.parse_args()
    prepare_torch()
    rate = copy_rate(asked.device)
    decoded, seen = measure_text(asked, rate)
    spoken = "" if asked.no_speech else speech(asked)
    print("\n".join([report(asked, rate, decoded, seen), "", spoken]))


if __name__ == "__main__":
    main()
