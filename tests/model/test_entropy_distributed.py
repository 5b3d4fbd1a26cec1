"""Two processes with different numbers of positions against one process with all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.two_processes import run_rank
from wetok import distributed
from wetok.config import WetokError
from wetok.model.entropy import _make_plan, entropies
from wetok.model.quantizer import GroupedQuantizer

BITS, GROUPS = 12, 2
FEW_BYTES = 6_000  # the joint in blocks of rows, one reduction each
SHARES = {"uneven": (1, 4), "even": (2, 2), "one rank empty": (0, 3)}


def batch(images: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(images, 5, 3, 3, generator=generator, dtype=torch.float64).to(dtype)


class Model(nn.Module):
    """One layer before the quantizer, so that there are parameters to reduce."""

    def __init__(self, dtype: torch.dtype, convention: str | None, max_bytes: int = 2**28) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Conv2d(5, BITS, 1, dtype=dtype)
        with torch.no_grad():
            self.layer.weight *= 0.02
        self.options = dict(convention=convention, eps=1e-5, max_bytes=max_bytes)

    def forward(self, image: Tensor) -> Tensor:
        token, codebook = entropies(self.layer(image), GROUPS, **self.options)
        return torch.stack([token, codebook])


WEIGHTS = (0.7, -0.4)  # of the two entropies in the loss


def single(images: int, dtype: torch.dtype, convention: str) -> tuple[Tensor, Tensor]:
    """The two entropies and the layer's gradient in one process."""
    model = Model(dtype, convention)
    values = model(batch(images, dtype))
    (values * values.new_tensor(WEIGHTS)).sum().backward()
    return values.detach(), model.layer.weight.grad


def entropy_job(rank, shares, dtype, convention, max_bytes) -> tuple[Tensor, Tensor]:
    start = sum(shares[:rank])
    images = batch(sum(shares), dtype)[start : start + shares[rank]]
    model = DistributedDataParallel(Model(dtype, convention, max_bytes))
    values = model(images)
    (values * values.new_tensor(WEIGHTS)).sum().backward()
    return values.detach(), model.module.layer.weight.grad


def mean_job(rank) -> tuple[Tensor, Tensor, Tensor]:
    local = torch.tensor([1.0, 2.0], dtype=torch.float64) * (rank + 1)
    local.requires_grad_()
    mean = distributed.all_reduce_mean(local, count=(3, 1)[rank])
    (mean * torch.tensor([1.0, 10.0])).sum().backward()
    return mean.detach(), local.grad, distributed.all_reduce_mean(torch.ones(1) * rank)


def state_job(rank) -> tuple[int, int, bool]:
    return distributed.rank(), distributed.world_size(), distributed.is_distributed()


def quantizer_job(rank) -> tuple[float, float]:
    latent = 0.02 * batch(4, torch.float64)[rank * 2 : rank * 2 + 2]
    out = GroupedQuantizer(5, 1)(latent)
    return out.token_entropy.item(), out.codebook_entropy.item()


CASES = [
    (name, dtype, convention, max_bytes)
    for name in SHARES
    for dtype in (torch.float64, torch.float32)
    for convention in ("grouped", "pooled")
    for max_bytes in (2**28, FEW_BYTES)
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[list]:
    """What each rank got, job by job."""
    folder = tmp_path_factory.mktemp("gloo")
    jobs = [(entropy_job, SHARES[name], *rest) for name, *rest in CASES]
    jobs += [(mean_job,), (state_job,), (quantizer_job,)]
    mp.spawn(run_rank, args=(str(folder), jobs), nprocs=2)
    results = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]
    assert all(isinstance(result, list) for result in results), "\n".join(map(str, results))
    return results


@pytest.mark.parametrize("index", range(len(CASES)), ids=["-".join(map(str, c)) for c in CASES])
def test_equals_one_process(ranks, index) -> None:
    name, dtype, convention, _ = CASES[index]
    limit = 1e-10 if dtype == torch.float64 else 1e-5
    values, grad = single(sum(SHARES[name]), dtype, convention)
    for rank in range(2):
        ranks_values, ranks_grad = ranks[rank][index]
        torch.testing.assert_close(ranks_values, values, rtol=limit, atol=0)
        error = (ranks_grad - grad).abs().max()
        assert error <= limit * grad.abs().max()


def test_few_bytes_mean_several_reductions() -> None:
    latent = torch.empty(1, GROUPS, BITS // GROUPS, 9, device="meta")
    assert _make_plan(latent, FEW_BYTES).rows < _make_plan(latent, 2**28).rows == 8


def test_ranks_alone_would_differ() -> None:
    """The codebook entropy is not the mean of the ranks' own: the test above tests something."""
    images = batch(5, torch.float64)
    model = Model(torch.float64, "grouped")
    parts = [model(images[:1])[1], model(images[1:])[1]]
    assert abs(0.2 * parts[0] + 0.8 * parts[1] - model(images)[1]) > 0.01


def test_weighted_mean(ranks) -> None:
    for rank, share in enumerate((0.75, 0.25)):
        mean, grad, plain = ranks[rank][len(CASES)]
        assert mean.tolist() == [1.25, 2.5]  # (3 * (1, 2) + 1 * (2, 4)) / 4
        assert grad.tolist() == [2 * share, 20 * share]  # twice, for the averaging over ranks
        assert plain.tolist() == [0.5]


def test_state(ranks) -> None:
    assert [r[len(CASES) + 1] for r in ranks] == [(0, 2, True), (1, 2, True)]
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert not distributed.is_distributed()


def test_quantizer_averages_over_ranks(ranks) -> None:
    out = GroupedQuantizer(5, 1)(0.02 * batch(4, torch.float64))
    expected = pytest.approx((out.token_entropy.item(), out.codebook_entropy.item()), rel=1e-12)
    assert ranks[0][-1] == expected and ranks[1][-1] == expected


def test_one_process_needs_no_reduction() -> None:
    local = torch.ones(3, requires_grad=True)
    assert distributed.all_reduce_mean(local, 5) is local
    with pytest.raises(WetokError, match="count=-1"):
        distributed.all_reduce_mean(local, -1)
    with pytest.raises(WetokError, match="int64"):
        distributed.all_reduce_mean(torch.ones(3).long())
