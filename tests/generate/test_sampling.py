"""Drawing ids: against brute force, against the distribution, and image by image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.generate import small
from wetok.config import WetokError
from wetok.generate.autoregressive import AutoregressiveGenerator
from wetok.generate.masked import MaskedGenerator
from wetok.generate.sampling import Sampling, draw, filtered, mixed, sample

LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12)


def kept_by_hand(logits: list[float], top_k: int, top_p: float) -> set[int]:
    left = list(range(len(logits)))
    if top_k:
        border = sorted(logits, reverse=True)[min(top_k, len(logits)) - 1]
        left = [i for i in left if logits[i] >= border]
    mass = {i: math.exp(logits[i] - max(logits)) for i in left}
    total, kept = sum(mass.values()), set()
    for i in sorted(left, key=lambda i: -logits[i]):
        if sum(mass[j] for j in kept) / total >= top_p - 1e-12 and top_p < 1:
            break
        kept.add(i)
    return kept


@settings(deadline=None)
@given(LOGITS, st.integers(0, 13), st.sampled_from([0.1, 0.5, 0.9, 1.0]))
def test_filters_by_hand(logits: list[float], top_k: int, top_p: float) -> None:
    options = Sampling(top_k=top_k, top_p=top_p)
    result = filtered(torch.tensor(logits, dtype=torch.float64), options)
    kept = {i for i, value in enumerate(result.tolist()) if value > -math.inf}
    assert kept == kept_by_hand(logits, top_k, top_p)
    assert all(result[i].item() == logits[i] for i in kept)


@settings(deadline=None)
@given(LOGITS, st.floats(0, 1, exclude_max=True), st.sampled_from([0.3, 1.0, 2.0]))
def test_a_draw_is_the_inverse_of_the_cdf(
    logits: list[float], uniform: float, temperature: float
) -> None:
    wide = torch.tensor(logits, dtype=torch.float64)
    drawn = int(draw(wide[None], torch.tensor([uniform]), Sampling(temperature=temperature))[0])
    weights = [math.exp((value - max(logits)) / temperature) for value in logits]
    total = math.fsum(weights)
    below, upto = math.fsum(weights[:drawn]) / total, math.fsum(weights[: drawn + 1]) / total
    assert below - 1e-9 <= uniform <= upto + 1e-9


def test_left_out_codes_are_never_drawn() -> None:
    logits = torch.tensor([0.0, 5.0, 1.0, -3.0]).expand(4, -1)
    edge = torch.tensor([0.0, 0.5, 1 - 2**-53, 0.999], dtype=torch.float64)
    assert draw(logits, edge, Sampling(top_k=1)).tolist() == [1, 1, 1, 1]
    assert set(draw(logits, edge, Sampling(top_k=2)).tolist()) <= {1, 2}
    assert draw(logits, edge, Sampling(temperature=0.0)).tolist() == [1, 1, 1, 1]


def test_guidance() -> None:
    logits = torch.tensor([[1.0, 2.0], [0.0, 4.0]])
    assert mixed(logits, 3.0).tolist() == [[3.0, -2.0]]
    assert mixed(logits, 1.0).tolist() == [[1.0, 2.0]]
    linear, cosine = (Sampling(guidance=5.0, schedule=name) for name in ("linear", "cosine"))
    assert [linear.guidance_at(at) for at in (0, 0.5, 1)] == [1, 3, 5]
    assert [round(cosine.guidance_at(at), 9) for at in (0, 0.25, 0.5, 1)] == [1, 1.585786438, 3, 5]
    assert Sampling(guidance=5.0).guidance_at(0.1) == 5


def by_hand(
    generator: AutoregressiveGenerator, label: int, seed: int, options: Sampling
) -> torch.Tensor:
    """One image, the whole of it computed anew for every id."""
    shape = generator.config
    uniform = torch.rand(
        shape.positions,
        shape.groups,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed),
    )
    ids = torch.zeros(1, shape.groups, *shape.grid, dtype=torch.long)
    for position in range(shape.positions):
        progress = position / (shape.positions - 1)
        for group in range(shape.groups):
            own = options.of_group(group, shape.groups)
            known = generator(ids, torch.tensor([label]))[0, position, group].double()
            none = generator(ids, torch.tensor([shape.classes]))[0, position, group].double()
            logits = none + own.guidance_at(progress) * (known - none)
            mass = filtered(logits / own.temperature, own).softmax(-1).numpy()
            drawn = int(
                np.searchsorted(np.cumsum(mass), float(uniform[position, group]), side="right")
            )
            ids[0, group].view(-1)[position] = drawn
    return ids


@pytest.mark.parametrize(
    "options",
    [
        Sampling(),
        Sampling(temperature=0.7, top_k=5, top_p=0.8),
        Sampling(guidance=2.5),
        Sampling(guidance=(2.0, 1.0, 3.0), schedule="linear", temperature=(1.0, 0.5, 2.0)),
    ],
)
def test_autoregressive_samples_by_hand(options: Sampling) -> None:
    generator = small.autoregressive()
    with torch.inference_mode():
        wanted = torch.cat([by_hand(generator, 3, 7, options), by_hand(generator, 0, 8, options)])
    assert torch.equal(sample(generator, [7, 8], [3, 0], options), wanted)


@pytest.mark.parametrize("kind", ["autoregressive", "masked"])
@pytest.mark.parametrize("options", [Sampling(rounds=5), Sampling(guidance=2.0, rounds=5)])
def test_an_image_has_its_own_seed(kind: str, options: Sampling) -> None:
    generator: AutoregressiveGenerator | MaskedGenerator
    generator = small.autoregressive() if kind == "autoregressive" else small.masked()
    seeds, labels = [11, 12, 13, 14, 11], [0, 1, 2, 3, 0]
    together = sample(generator, seeds, labels, options)
    assert together.shape == (5, 3, 3, 4) and together.min() >= 0 and together.max() < 16
    for index in range(5):
        alone = sample(generator, seeds[index : index + 1], labels[index : index + 1], options)
        assert torch.equal(alone[0], together[index])
    assert torch.equal(together[0], together[4])
    assert not torch.equal(together[0], sample(generator, [12], [0], options)[0])


def test_draws_follow_the_logits() -> None:
    """One position, one group: the frequencies are the softmax."""
    generator = small.autoregressive(groups=1, group_depth=0, grid=(1, 1), group_bits=3)
    drawn = sample(generator, list(range(4000)), [2] * 4000).flatten()
    with torch.inference_mode():
        ids = torch.zeros(1, 1, 1, 1, dtype=torch.long)
        expected = generator(ids, torch.tensor([2])).softmax(-1).flatten() * 4000
    counts = torch.bincount(drawn, minlength=8)
    likely = expected > 5
    chi = ((counts - expected).square() / expected)[likely].sum().item()
    assert chi < 27.9, "beyond the 0.9998 quantile of 7 degrees of freedom"


def test_masked_rounds_follow_the_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = small.masked()
    hidden_counts: list[int] = []
    seen: list[torch.Tensor] = []
    forward = generator.forward

    def watched(ids: torch.Tensor, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        hidden_counts.append(int(hidden.sum()))
        if seen:  # what was settled stays
            settled = ~last[0]
            assert torch.equal(ids[settled & ~hidden], seen[-1][settled & ~hidden])
            assert not (settled & hidden).any()
        seen.append(ids.clone())
        last[:] = [hidden.clone()]
        return forward(ids, hidden, labels)

    last: list[torch.Tensor] = []
    monkeypatch.setattr(generator, "forward", watched)
    sample(generator, [1], sampling=Sampling(rounds=6))
    count = 36
    wanted = [math.floor(count * math.cos(math.pi / 2 * number / 6)) for number in range(6)]
    assert hidden_counts == wanted


def test_many_rounds_settle_one_id_at_least() -> None:
    generator = small.masked()
    steps: list[int] = []
    sample(generator, [1], sampling=Sampling(rounds=500), step=lambda: steps.append(1))
    assert len(steps) == 36


def test_what_can_not_be_drawn() -> None:
    generator = small.autoregressive()
    for options, message in (
        ({"temperature": -1.0}, "temperature=-1.0 must be finite, 0.0 or more"),
        ({"top_p": 1.5}, r"top_p=1.5 must be in \[0.0, 1.0\]"),
        ({"top_p": 0.0}, "top_p=0 keeps no code"),
        ({"guidance": math.nan}, "guidance=nan must be"),
        ({"schedule": "steps"}, "must be constant, linear or cosine"),
        ({"rounds": 0}, "rounds=0 must be at least 1"),
    ):
        with pytest.raises(WetokError, match=message):
            Sampling(**options)  # type: ignore[arg-type]
    with pytest.raises(WetokError, match="2 values for 3 groups"):
        sample(generator, [1], [0], Sampling(guidance=(1.0, 2.0)))
    with pytest.raises(WetokError, match="1 labels for 2 seeds"):
        sample(generator, [1, 2], [0])
    with pytest.raises(WetokError, match="give one an image"):
        sample(generator, [])
    with pytest.raises(WetokError, match=r"must lie in \[0, 2\^63\)"):
        sample(generator, [-1])
    with pytest.raises(WetokError, match="knows no classes"):
        sample(small.autoregressive(classes=0), [1], sampling=Sampling(guidance=2.0))


def test_sampling_leaves_the_mode_as_it_was() -> None:
    generator = small.autoregressive().train()
    sample(generator, [1])
    assert generator.training
