"""Text to speech with Chatterbox: natural speech, cloning a voice from a few seconds of it, many callers at once.

Any checkpoint folder in the library's own layout, told by its files (:mod:`.variants`). What is done here by ourselves
and why: the library's ``generate`` keeps voice and random numbers in shared state, speaks one text at a time, stops at
40 seconds and takes no ``cfg_weight`` of 0. Its modules are used as they are. Source:
https://github.com/resemble-ai/chatterbox, chatterbox-tts 0.1.7.

| module | what |
|---|---|
| ``handler`` | the service: options, what is asked, what is answered |
| ``reading``, ``request`` | what a job asks of the model |
| ``engine``, ``job`` | all jobs on their way: pieces, redraws, sound; where each job's pieces are, its stream |
| ``t3``, ``t3_rows`` | text to speech tokens, a token a step for all rows |
| ``t3_embedding``, ``stacks``, ``slots``, ``decoding``, ``sampling``, ``alignment`` | the parts of that step |
| ``s3gen``, ``flow``, ``vocoder`` | speech tokens to sound, several rows at once |
| ``rendering`` | the thread on which that is done, beside T3 |
| ``faults`` | whether an error concerns one row or the device |
| ``gpu`` | what torch is told before it computes on one |
| ``pieces`` | the text's parts |
| ``finishing``, ``sound`` | the threads that finish a piece; its edges, loudness, tempo, watermark |
| ``clips``, ``voices``, ``turns`` | what the model makes of a clip, on disk and in memory, once for all who want it |
| ``checkpoint``, ``variants``, ``library`` | files, weights, tokenizers, imports |
"""

from aiservices.handlers.chatterbox.handler import ChatterboxTextToSpeech
from aiservices.handlers.chatterbox.options import ChatterboxOptions

__all__ = ["ChatterboxOptions", "ChatterboxTextToSpeech"]
