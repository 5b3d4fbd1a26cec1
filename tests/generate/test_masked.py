"""The masked generator against a computation place by place."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.generate import by_the_book, small
from wetok.config import WetokError, validate
from wetok.generate.config import GeneratorConfig


@pytest.mark.parametrize("source", ["bits", "ids"])
def test_logits_by_the_book(source: str) -> None:
    generator = small.masked(source=source).double()
    shape = generator.config
    ids, labels = small.some_ids(shape, 2), torch.tensor([2, 5])
    hidden = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    logits = generator(ids, hidden, labels)
    for image in range(2):
        wanted = by_the_book.masked(
            shape,
            small.weights(generator),
            ids[image].numpy(),
            hidden[image].numpy(),
            int(labels[image]),
        )
        np.testing.assert_allclose(logits[image].detach().numpy(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("source", ["bits", "ids"])
def test_what_is_hidden_is_not_seen(source: str) -> None:
    generator = small.masked(source=source)
    ids = small.some_ids(generator.config, 1)
    hidden = torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    other = torch.where(hidden, ids ^ 5, ids)
    assert torch.equal(generator(ids, hidden), generator(other, hidden))
    assert not torch.equal(generator(ids, hidden), generator(ids ^ 1, hidden))


def test_loss_is_of_hidden_ids_only(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = small.masked()
    ids, labels = small.some_ids(generator.config, 8), torch.arange(8) % 6
    seen: list[torch.Tensor] = []
    forward = generator.forward

    def watched(ids: torch.Tensor, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(hidden)
        return forward(ids, hidden, labels)

    monkeypatch.setattr(generator, "forward", watched)
    torch.manual_seed(3)
    loss = generator.loss(ids, labels)
    (hidden,) = seen
    logits = forward(ids, hidden, labels)
    for group in range(3):
        total, count = 0.0, 0
        for image in range(8):
            for position in range(12):
                if hidden[image, group].flatten()[position]:
                    target = ids[image, group].flatten()[position]
                    total += F.cross_entropy(logits[image, position, group], target).item()
                    count += 1
        assert loss[group].item() == pytest.approx(total / count, rel=1e-5)
    assert (hidden.flatten(1).sum(1) >= 1).all()


def test_the_share_hidden_follows_the_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = small.masked(grid=(4, 4))
    shares: list[torch.Tensor] = []

    def watched(ids: torch.Tensor, hidden: torch.Tensor, labels: None) -> torch.Tensor:
        shares.append(hidden.flatten(1).double().mean(1))
        return torch.zeros(len(ids), 16, 3, 16)

    monkeypatch.setattr(generator, "forward", watched)
    torch.manual_seed(4)
    generator.loss(small.some_ids(generator.config, 4000))
    # Of cos(pi u / 2) the mean is 2 / pi, and the median cos(pi / 4); rounding up adds 1/96.
    assert shares[0].mean().item() == pytest.approx(2 / math.pi + 1 / 96, abs=0.015)
    assert shares[0].median().item() == pytest.approx(math.cos(math.pi / 4), abs=0.03)


def test_targets_are_smoothed_in_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = small.masked(smoothing=0.25, dropout=0, class_dropout=0)
    ids, seen = small.some_ids(generator.config, 4), []
    forward = generator.forward

    def watched(ids: torch.Tensor, hidden: torch.Tensor, labels: None) -> torch.Tensor:
        seen.append(hidden)
        return forward(ids, hidden, labels)

    monkeypatch.setattr(generator, "forward", watched)
    for training in (True, False):
        torch.manual_seed(5)
        loss = generator.train(training).loss(ids)
        hidden = seen.pop()
        logs = forward(ids, hidden).double().log_softmax(-1)
        for group in range(3):
            own, chosen = logs[:, :, group], hidden[:, group].flatten(1)
            right = own.gather(-1, ids[:, group].flatten(1)[..., None])[..., 0]
            share = 0.25 if training else 0.0
            nats = -((1 - share) * right + share * own.mean(-1))[chosen].mean()
            assert loss[group].item() == pytest.approx(nats.item(), rel=1e-5)


def test_where_all_is_hidden_positions_differ_without_attention() -> None:
    """Turns alone, which only attention sees, would leave all of them the same here."""
    generator = small.masked()
    for block in generator.blocks:
        torch.nn.init.zeros_(block.attention.out.weight)
    ids = small.some_ids(generator.config, 1)
    logits = generator(ids, torch.ones_like(ids, dtype=torch.bool))[0]
    for position in range(1, 12):
        assert (logits[position] - logits[0]).abs().max() > 0.1


def test_what_does_not_fit_is_told() -> None:
    generator = small.masked()
    ids = small.some_ids(generator.config, 2)
    with pytest.raises(WetokError, match=r"hidden has shape"):
        generator(ids, ids[:1, :1] > 0)
    with pytest.raises(WetokError, match="group_depth=1 is for autoregressive"):
        validate(GeneratorConfig, {**generator.config.model_dump(), "group_depth": 1})
