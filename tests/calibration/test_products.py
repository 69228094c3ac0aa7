"""Short products of calibration: where they are used, and that statistics are nearly those of float32."""

import pytest
import torch

from fewbits.calibration import linear_maps, products
from fewbits.calibration.gather import gather
from fewbits.calibration.store import StatisticsStore
from fewbits.calibration.text import CalibrationTokens
from fewbits.checkpoint.source import open_checkpoint
from fewbits.progress import Silent


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def everywhere(monkeypatch):
    """Short products for matrices of any size, whatever the processor."""
    monkeypatch.setattr(products, "WIDE", 1)
    monkeypatch.setattr(products, "has_short_products", lambda: True)


def test_small_matrices_and_other_processors_multiply_float32(monkeypatch):
    narrow, left, wide = normal(256, 64), normal(8, 256), normal(256, 256)
    assert torch.equal(products.product(left, narrow), left @ narrow)
    monkeypatch.setattr(products, "has_short_products", lambda: False)
    assert torch.equal(products.product(left, wide), left @ wide)


@pytest.mark.usefixtures("everywhere")
def test_a_short_product_is_float32_and_near():
    left, right = normal(2, 40, 256), normal(256, 300, seed=1)
    exact = left @ right

    found = products.product(left, right)

    assert found.dtype == torch.float32
    assert 0 < (found - exact).norm() < 2**-7 * exact.norm()


@pytest.mark.usefixtures("everywhere")
def test_second_moments_are_near():
    x, total = normal(1000, 300), torch.zeros(300, 300)
    exact = x.double().T @ x.double()

    linear_maps.add_product(total, x)

    upper = torch.triu(torch.ones(300, 300, dtype=torch.bool))
    assert (total - exact)[upper].norm() < 2**-7 * exact[upper].norm()


def test_statistics_are_nearly_those_of_float32(make_model, tokens, tmp_path, request):
    few = CalibrationTokens(tokens.blocks[:16], "few", "1" * 64, 0)
    stores = []
    for name in ("float32", "short"):
        if name == "short":
            request.getfixturevalue("everywhere")
        stores.append(StatisticsStore(tmp_path / name))
        gather(open_checkpoint(make_model("llama")), few, stores[-1], memory=None, progress=Silent())
    exact, found = stores

    for name in exact.names():
        ours, theirs = (torch.from_numpy(store.load(name).second_moment) for store in (found, exact))
        assert 0 < (ours - theirs).norm() < 0.03 * theirs.norm()
