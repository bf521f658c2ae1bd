"""Compare our Chatterbox with the library's own ``generate`` in a loop, in one run, on random weights.

Both speak the same texts with the same weights, voice, seeds and number of tokens, and put the watermark in. The
library speaks one text after the other whoever calls; we take all callers' texts together.

    scripts/bench speech                                  the tiny model of the tests
    scripts/bench speech --size full --tokens 60 --repeats 1 --library-requests 1
    scripts/bench speech --size full --device cuda --dtype bfloat16
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from aiservices.handler import Task
from aiservices.handlers.chatterbox import ChatterboxOptions, ChatterboxTextToSpeech
from aiservices.handlers.chatterbox.checkpoint import ChatterboxModel
from aiservices.handlers.chatterbox.library import import_library, quiet
from aiservices.handlers.chatterbox.sampling import Sampling
from aiservices.handlers.chatterbox.t3 import T3Engine
from aiservices.handlers.chatterbox.t3_rows import T3Request
from aiservices.handlers.chatterbox.variants import VARIANTS, TextReader
from aiservices.handlers.speech_contract import TextToSpeechInput
from aiservices.handlers.torch_runtime import prepare_torch
from tests.handlers import tiny_chatterbox
from tests.handlers.speech_fakes import FakeContext

TEXT = "This sentence is spoken to see how long it takes, and nobody listens to it."
CLIP_S = 5
SPEECH_TOKENS = 6561


@attrs.frozen(eq=False)
class Bench:
    """The same weights in both hands."""

    theirs: Any
    ours: ChatterboxTextToSpeech
    model: ChatterboxModel
    tokens: int
    device: str
    clock: Callable[[], float]


@attrs.frozen
class Times:
    """Seconds of one measurement, and what they were spent on."""

    total_s: float
    t3_s: float = 0.0
    sound_s: float = 0.0


def main() -> None:
    """Measure and print a table."""
    asked = _arguments()
    prepare_torch(asked.threads)
    with pytest.MonkeyPatch.context() as patch, quiet():
        if asked.size == "tiny":
            tiny_chatterbox.small_modules(patch)
        bench = _bench(asked)
        _print_setting(asked)
        for callers in asked.callers if asked.t3_only else ():
            _print_t3_row(bench, callers, min(callers, asked.library_requests), asked.repeats)
        if asked.t3_only:
            return
        _speak(bench, 1)  # the first run chooses kernels
        _generate(bench, 1)
        for callers in asked.callers:
            _print_row(bench, callers, min(callers, asked.library_requests), asked.repeats)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench speech", description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=("tiny", "full"), default="tiny")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--tokens", type=int, default=125, help="speech tokens of each text, 25 a second")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="float32", help="of T3, for both")
    parser.add_argument("--threads", type=int, default=None, help="of torch, for both; default: what torch takes")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu on a machine that others use")
    parser.add_argument("--repeats", type=int, default=3, help="the median counts")
    parser.add_argument("--library-requests", type=int, default=4, help="how many the library speaks at most a row")
    parser.add_argument("--t3-only", action="store_true", help="leave the sound out")
    return parser.parse_args()


def _bench(asked: argparse.Namespace) -> Bench:
    library = import_library()
    dtype = torch.bfloat16 if asked.dtype == "bfloat16" else torch.float32
    loop: Any = importlib.import_module("chatterbox.models.t3.t3")
    loop.tqdm = partial(loop.tqdm, disable=True)
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        tiny_chatterbox.write_tokenizer(folder)
        torch.manual_seed(0)
        tts = library.english
        t3, s3gen, encoder = tts.T3().eval(), tts.S3Gen().eval(), tts.VoiceEncoder().eval()
        _never_stop(t3)
        for module in (t3, s3gen, encoder):
            module.to(asked.device)
        conds = _voice(tts, t3, s3gen, asked.device)
        tokenizer = tts.EnTokenizer(str(folder / "tokenizer.json"))
        theirs = tts.ChatterboxTTS(t3, s3gen, encoder, tokenizer, asked.device, conds=conds)
        t3.to(dtype)
        theirs.t3.inference = partial(_limited, t3.inference, asked.tokens)
        model = ChatterboxModel(
            variant=VARIANTS[0],
            library=library,
            t3=t3,
            s3gen=s3gen,
            voice_encoder=encoder,
            reader=TextReader(library, VARIANTS[0], folder),
            watermarker=theirs.watermarker,
            own_voice={"t3": dict(conds.t3.__dict__), "gen": dict(conds.gen)},
        )
    ours = ChatterboxTextToSpeech()
    options = ChatterboxOptions(rows=max(asked.callers), max_new_tokens=asked.tokens, redraws=0, sound_rows=16)
    ours.adopt(model, options, asked.device)
    clock = time.process_time if asked.clock == "cpu" else time.perf_counter
    return Bench(theirs, ours, model, asked.tokens, asked.device, clock)


def _limited(infer: Callable[..., Any], tokens: int, **given: Any) -> Any:
    """The library's loop, which ``generate`` lets run for 1000 tokens."""
    return infer(**{**given, "max_new_tokens": tokens})


