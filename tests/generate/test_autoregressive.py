"""The autoregressive generator against a computation place by place, and against itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.generate import by_the_book, small
from wetok.config import WetokError
from wetok.generate.autoregressive import AutoregressiveGenerator

SHAPES: list[dict[str, Any]] = [
    {},
    {"silent_class": True},
    {"groups": 1, "group_depth": 0},
    {"groups": 5, "group_bits": 2, "grid": (1, 2), "group_depth": 1},
    {"grid": (4, 1), "rope_base": 100.0, "heads": 2, "classes": 0},
]


@pytest.mark.parametrize("changes", SHAPES)
def test_logits_by_the_book(changes: dict[str, Any]) -> None:
    generator = small.autoregressive(**changes).double()
    shape = generator.config
    ids = small.some_ids(shape, 2)
    labels = torch.tensor([shape.classes, 0])
    logits = generator(ids, labels)
    for image in range(2):
        wanted = by_the_book.autoregressive(
            shape, small.weights(generator), ids[image].numpy(), int(labels[image])
        )
        # Rotations are stored in float32.
        np.testing.assert_allclose(logits[image].detach().numpy(), wanted, rtol=0, atol=1e-5)


def test_gradients_by_finite_differences() -> None:
    generator = small.autoregressive(grid=(2, 2), depth=1, group_depth=1, group_bits=2).double()
    ids, labels = small.some_ids(generator.config, 2), torch.tensor([1, 5])
    generator.loss(ids, labels).sum().backward()
    for name, parameter in generator.named_parameters():
        index = tuple(
            int(i) for i in np.unravel_index(int(parameter.grad.abs().argmax()), parameter.shape)
        )
        with torch.no_grad():
            values = []
            for change in (1e-4, -2e-4):
                parameter[index] += change
                values.append(generator.loss(ids, labels).sum().item())
            parameter[index] += 1e-4
        slope = (values[0] - values[1]) / 2e-4
        assert abs(slope - parameter.grad[index].item()) < 1e-5 * (1 + abs(slope)), name


def test_an_id_changes_only_what_comes_after() -> None:
    generator = small.autoregressive()
    shape = generator.config
    ids = small.some_ids(shape, 1)
    before = generator(ids)
    changed = ids.clone()
    changed[0, 1, 1, 2] ^= 1  # position 6, group 1
    after = generator(changed)
    differs = (before != after).any(-1)[0].flatten()
    place = 6 * shape.groups + 1
    assert not differs[: place + 1].any() and differs[place + 1 :].all()


def test_decoding_gives_the_logits_of_the_whole() -> None:
    generator = small.autoregressive()
    shape = generator.config
    ids, labels = small.some_ids(shape, 3), torch.tensor([0, 4, 5])
    with torch.inference_mode():
        wanted = generator(ids, labels)
        decoding = generator.decoding(labels)
        flat = ids.flatten(2)
        for position in range(shape.positions):
            for group in range(shape.groups):
                torch.testing.assert_close(
                    decoding.logits(), wanted[:, position, group], rtol=0, atol=1e-4
                )
                decoding.take(flat[:, group, position])


def test_loss_is_the_cross_entropy_of_each_group() -> None:
    generator = small.autoregressive()
    ids, labels = small.some_ids(generator.config, 2), torch.tensor([3, 1])
    logits = generator(ids, labels).detach()
    loss = generator.loss(ids, labels)
    for group in range(3):
        total = sum(
            F.cross_entropy(logits[image, position, group], ids[image, group].flatten()[position])
            for image in range(2)
            for position in range(12)
        )
        assert loss[group].item() == pytest.approx(float(total) / 24, rel=1e-5)


def test_at_first_every_code_is_as_likely() -> None:
    generator = AutoregressiveGenerator(small.config())
    loss = generator.loss(small.some_ids(generator.config, 2))
    np.testing.assert_allclose(loss.detach().numpy(), np.log(16), rtol=1e-6)


def test_classes_are_dropped_in_training_only() -> None:
    generator = small.autoregressive(class_dropout=0.5, dropout=0.0)
    labels, ids = torch.full((64,), 2), small.some_ids(generator.config, 1).expand(64, -1, -1, -1)
    assert (generator(ids, labels) == generator(ids, labels)[0]).all(-1).all()
    none = generator(ids[:1], torch.tensor([5]))[0]
    generator.train()
    torch.manual_seed(0)
    dropped = [torch.allclose(one, none, atol=1e-4) for one in generator(ids, labels)]
    assert 16 < sum(dropped) < 48


def test_what_does_not_fit_is_told() -> None:
    generator = small.autoregressive()
    ids = small.some_ids(generator.config, 2)
    with pytest.raises(WetokError, match=r"ids has shape .* takes \[B,3,3,4\]"):
        generator(ids[:, :2])
    with pytest.raises(WetokError, match=r"label 6 must lie in \[0, 5\); 5 means no class"):
        generator(ids, torch.tensor([0, 6]))
    with pytest.raises(WetokError, match="give 2, one an image"):
        generator(ids, torch.tensor([0]))
    with pytest.raises(WetokError, match="unconditional; leave labels out"):
        small.autoregressive(classes=0)(ids, torch.tensor([0, 1]))
    with pytest.raises(WetokError, match="this generator is autoregressive"):
        AutoregressiveGenerator(small.config(kind="masked"))
