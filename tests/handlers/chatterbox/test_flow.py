"""Our loop over the flow's network: the library's numbers to the last bit, without a look at the device in between."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from tests.handlers import tiny_chatterbox

if find_spec("chatterbox") is None:
    pytest.skip("the chatterbox extra is not installed: scripts/install chatterbox", allow_module_level=True)

tiny_chatterbox.import_library()

import torch  # noqa: E402 - behind the guard of the import above

from aiservices.handlers.chatterbox.flow import Estimator, Flow  # noqa: E402

pytestmark = [
    pytest.mark.chatterbox,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]

WIDTH, LENGTHS = 90, (90, 44, 2)


@pytest.fixture(scope="module", autouse=True)
def patch() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        tiny_chatterbox.small_modules(patch)
        yield


@pytest.fixture(scope="module", params=[False, True], ids=["ten steps", "meanflow"])
def s3gen(request: pytest.FixtureRequest, patch: None) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tiny_chatterbox.import_library().S3Gen(meanflow=request.param).eval()


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mask() -> torch.Tensor:
    return (torch.arange(WIDTH) < torch.tensor(LENGTHS)[:, None])[:, None]


@torch.inference_mode()
def test_a_slope_is_the_librarys(s3gen: Any) -> None:
    rows = len(LENGTHS)
    noise, mu, cond = (drawn(rows, 80, WIDTH, seed=seed) for seed in range(3))
    spks, network = drawn(rows, 80, seed=3), s3gen.flow.decoder.estimator
    now, then = torch.full((rows,), 0.3), torch.full((rows,), 0.7) if s3gen.meanflow else None
    theirs = network.forward(noise, mask=mask().float(), mu=mu, t=now, spks=spks, cond=cond, r=then)
    given = torch.cat([mu, spks[:, :, None].expand(-1, -1, WIDTH), cond], dim=1)
    assert torch.equal(Estimator(network, mask()).slope(noise, given, now, then), theirs)


@torch.inference_mode()
def test_the_flow_never_waits_for_the_device(s3gen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy"):
        usual = getattr(torch.Tensor, name)

        def noted(tensor: torch.Tensor, *given: Any, name: str = name, usual: Any = usual) -> Any:
            looked.append(name)
            return usual(tensor, *given)

        monkeypatch.setattr(torch.Tensor, name, noted)
    rows = len(LENGTHS)
    given, flow = drawn(rows, 240, WIDTH, seed=1), Flow(s3gen, "cpu", 2)
    solved = flow._solved(drawn(rows, 80, WIDTH, seed=0), given, mask())
    assert looked == []
    assert solved.shape == (rows, 80, WIDTH)
    named = {"mu": given[:, :80], "spks": given[:, 80:160, 0], "cond": given[:, 160:]}
    s3gen.flow.decoder.estimator.forward(solved, mask=mask().float(), t=torch.zeros(1), r=torch.ones(1), **named)
    assert looked, "the library does, so that it would be noticed"
