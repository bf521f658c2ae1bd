"""The released kinds of checkpoint: which files they have, how their text is written and how they are heard."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import attrs

from aiservices.errors import InvalidInput, ServiceError
from aiservices.handlers.chatterbox.library import Library

VariantName = Literal["english", "multilingual", "turbo", "nano"]
"""A released kind of checkpoint."""

Family = Literal["english", "multilingual", "turbo"]
"""Which of the library's three classes runs a kind of checkpoint."""

_MARKS = re.compile(r"\[(?:START|STOP|UNK|SPACE|PAD|SEP|CLS|MASK|cj_.|[a-z]{2})\]")
_HELPERS = {"ja": "pykakasi", "he": "dicta_onnx", "ru": "russian_text_stresser", "zh": "spacy_pkuseg"}


@attrs.frozen
class Variant:
    """One kind of checkpoint.

    Args:
        name: as in the options.
        family: which of the library's three classes runs it: that decides on its text, its tokenizer and T3's form.
        t3_file: pattern of the file with T3's weights; of several the newest is taken.
        s3gen_files: names that S3Gen's file may have.
        tokenizer_file: what the text's tokenizer is read from.
        backbone: of T3, by its name in the library's ``LLAMA_CONFIGS``.
        repetition_penalty: the library's default.
        min_p: likewise.
        top_p: likewise.
        top_k: likewise.
        guided: whether ``cfg_weight`` and ``exaggeration`` mean something.
        listens_s: how much of a clip T3 listens to.
        min_clip_s: the shortest clip.
        clip_lufs: loudness that a clip is set to, in LUFS; None leaves it.
        flow_steps: of S3Gen.
        tail: speech tokens of silence after a piece.
        judged: whether a judge follows the speech along the text, see :mod:`.alignment`.
    """

    name: VariantName
    family: Family
    t3_file: str
    s3gen_files: tuple[str, ...]
    tokenizer_file: str
    backbone: str = "Llama_520M"
    repetition_penalty: float = 1.2
    min_p: float = 0.05
    top_p: float = 1.0
    top_k: int = 0
    guided: bool = True
    listens_s: int = 6
    min_clip_s: float = 3.0
    clip_lufs: float | None = None
    flow_steps: int = 10
    tail: tuple[int, ...] = ()
    judged: bool = False

    def newest_t3(self, model_dir: Path) -> Path:
        """Return the file with T3's weights: of ``t3_mtl23ls_v2`` and ``t3_mtl23ls_v3`` the latter."""
        return max(model_dir.glob(self.t3_file), key=lambda file: (_version(file.stem), file.name))


_TURBO = Variant(
    "turbo",
    "turbo",
    "t3_turbo_v1.safetensors",
    ("s3gen_meanflow.safetensors",),
    "tokenizer_config.json",
    backbone="GPT2_medium",
    min_p=0.0,
    top_p=0.95,
    top_k=1000,
    guided=False,
    listens_s=15,
    min_clip_s=5.0,
    clip_lufs=-27.0,
    flow_steps=2,
    tail=(4299,) * 3,
)

VARIANTS = (
    Variant("english", "english", "t3_cfg.safetensors", ("s3gen.safetensors",), "tokenizer.json"),
    Variant(
        "multilingual",
        "multilingual",
        "t3_mtl*.safetensors",
        ("s3gen.pt", "s3gen.safetensors"),
        "grapheme_mtl_merged_expanded_v1.json",
        repetition_penalty=2.0,
        judged=True,
    ),
    _TURBO,
    attrs.evolve(_TURBO, name="nano", t3_file="t3_nano_v1.safetensors", backbone="GPT2_small"),
)
"""Source: ``from_local`` and ``generate`` of the three classes of chatterbox-tts 0.1.7. Nano, which is newer, is Turbo
with a smaller T3. The third multilingual T3 has the same form; it is spoken without a judge and with a smaller penalty
(https://github.com/resemble-ai/chatterbox/pull/516).
"""

_UNJUDGED_VERSION = 3

VOICE_ENCODER_FILES = ("ve.safetensors", "ve.pt")
"""Names that the voice encoder's file may have, in every variant."""


def find_variant(model_dir: Path, wanted: str) -> Variant:
    """Tell by its files what a folder holds.

    Raises:
        ServiceError: it holds no whole checkpoint; the text names what is missing.
    """
    for variant in VARIANTS:
        if wanted in ("auto", variant.name) and not _missing_files(model_dir, variant):
            third = variant.judged and _version(variant.newest_t3(model_dir).stem) >= _UNJUDGED_VERSION
            return attrs.evolve(variant, judged=False, repetition_penalty=1.2) if third else variant
    # What is nearest to be whole is what is meant.
    nearest = min(
        (variant for variant in VARIANTS if wanted in ("auto", variant.name)),
        key=lambda variant: len(_missing_files(model_dir, variant)),
    )
    missing = ", ".join(_missing_files(model_dir, nearest))
    raise ServiceError(f"the model folder is no Chatterbox checkpoint ({nearest.name}): it lacks {missing}")


