"""A program of its own that speaks one text: ``espeak_process.py LIBRARY DATA < request.json > speech.pcm``.

It is kept apart from the server because espeak-ng cannot be trusted with a caller's text in the server's process: it
copies the names of characters into buffers of fixed size and dies of some (1.52: U+28DF in a long text read by the
Arabic voice), the same text sounds a little different after another one, and all its state is global. A new process a
text takes 20 ms. It needs nothing but Python and the library.

The request: ``text``, ``voice`` (espeak's own name, as ``gmw/en-US+f3``), ``rate`` (words a minute), ``pitch`` and
``pitch_range`` (0 to 99, 50 is the voice's own), ``seed``, ``max_frames``. The answer: 16-bit samples, mono, at
:data:`SAMPLE_RATE`. Exit status: 0, or one of the names below.
"""

from __future__ import annotations

import ctypes
import json
import resource
import sys
from collections.abc import Callable
from typing import Any

SAMPLE_RATE = 22050
"""Samples a second of what comes out."""

UNUSABLE_LIBRARY = 10
"""Exit status: the library does not start with this data."""

UNKNOWN_VOICE = 11
"""Exit status: the data lacks the voice."""

TOO_LONG = 12
"""Exit status: the speech takes more than ``max_frames``."""

# Of speak_lib.h: https://github.com/espeak-ng/espeak-ng/blob/1.52.0/src/include/espeak-ng/speak_lib.h
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 1 << 15
_BUFFER_MS = 500
_PARAMETERS = {"rate": 1, "volume": 2, "pitch": 3, "pitch_range": 4}
_CHARS_UTF8 = 1  # and neither SSML (0x10) nor PHONEMES (0x100): the text is read as it stands
_VOLUME = 70  # of 100, where loud voices run into the library's limiter
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


def speak(library: ctypes.CDLL, request: dict[str, Any], write: Callable[[bytes], object]) -> int:
    """Speak into ``write``, half a second at a time; return the exit status."""
    if library.espeak_SetVoiceByName(request["voice"].encode()) != 0:
        return UNKNOWN_VOICE
    library.espeak_ng_SetRandSeed(ctypes.c_long(request["seed"]))
    for name, number in _PARAMETERS.items():
        library.espeak_SetParameter(number, request.get(name, _VOLUME), 0)
    left = request["max_frames"]

    def take(samples: int | None, count: int, _events: int | None) -> int:
        nonlocal left
        left -= count
        if samples and count and left >= 0:
            write(ctypes.string_at(samples, 2 * count))
        return int(left < 0)  # 1 ends the synthesis

    callback = _CALLBACK(take)  # held here: the library does not keep it alive
    library.espeak_SetSynthCallback(callback)
    text = request["text"].encode() + b"\0"
    library.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 1, 0, _CHARS_UTF8, None, None)
    return TOO_LONG if left < 0 else 0


def main(library_path: str, data_path: str) -> int:
    """Read the request, answer it, return the exit status."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a text that breaks the library leaves no core file
    library = ctypes.CDLL(library_path)
    rate = library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, _BUFFER_MS, data_path.encode(), _INITIALIZE_DONT_EXIT)
    if rate != SAMPLE_RATE:
        return UNUSABLE_LIBRARY
    return speak(library, json.load(sys.stdin.buffer), sys.stdout.buffer.write)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