def _never_stop(t3: Any) -> None:
    """Make marks, the stop among them, so unlikely that ``min_p`` drops them: all texts get as many tokens."""
    t3.speech_head.weight[:] *= 20
    t3.speech_head.weight[SPEECH_TOKENS:] = 0


def _voice(tts: Any, t3: Any, s3gen: Any, device: str) -> Any:
    hum = torch.sin(torch.arange(24_000 * CLIP_S) * (2 * torch.pi * 120 / 24_000)) / 2
    speaker = torch.nn.functional.normalize(torch.randn(1, t3.hp.speaker_embed_size))
    prompt = torch.randint(0, SPEECH_TOKENS, (1, t3.hp.speech_cond_prompt_len))
    cond = tts.T3Cond(speaker_emb=speaker, cond_prompt_speech_tokens=prompt, emotion_adv=0.5 * torch.ones(1, 1, 1))
    return tts.Conditionals(cond.to(device=device), s3gen.embed_ref(hum.to(device), 24_000, device=device))


def _generate(bench: Bench, requests: int) -> Times:
    """Speak with the library, one after the other."""
    began = bench.clock()
    for number in range(requests):
        torch.manual_seed(number)
        bench.theirs.conds.t3.cond_prompt_speech_emb = None
        bench.theirs.generate(TEXT)
    return Times(bench.clock() - began)


def _speak(bench: Bench, requests: int) -> Times:
    """Speak with ours, all together, from the input to the encoded answer."""
    engine = bench.ours._ready.engine
    s3gen = engine._renderer._s3gen
    t3, sound = _Timer(engine._t3.step, bench.clock), _Timer(s3gen.render, bench.clock)
    # To see the shares, which together are more than the whole where both go on at once.
    engine._t3.step, s3gen.render = t3, sound  # type: ignore[method-assign]
    began = bench.clock()
    inputs = [TextToSpeechInput(text=TEXT, seed=number) for number in range(requests)]
    tasks = [Task(asyncio.run(bench.ours.preprocess(asked, FakeContext())), FakeContext()) for asked in inputs]
    bench.ours.admit(tasks)
    results: list[Any] = []
    while len(results) < requests:
        results += [result for _, result in bench.ours.step()]
    for result in results:
        bench.ours.postprocess(result)
    spent = Times(bench.clock() - began, t3.spent_s, sound.spent_s)
    engine._t3.step, s3gen.render = t3.call, sound.call  # type: ignore[method-assign]
    return spent


class _Timer:
    """Counts the seconds that a function takes, the device's work included."""

    def __init__(self, call: Callable[..., Any], clock: Callable[[], float]) -> None:
        self.call, self._clock, self.spent_s = call, clock, 0.0

    def __call__(self, *args: Any, **named: Any) -> Any:
        began = self._clock()
        result = self.call(*args, **named)
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        self.spent_s += self._clock() - began
        return result


