"""A step with a discriminator against one written out in plain torch, with Adam on paper."""

from __future__ import annotations

import copy
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.model.dense_entropy import dense_entropies
from tests.train.tiny import Recipe, build
from wetok.config import OptimizerConfig, TrainConfig
from wetok.losses.objective import ReconstructionObjective
from wetok.train import loop
from wetok.train.loop import Run
from wetok.train.state import TrainState
from wetok.train.step import Batch, train_step

SHARP = {"loss.temperature": 1.0}
"""Entropies that have a say: at 0.01 a fresh network's are almost nothing."""


def images(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 3, 16, 16, generator=generator) * 2 - 1).to(dtype)


def gan(**changes: Any) -> dict[str, Any]:
    block = {"width": 8, "depth": 1, "optimizer": {"lr": 3e-3, "betas": [0.6, 0.95]}}
    return {"gan": {**block, **changes}}


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


def assert_close(mine: list[Tensor], theirs: list[Tensor], limit: float = 1e-6) -> None:
    """Each tensor to `limit` of its largest value (and of a thousandth of all tensors' largest)."""
    assert len(mine) == len(theirs) > 0
    largest = max(float(tensor.abs().max()) for tensor in theirs)
    for one, other in zip(mine, theirs, strict=True):
        error = float((one - other).abs().max())
        assert error <= limit * (float(other.abs().max()) + largest / 1000), tuple(one.shape)


def build_double(config: TrainConfig) -> tuple[TrainState, ReconstructionObjective]:
    """In float64, where two ways to the same gradients differ by nothing to speak of."""
    state, objective = build(config)
    state.network.double()
    assert state.adversary is not None
    state.adversary.double()
    return state, objective


class Adam:
    """Kingma and Ba's algorithm 1, on paper in float64."""

    def __init__(self, betas: tuple[float, float]) -> None:
        self.betas, self.steps = betas, 0
        self.moments: list[tuple[Tensor, Tensor]] = []

    def moved(self, before: list[Tensor], gradients: list[Tensor], rate: float) -> list[Tensor]:
        self.steps += 1
        one, two = self.betas
        zeros = [(torch.zeros_like(g.double()), torch.zeros_like(g.double())) for g in gradients]
        self.moments = [
            (one * m + (1 - one) * g.double(), two * v + (1 - two) * g.double() ** 2)
            for (m, v), g in zip(self.moments or zeros, gradients, strict=True)
        ]
        return [
            p.double()
            - rate * (m / (1 - one**self.steps)) / ((v / (1 - two**self.steps)).sqrt() + 1e-8)
            for p, (m, v) in zip(before, self.moments, strict=True)
        ]


