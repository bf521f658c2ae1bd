"""The benchmark of decoding measures every kind of weights it names."""

from __future__ import annotations

import argparse

import pytest

pytest.importorskip("torch", reason="needs torch and transformers: pip install 'aiservices[qwen]'")
from aiservices.handlers.torch_runtime import prepare_torch
from tools.benchmarks.decoding import KINDS, compare


def test_every_kind_of_weights_gets_a_rate_at_each_number_of_rows() -> None:
    prepare_torch()
    arguments = argparse.Namespace(hidden=64, layers=1, steps=1, rounds=1, threads=1)
    rates = compare(KINDS, [1, 2], arguments)
    assert [(rate.kind, rate.rows) for rate in rates] == [(kind, rows) for kind in KINDS for rows in (1, 2)]
    assert all(rate.decoded > 0 and rate.read > 0 for rate in rates)
