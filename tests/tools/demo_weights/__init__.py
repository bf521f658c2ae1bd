import pytest

pytest.importorskip("transformers", reason="needs the demo extra: scripts/install demo")