def _version(name: str) -> int:
    """Return the number behind the last ``v`` of a file's name; 0 without one."""
    found = re.findall(r"v(\d+)", name)
    return int(found[-1]) if found else 0


def _missing_files(model_dir: Path, variant: Variant) -> list[str]:
    """List what a folder lacks of a variant."""
    missing = []
    if not any((model_dir / name).is_file() for name in VOICE_ENCODER_FILES):
        missing.append(VOICE_ENCODER_FILES[0])
    if not any(model_dir.glob(variant.t3_file)):
        missing.append(variant.t3_file)
    if not any((model_dir / name).is_file() for name in variant.s3gen_files):
        missing.append(variant.s3gen_files[0])
    if not (model_dir / variant.tokenizer_file).is_file():
        missing.append(variant.tokenizer_file)
    return missing


class TextReader:
    """Turns a piece of text into T3's tokens. Usable from several threads at once.

    Args:
        library: of the checkpoint's classes.
        variant: of the checkpoint.
        model_dir: its folder.
    """

    def __init__(self, library: Library, variant: Variant, model_dir: Path) -> None:
        self._variant = variant
        self._normalise = getattr(library, variant.family).punc_norm
        self._tokenizer = _tokenizer(library, variant, model_dir)
        names: dict[str, str] = library.multilingual.SUPPORTED_LANGUAGES
        vocabulary = {} if variant.family != "multilingual" else self._tokenizer.tokenizer.get_vocab()
        self.languages: Sequence[str] = [name for name in names if f"[{name}]" in vocabulary] or ["en"]
        """Languages that it speaks."""

    def check_language(self, language: str) -> None:
        """Refuse a language that the checkpoint does not speak.

        Raises:
            InvalidInput: naming those that it does.
        """
        if language not in self.languages:
            raise InvalidInput("$.language", f"this model speaks {', '.join(self.languages)}, not {language!r}")

    def without_marks(self, text: str) -> str:
        """Take out what the tokenizer would take for its own marks; Turbo's are sounds to be made, as ``[laugh]``."""
        return text if self._variant.family == "turbo" else _MARKS.sub(" ", text)

    def read(self, piece: str, language: str) -> list[int]:
        """Return the tokens of a piece, without start and end marks."""
        text = self._normalise(piece)
        if self._variant.family == "turbo":
            ids: list[int] = self._tokenizer(text).input_ids
        elif self._variant.family == "multilingual":
            ids = self._tokenizer.encode(text, language_id=language)
        else:
            ids = self._tokenizer.encode(text)
        return ids

    def unknown_share(self, ids: Sequence[int]) -> float:
        """Tell which part of the tokens stands for letters that the model does not know."""
        if self._variant.family == "turbo":
            return 0.0
        unknown = self._tokenizer.tokenizer.token_to_id("[UNK]")
        return list(ids).count(unknown) / max(1, len(ids))

    def warning_about(self, language: str) -> str | None:
        """Say what is missing for good speech of a language."""
        package = _HELPERS.get(language)
        if self._variant.family != "multilingual" or package is None or find_spec(package) is not None:
            return None
        return f"{package} is not installed, without which {language} is read less well"


def _tokenizer(library: Library, variant: Variant, model_dir: Path) -> Any:
    file = model_dir / variant.tokenizer_file
    try:
        if variant.family == "english":
            return library.english.EnTokenizer(str(file))
        if variant.family == "multilingual":
            return _multilingual_tokenizer(library, file)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(model_dir, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the tokenizers package raises plain Exceptions
        raise ServiceError(f"the checkpoint's {variant.tokenizer_file} cannot be read: {error}") from None


def _multilingual_tokenizer(library: Library, file: Path) -> Any:
    """Make the library's tokenizer without what it would fetch from a hub."""
    module = library.tokenizers
    tokenizer = object.__new__(module.MTLTokenizer)
    tokenizer.tokenizer = module.Tokenizer.from_file(str(file))
    converter = object.__new__(module.ChineseCangjieConverter)
    converter.word2cj, converter.cj2word, converter.segmenter = {}, {}, None
    if find_spec(_HELPERS["zh"]) is not None:  # whoever speaks Chinese without it is told so in the answer
        converter._init_segmenter()
    table = file.parent / "Cangjie5_TC.json"
    for entry in json.loads(table.read_text(encoding="utf-8")) if table.is_file() else []:
        word, code = entry.split("\t")[:2]
        converter.word2cj[word] = code
        converter.cj2word.setdefault(code, []).append(word)
    tokenizer.cangjie_converter = converter
    tokenizer.check_vocabset_sot_eot()
    return tokenizer
