"""What the text-generating services share as handlers."""

from __future__ import annotations

import subprocess
import sys


def test_reading_inputs_and_outputs_needs_neither_torch_nor_pillow() -> None:
    code = (
        "import sys, aiservices.handlers.qwen, aiservices.handlers.mistral\n"
        "heavy = {'torch', 'transformers', 'PIL', 'numpy', 'tokenizers', 'llguidance'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)