class Reference:
    """The step from the papers: encoder, decoder and discriminator are called, all else is here."""

    def __init__(self, state: TrainState, config: TrainConfig) -> None:
        assert config.gan is not None and state.adversary is not None
        self.config, self.gan = config, config.gan
        self.network = copy.deepcopy(state.network)
        self.judge = copy.deepcopy(state.adversary.discriminator)
        self.real = self.fake = 0.0  # LeCam's averages
        self.adams = Adam(config.optimizer.betas), Adam(config.gan.optimizer.betas)

    def gradients(self, step: int, parts: list[Tensor]) -> tuple[list[Tensor], ...]:
        """Of the tokenizer and of the discriminator, clipped; terms are left in `terms`."""
        self.terms: dict[str, list[float]] = {}
        outputs, losses = [], []
        for image in parts:
            again, loss = self._tokenizer(step, image)
            outputs.append(again.detach())
            losses.append(loss)
        tokenizer = torch.autograd.grad(sum(losses) / len(parts), list(self.network.parameters()))
        norm, mine = self._clipped(tokenizer, self.config.optimizer.clip)
        self.terms["gradient_norm"] = [norm]
        if step < self.gan.start - self.gan.warmup:
            return mine, []
        losses = [self._judge(len(parts), *pair) for pair in zip(parts, outputs, strict=True)]
        judge = torch.autograd.grad(sum(losses) / len(parts), list(self.judge.parameters()))
        norm, theirs = self._clipped(judge, self.gan.optimizer.clip)
        self.terms["discriminator_gradient_norm"] = [norm]
        return mine, theirs

    def _tokenizer(self, step: int, image: Tensor) -> tuple[Tensor, Tensor]:
        loss, d = self.config.loss, self.config.model.bits
        latent = self.network.encoder(image)
        hard = torch.where(latent > 0, 1.0, -1.0)
        again = self.network.decoder(latent + (hard - latent).detach())
        difference = (again - image).abs().mean()
        commitment = ((latent - hard) ** 2).sum() / (latent.numel() // d) / d
        total = difference + loss.commitment_weight * commitment
        terms = {"l1": difference, "commitment": commitment}
        if loss.entropy_weight:
            token, codebook = dense_entropies(
                latent.double(), 2, loss.entropy, loss.temperature, loss.epsilon
            )
            boost = 1 + loss.entropy_boost * max(0.0, 1 - step / loss.entropy_boost_steps)
            terms |= {"token_entropy": token.sum(), "codebook_entropy": codebook.sum()}
            total = total + boost * loss.entropy_weight * (token.sum() - codebook.sum())
        if step >= self.gan.start:
            adversarial = F.softplus(-self.judge(again).mean(dim=(1, 2, 3))).mean()
            weight = torch.tensor(self.gan.weight)
            if self.gan.adaptive:
                last = self.network.decoder.conv_out.weight
                near, far = (
                    float(torch.autograd.grad(part, last, retain_graph=True)[0].double().norm())
                    for part in (loss.reconstruction_weight * difference, adversarial)
                )
                weight = weight * min(near / (far + 1e-4), 1e4)
            if self.gan.ramp:
                weight = weight * min(1.0, (step - self.gan.start + 1) / self.gan.ramp)
            terms |= {"generator": adversarial, "gan_weight": weight}
            total = total + weight * adversarial
        self._note(loss=total, **terms)
        return again, total

    def _judge(self, parts: int, image: Tensor, again: Tensor) -> Tensor:
        real, fake = self.judge(image), self.judge(again)
        decay = self.gan.lecam_decay ** (1 / parts)
        self.real = decay * self.real + (1 - decay) * real.detach().mean().item()
        self.fake = decay * self.fake + (1 - decay) * fake.detach().mean().item()
        if self.gan.loss == "hinge":
            told = ((1 - real).clamp_min(0).mean() + (1 + fake).clamp_min(0).mean()) / 2
        elif self.gan.loss == "vanilla":
            told = F.binary_cross_entropy_with_logits(real, torch.ones_like(real)) / 2
            told = told + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake)) / 2
        else:
            told = -real.mean((1, 2, 3)).sigmoid().log().mean()
            told = told - (1 - fake.mean((1, 2, 3)).sigmoid()).log().mean()
        lecam = ((real - self.fake).clamp_min(0) ** 2).mean()
        lecam = lecam + ((self.real - fake).clamp_min(0) ** 2).mean()
        means = {"logits_real": real.mean(), "logits_fake": fake.mean()}
        self._note(discriminator=told, lecam=lecam, **means)
        return told + self.gan.lecam_weight * lecam

    def _note(self, **terms: Tensor) -> None:
        for name, term in terms.items():
            self.terms.setdefault(name, []).append(float(term.detach()))

    @staticmethod
    def _clipped(found: tuple[Tensor, ...], limit: float | None) -> tuple[float, list[Tensor]]:
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in found))
        return norm, [g * min(1.0, (limit or math.inf) / norm) for g in found]