def _their_tokens(bench: Bench, requests: int) -> Times:
    """Run the library's T3 alone."""
    model, hp = bench.theirs, bench.model.t3.hp
    ids = [hp.start_text_token, *bench.model.reader.read(TEXT, "en"), hp.stop_text_token]
    text = torch.tensor([ids, ids], device=bench.device)
    began = bench.clock()
    for number in range(requests):
        torch.manual_seed(number)
        model.conds.t3.cond_prompt_speech_emb = None
        model.t3.inference(
            t3_cond=model.conds.t3, text_tokens=text, temperature=0.8, top_p=1.0, min_p=0.05, cfg_weight=0.5
        )
    return Times(bench.clock() - began)


def _our_tokens(bench: Bench, requests: int) -> Times:
    """Run our T3 alone, all rows together."""
    hp, voice = bench.model.t3.hp, bench.ours._ready.voices.named("default")
    engine: T3Engine = bench.ours._ready.engine._t3
    ids = [hp.start_text_token, *bench.model.reader.read(TEXT, "en"), hp.stop_text_token]
    began = bench.clock()
    condition = engine.embedding.condition(voice.speaker, voice.prompt, 0.5)
    engine.join([T3Request(condition, ids, 0.5, Sampling(), seed, bench.tokens) for seed in range(requests)])
    while len(engine):
        engine.step()
    return Times(bench.clock() - began)


def _print_setting(asked: argparse.Namespace) -> None:
    processor = torch.cuda.get_device_name() if asked.device.startswith("cuda") else platform.processor() or "CPU"
    print(f"{asked.size} random weights, {asked.tokens} tokens a text, {CLIP_S} s of voice, T3 in {asked.dtype}")
    print(
        f"{processor}, {torch.get_num_threads()} thread(s), {asked.clock} time, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )
    print(
        "callers | T3 library | T3 ours | ratio | whole library | whole ours | ratio | real-time | T3 and sound share"
    )
    print("        |  tokens/s  | tokens/s|       |  requests/s   | requests/s |       |  factor   |  of the time")


def _print_t3_row(bench: Bench, callers: int, library_requests: int, repeats: int) -> None:
    """Measure the speech tokens alone, both by turns."""
    theirs, ours = (
        _median(times)
        for times in zip(
            *(
                (
                    _their_tokens(bench, library_requests).total_s / library_requests,
                    _our_tokens(bench, callers).total_s / callers,
                )
                for _ in range(repeats)
            ),
            strict=True,
        )
    )
    speeds = f"{bench.tokens / theirs:10.1f} | {bench.tokens / ours:8.1f}"
    print(f"{callers:7} | {speeds}| {theirs / ours:5.2f}", flush=True)


def _print_row(bench: Bench, callers: int, library_requests: int, repeats: int) -> None:
    """Measure both by turns, so that a busy machine slows both."""
    rounds = [
        (
            _their_tokens(bench, library_requests).total_s / library_requests,
            _our_tokens(bench, callers).total_s / callers,
            _generate(bench, library_requests).total_s / library_requests,
            _speak(bench, callers),
        )
        for _ in range(repeats)
    ]
    theirs_t3, ours_t3, theirs = (_median([row[part] for row in rounds]) for part in (0, 1, 2))  # type: ignore[misc]
    whole = sorted((row[3] for row in rounds), key=lambda times: times.total_s)[len(rounds) // 2]
    ours = whole.total_s / callers
    print(
        f"{callers:7} | {bench.tokens / theirs_t3:10.1f} | {bench.tokens / ours_t3:8.1f}| {theirs_t3 / ours_t3:5.2f} "
        f"| {1 / theirs:13.3f} | {1 / ours:10.3f} | {theirs / ours:5.2f} | {ours / (bench.tokens / 25):9.3f} "
        f"| {whole.t3_s / whole.total_s:4.0%} {whole.sound_s / whole.total_s:4.0%}",
        flush=True,
    )


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    main()
