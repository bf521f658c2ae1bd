"""Load a checkpoint of transformers from a folder. torch and transformers are imported when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from aiservices.errors import ServiceError
from aiservices.handlers.text.chat import Chat
from aiservices.handlers.text.generation import GenerationOptions
from aiservices.handlers.torch_runtime import import_lock, prepare_torch, resolve_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@attrs.frozen(eq=False)
class Checkpoint:
    """A loaded model with what belongs to it.

    Attributes:
        model: in evaluation mode, on its device.
        chat: its tokenizer and chat template.
    """

    model: PreTrainedModel
    chat: Chat
    stop_ids: frozenset[int]
    """Tokens that end an answer."""
    repetition_penalty: float
    """What its own generation_config asks for; 1 is none."""


def load_checkpoint(
    model_dir: Path | None, device: str, options: GenerationOptions, auto_classes: Mapping[str, str]
) -> Checkpoint:
    """Load model and tokenizer. Runs on the model's thread.

    Args:
        model_dir: folder with ``config.json``, safetensors weights and ``tokenizer.json``.
        device: where the model goes.
        options: type of the weights, threads and attention.
        auto_classes: transformers' Auto class for each ``model_type`` that the service takes.

    Raises:
        ServiceError: the folder does not hold such a model, or weights are missing in it.
    """
    if model_dir is None:
        raise ServiceError("this service needs a model: set `model` to a folder or a hub id")
    prepare_torch(options.cpu_threads)
    with import_lock:
        import transformers
        from transformers import AutoConfig, AutoTokenizer
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        config = AutoConfig.from_pretrained(model_dir, trust_remote_code=False, local_files_only=True)
        auto_class: Any = getattr(transformers, _auto_class(config.model_type, auto_classes))
        model, report = auto_class.from_pretrained(
            model_dir,
            dtype=resolve_dtype(options.dtype, device),
            attn_implementation=options.attn_implementation,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).replace(str(model_dir), "the folder").partition("\n")[0]
        raise ServiceError(f"the model cannot be loaded: {reason}") from error
    _check_weights(report)
    model.to(device).eval().requires_grad_(False)
    return Checkpoint(
        model=model,
        chat=Chat(tokenizer),
        stop_ids=_stop_ids(model.generation_config.eos_token_id, tokenizer.eos_token_id),
        repetition_penalty=model.generation_config.repetition_penalty or 1.0,
    )


def _auto_class(model_type: str, auto_classes: Mapping[str, str]) -> str:
    if model_type not in auto_classes:
        raise ServiceError(f"this service takes {', '.join(auto_classes)} models, the folder holds a {model_type} one")
    return auto_classes[model_type]


def _check_weights(report: Mapping[str, Any]) -> None:
    """Refuse what transformers fills with random numbers and only logs."""
    missing = sorted({*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])})
    if missing:
        raise ServiceError(f"the checkpoint lacks {len(missing)} weights that fit, {missing[0]} among them")


def _stop_ids(*eos: int | list[int] | None) -> frozenset[int]:
    ids: set[int] = set()
    for entry in eos:
        if entry is not None:
            ids.update([entry] if isinstance(entry, int) else entry)
    return frozenset(ids)