CASES = {
    "hinge, patch": gan(),
    "hinge, patch, adaptive, clipped": {
        **gan(adaptive=True, weight=0.7),
        "gan.optimizer.clip": 0.05,
        "optimizer.clip": 0.2,
    },
    "vanilla, patch, two parts": {**gan(loss="vanilla", lecam_decay=0.8), "run.accumulate": 2},
    "vanilla, blur, adaptive": gan(loss="vanilla", discriminator="blur", adaptive=True, depth=2),
    "non-saturating, blur, late": gan(
        loss="non_saturating", discriminator="blur", start=2, warmup=1, ramp=2, lecam_weight=0.5
    ),
    "non-saturating, patch, late, adaptive, two parts": {
        **gan(loss="non_saturating", start=1, ramp=3, adaptive=True, lecam_decay=0.5),
        "run.accumulate": 2,
    },
    "hinge, blur, boosted entropies, drops": {
        **gan(discriminator="blur", lecam_weight=2.0, lecam_decay=0.3),
        **{"loss.entropy_boost": 3.0, "loss.entropy_boost_steps": 3, "loss.entropy": "grouped"},
        **{"optimizer.drops": [1, 3], "gan.optimizer.drops": [2], "gan.optimizer.drop_factor": 0.2},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_as_the_papers_have_it(recipe: Recipe, case: str) -> None:
    """Gradients, weights, LeCam's averages, batch norm's statistics and the log, for four steps."""
    config = recipe({**SHARP, **CASES[case]})
    state, objective = build_double(config)
    assert config.gan is not None and state.adversary is not None and state.judge is not None
    with torch.no_grad():  # a fresh PatchGAN thinks too little of anything to show a mistake
        for parameter in state.adversary.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    reference = Reference(state, config)
    count = config.run.accumulate
    for step in range(4):
        parts = [images(2, seed=10 * step + part) for part in range(count)]
        before = [
            [p.detach().clone() for p in module.parameters()]
            for module in (state.network, state.judge)
        ]
        expected = reference.gradients(step, parts)
        result = train_step(state, objective, config, [Batch(part) for part in parts])

        judging, counts = step >= config.gan.start - config.gan.warmup, step >= config.gan.start
        told = {name: float(term) for name, term in result.terms.items()}
        means = {name: sum(values) / len(values) for name, values in reference.terms.items()}
        assert told == {name: pytest.approx(means[name], rel=1e-6, abs=1e-7) for name in told}
        assert told.keys() == means.keys()
        assert ("generator" in told) == counts and ("discriminator" in told) == judging

        moved = (state.network, state.judge) if judging else (state.network,)
        for index, (module, settings) in enumerate(
            zip(moved, (config.optimizer, config.gan.optimizer), strict=False)
        ):
            own = gradients(module)
            assert_close(own, expected[index], 3e-6)
            paper = reference.adams[index].moved(before[index], own, rate(settings, step))
            for parameter, wanted in zip(module.parameters(), paper, strict=True):
                error = (parameter.detach().double() - wanted).abs().max()
                assert error < 1e-12, "Adam's step"
        if not judging:
            assert all(map(torch.equal, state.judge.parameters(), before[1])), "not yet trained"
        assert state.adversary.lecam.real.item() == pytest.approx(reference.real, rel=1e-9)
        assert state.adversary.lecam.fake.item() == pytest.approx(reference.fake, rel=1e-9)
        for one, other in zip(state.judge.buffers(), reference.judge.buffers(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        # Both go on from the same weights, for Adam makes much of nothing.
        reference.network.load_state_dict(state.network.state_dict())
        reference.judge.load_state_dict(state.adversary.discriminator.state_dict())
    assert all(reference.real != 0 and adam.steps > 1 for adam in reference.adams)


def rate(settings: OptimizerConfig, step: int) -> float:
    return settings.lr * settings.drop_factor ** len([d for d in settings.drops if step >= d])


# Accumulation.


def after_one_step(
    recipe: Recipe, changes: dict[str, Any], parts: list[Tensor]
) -> tuple[TrainState, dict[str, float]]:
    config = recipe({**changes, "run.accumulate": len(parts)})
    double = parts[0].dtype == torch.float64
    state, objective = build_double(config) if double else build(config)
    lower_scales(state)
    result = train_step(state, objective, config, [Batch(part) for part in parts])
    return state, {name: float(term) for name, term in result.terms.items()}


@pytest.mark.parametrize("count", [2, 4])
def test_parts_add_up_to_the_whole(recipe: Recipe, count: int) -> None:
    """Terms that are means over images: L1, commitment, the adversarial ones of a blur GAN."""
    blur = gan(discriminator="blur", depth=2, lecam_weight=0.0, loss="vanilla")
    changes = {**blur, "loss.entropy_weight": 0, "data.batch": 4}
    whole, told = after_one_step(recipe, changes, [images(4, seed=0)])
    parted, terms = after_one_step(recipe, changes, list(images(4, seed=0).chunk(count)))
    del terms["lecam"], told["lecam"]  # its averages move within a step
    assert terms == {name: pytest.approx(told[name], rel=1e-6, abs=1e-7) for name in told}
    assert_close(gradients(parted.network), gradients(whole.network))
    assert whole.adversary and parted.adversary
    assert_close(gradients(parted.adversary), gradients(whole.adversary))
    single, _ = after_one_step(recipe, changes, [images(1, seed=0)])
    with pytest.raises(AssertionError):
        assert_close(gradients(single.network), gradients(whole.network), 1e-2)


@pytest.mark.parametrize("count", [2, 4])
def test_parts_move_lecam_as_much_as_the_whole(recipe: Recipe, count: int) -> None:
    changes = {**gan(discriminator="blur", lecam_decay=0.6), "data.batch": 4}
    one = images(2, seed=3)
    whole, told = after_one_step(recipe, changes, [one])
    parted, _ = after_one_step(recipe, changes, [one] * count)
    assert whole.adversary and parted.adversary
    for name in ("real", "fake"):
        average = getattr(parted.adversary.lecam, name).item()
        assert average == pytest.approx(0.4 * told[f"logits_{name}"], rel=1e-5) and average != 0
        assert average == pytest.approx(getattr(whole.adversary.lecam, name).item(), rel=1e-5)


# Half precision.


def lower_scales(state: TrainState) -> None:
    """Of fp16, to where nothing overflows: usually found in the first few steps."""
    for scaler in (state.scaler, state.judge_scaler):
        if scaler.is_enabled():
            scaler.load_state_dict({**scaler.state_dict(), "scale": 1024.0})


@pytest.mark.parametrize("adaptive", [False, True])
def test_fp16_gradients_are_near_float32(recipe: Recipe, adaptive: bool) -> None:
    """Unscaled, of both networks, and the adaptive weight with them."""
    states, terms = {}, {}
    for precision in ("fp32", "fp16"):
        changes = {**gan(adaptive=adaptive), "run.precision": precision}
        image = images(2, seed=0, dtype=torch.float32)
        states[precision], terms[precision] = after_one_step(recipe, changes, [image])
    for name in ("l1", "generator", "gan_weight", "discriminator", "lecam"):
        assert terms["fp16"][name] == pytest.approx(terms["fp32"][name], rel=0.02, abs=1e-5), name
    assert terms["fp16"]["l1"] != terms["fp32"]["l1"], "autocast was on"
    for part in ("network", "adversary"):
        half, exact = (
            torch.cat([g.flatten() for g in gradients(getattr(states[precision], part))])
            for precision in ("fp16", "fp32")
        )
        assert (half - exact).norm() < 0.1 * exact.norm(), part


@pytest.mark.parametrize("broken", ["network", "adversary"])
def test_fp16_skips_only_the_network_that_overflows(recipe: Recipe, broken: str) -> None:
    config = recipe({**gan(), "run.precision": "fp16"})
    state, objective = build(config)
    assert state.adversary is not None
    lower_scales(state)
    modules = {"network": state.network, "adversary": state.adversary}
    scalers = {"network": state.scaler, "adversary": state.judge_scaler}
    train_step(state, objective, config, [Batch(images(2, 0, torch.float32))])
    scales = {name: scaler.get_scale() for name, scaler in scalers.items()}
    weight = next(modules[broken].parameters())
    hook = weight.register_hook(lambda gradient: gradient * math.inf)
    before = {name: copy.deepcopy(module.state_dict()) for name, module in modules.items()}
    result = train_step(state, objective, config, [Batch(images(2, 1, torch.float32))])
    assert result.broken is None and state.skipped == 0, "usual with fp16"
    hook.remove()
    for name, module in modules.items():
        still = [torch.equal(p, before[name][key]) for key, p in module.named_parameters()]
        assert all(still) if name == broken else not any(still), name
        factor = 0.5 if name == broken else 1
        assert scalers[name].get_scale() == factor * scales[name]
    train_step(state, objective, config, [Batch(images(2, 2, torch.float32))])
    for name, module in modules.items():
        assert not all(torch.equal(p, before[name][k]) for k, p in module.named_parameters()), name


# Memory.


def saved_bytes(network: nn.Module, image: Tensor) -> int:
    """What a forward pass keeps for backward, weights aside."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        again = network(image)
    assert again.image.requires_grad  # the graph is alive, so no address was used twice
    return sum(kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputed_activations_change_no_bit(recipe: Recipe, precision: str) -> None:
    changes = {**gan(adaptive=True), "run.precision": precision, "model.blocks": 2}
    found: dict[bool, tuple[list[Tensor], list[Tensor], int]] = {}
    for recompute in (False, True):
        config = recipe(changes)
        state, objective = build(config)
        state.network.recompute(recompute)
        train_step(state, objective, config, [Batch(images(2, 0, torch.float32))])
        assert state.adversary is not None
        size = saved_bytes(state.network, images(2, 1, torch.float32))
        found[recompute] = gradients(state.network), gradients(state.adversary), size
    for index in range(2):
        assert all(map(torch.equal, found[True][index], found[False][index]))
    assert found[True][2] < 0.6 * found[False][2]


# Memory format and compilation, which a run sets up.


def first_step(
    recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> tuple[list[Tensor], Run, Batch]:
    """All gradients of a run's first step, the run, and what it learnt from."""
    seen: list[Batch] = []

    def spy(state: Any, objective: Any, config: TrainConfig, parts: list[Batch]) -> Any:
        seen.extend(parts)
        return train_step(state, objective, config, parts)

    monkeypatch.setattr(loop, "train_step", spy)
    run = Run(recipe({**gan(adaptive=True), "run.steps": 1, **changes}), folder, Silent())
    assert run.train() and run.state.adversary is not None
    return gradients(run.state.network) + gradients(run.state.adversary), run, *seen


class Silent:
    def step(self, record: dict[str, Any]) -> None:
        pass

    def event(self, text: str) -> None:
        pass


def test_channels_last_changes_nothing_but_the_order(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _, _ = first_step(recipe, tmp_path / "plain", monkeypatch, {})
    changes = {"run.channels_last": True}
    last, _, batch = first_step(recipe, tmp_path / "last", monkeypatch, changes)
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    assert any(not g.is_contiguous() for g in last), "the weights are, too"
    assert_close(last, plain, 1e-3)


class Compiler:
    """In place of Inductor, which takes a C++ compiler and minutes: runs the graphs as they are."""

    def __init__(self) -> None:
        self.inputs: set[int] = set()
        """Addresses of what the compiled graphs compute with, weights among it."""
        self.inner = torch.compile

    def __call__(self, function: Any, **options: Any) -> Any:
        return self.inner(function, backend=self.backend, **options)

    def backend(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        self.inputs |= {value.data_ptr() for value in inputs if isinstance(value, nn.Parameter)}
        return graph.forward


@pytest.mark.parametrize(
    "changes",
    [{"run.activation_checkpointing": True}, {"gan.discriminator": "blur", "gan.depth": 2}],
    ids=["recomputed", "blur"],
)
def test_compiled_networks_give_the_same_gradients(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    eager, _, _ = first_step(recipe, tmp_path / "eager", monkeypatch, changes)
    monkeypatch.setattr(torch, "compile", compiler := Compiler())
    torch.compiler.reset()
    changes = {**changes, "run.compile": True}
    compiled, run, _ = first_step(recipe, tmp_path / "compiled", monkeypatch, changes)
    torch.compiler.reset()
    assert_close(compiled, eager, 1e-3)
    assert run.state.adversary is not None
    for network in (run.state.network, run.state.adversary):
        for name, parameter in network.named_parameters():
            assert parameter.data_ptr() in compiler.inputs, f"{name}: not compiled"


@pytest.mark.skipif(not os.environ.get("WETOK_INDUCTOR"), reason="slow; set WETOK_INDUCTOR=1")
@pytest.mark.parametrize("adaptive", [False, True])
def test_inductor_gives_the_same_gradients(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adaptive: bool
) -> None:
    changes = {"gan.adaptive": adaptive}
    eager, _, _ = first_step(recipe, tmp_path / "eager", monkeypatch, changes)
    changes["run.compile"] = True
    compiled, _, _ = first_step(recipe, tmp_path / "compiled", monkeypatch, changes)
    assert_close(compiled, eager, 1e-3)
