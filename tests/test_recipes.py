"""Every recipe in `recipes/` loads, tells what it takes, is what it says it is, and runs."""

from __future__ import annotations

import functools
import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import wetok
from tests.command_lines import check
from tests.train.tiny import write_pictures
from wetok.cli import main
from wetok.config import ModelConfig, TrainConfig, WetokError, load_train_config
from wetok.data.transforms import RandomCrop
from wetok.losses.perceptual import LPIPS
from wetok.model.decoder import Decoder
from wetok.model.encoder import Encoder
from wetok.model.network import parameter_count
from wetok.presets import PRESETS, preset
from wetok.train.loop import Run
from wetok.train.state import checkpoints

ROOT = Path(__file__).resolve().parent.parent
RECIPES = [  # generators have tests/test_generation_doc.py
    path for path in sorted((ROOT / "recipes").rglob("*.yaml")) if path.parent.name != "generate"
]
LARGE = [path for path in RECIPES if path.parent.name in ("imagenet", "general")]
ABLATION = {path.stem: path for path in RECIPES if path.parent.name == "ablation"}
FINETUNE = ROOT / "recipes" / "finetune.yaml"
DOCUMENT = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")

# DESIGN's table: parameters of encoder and decoder, exact; general-768x's decoder is generative.
PUBLISHED = {
    "general-24x": (193_655_360, 254_750_467),
    "general-48x": (193_622_560, 254_258_947),
    "general-192x": (198_935_328, 261_358_851),
    "general-768x": (720_160_544, 953_518_339),
    "imagenet-f8": (193_622_560, 254_258_947),
    "imagenet-f16": (198_935_328, 261_358_851),
    "open-magvit2-f16": (49_751_442, 65_376_387),
}

# The published settings of WeTok and Open-MAGVIT2: 16-mixed there is bf16 here.
ADAM = {"lr": 1e-4, "betas": (0.5, 0.9), "weight_decay": 0, "schedule": "constant", "warmup": 0}
RELEASED: dict[str, dict[str, Any]] = {
    "loss": {
        "reconstruction": "l1",
        "reconstruction_weight": 1,
        "perceptual": "vgg",
        "perceptual_weight": 1,
        "perceptual_every": 1,
        "commitment_weight": 0.25,
        "entropy": "pooled",
        "entropy_weight": 0.1,
        "codebook_weight": 1,
        "entropy_boost": 0,
        "temperature": 0.01,
        "epsilon": 1e-5,
    },
    "gan": {
        "discriminator": "patch",
        "width": None,  # 64
        "depth": None,  # 3
        "loss": "hinge",
        "weight": 0.1,
        "adaptive": False,
        "lecam_weight": 0.05,
        "lecam_decay": 0.999,
        "start": 0,
        "warmup": 0,
    },
    "optimizer": ADAM,
    "data": {"crop": 256, "scale": (1, 1), "ratio": (1, 1), "flip": False, "color": 0},
    "run": {"ema": 0.999, "precision": "bf16"},
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def load(path: Path, *overrides: str) -> TrainConfig:
    return load_train_config(path, list(overrides))


def header(path: Path) -> str:
    """The comment that a recipe begins with, without its signs."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:end])


def commands(text: str) -> list[list[str]]:
    """The words of every line of `text` that starts a program of ours, alone or by a launcher."""
    lines = text.replace("\\\n", " ").splitlines()
    found = re.compile(r"\s*((wetok|torchrun|accelerate launch) .*)").match
    return [shlex.split(match[1], comments=True) for line in lines if (match := found(line))]


def trainings(text: str) -> Iterator[list[str]]:
    """The words after `wetok train` of each command, launchers' own options checked and cut off."""
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    for words in commands(text):
        if words[0] == "torchrun":
            given = get_args_parser().parse_args(words[1:])
            assert given.module and given.training_script == "wetok"
            words = ["wetok", *given.training_script_args]
        elif words[0] == "accelerate":
            given = launch_command_parser().parse_args(words[2:])
            assert given.module and given.training_script == "wetok"
            words = ["wetok", *given.training_script_args]
        check(words[1:])
        if words[1] == "train":
            yield words[2:]


def load_all(words: list[str]) -> None:
    """Loads the recipes of a training with the settings that it is shown with."""
    given = [word for word in words if "=" in word]
    for word in words:
        if word.endswith(".yaml"):
            load(ROOT / word, *given)


def differences(one: TrainConfig, other: TrainConfig) -> set[str]:
    """Names of the settings that differ, dotted."""
    mine, theirs = flat(one.model_dump()), flat(other.model_dump())
    names = mine.keys() | theirs.keys()  # a block that one of them lacks has no inner names
    return {name for name in names if mine.get(name, mine) != theirs.get(name, theirs)}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        inner = value if isinstance(value, dict) else None
        leaves |= flat(inner, f"{prefix}{key}.") if inner else {prefix + key: value}
    return leaves


def first_stage(path: Path) -> Path | None:
    """The recipe of the model that this one starts from."""
    init = load(path).run.init
    if init is None or path == FINETUNE:
        return None
    name = Path(init).parent.name if init.startswith("runs/") else init
    (found,) = [other for other in RECIPES if other.stem == name]
    return found


@functools.cache
def counts(model: ModelConfig) -> tuple[int, int]:
    """Parameters of encoder and decoder."""
    with torch.device("meta"):
        return parameter_count(Encoder(model)), parameter_count(Decoder(model))


# What is written in them


def test_there_are_recipes() -> None:
    assert len(LARGE) == 14 and len(ABLATION) == 11 and FINETUNE in RECIPES
    tiny = {path.stem for path in RECIPES if path.parent.name == "tiny"}
    assert tiny == {name for name in PRESETS if name.startswith("tiny-")} | {"tiny-48x-first"}
    assert not list((ROOT / "recipes").rglob("*.yml")), "one suffix for all: .yaml"
    assert len({path.stem for path in RECIPES}) == len(RECIPES), "each has a run folder of its own"


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_loads(path: Path) -> None:
    config = load(path)
    ends = [end for end, _ in config.stretches()]
    assert ends[-1] == config.run.steps
    for end, stretch in config.stretches():
        assert stretch == config.at(end - 1)
    with pytest.raises(WetokError, match="did you mean 'train'"):
        load(path, "data.trian=photos")


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipes_header_tells_what_it_takes(path: Path) -> None:
    text = header(path)
    for part in ("Hardware:", "Duration:", "Score:"):
        assert re.search(rf"{part} *\S", text), f"{part} is missing"
    shown = list(trainings(text))
    assert any(name_of(path) in words for words in shown), "its own command"
    for words in shown:
        load_all(words)


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_without_its_images_a_recipe_ends_in_one_line(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["train", str(path)])
    out, error = capsys.readouterr()
    assert (ended.value.code, out, error.count("\n")) == (2, "", 1)
    assert error.startswith(f"wetok: data.train: path '{load(path).data.train}'")
    assert os.listdir(tmp_path) == [], "nothing is begun"


@pytest.mark.parametrize("path", LARGE, ids=name_of)
def test_a_large_recipe_has_the_released_settings(path: Path) -> None:
    config = load(path).model_dump()
    for block, settings in RELEASED.items():
        assert {name: config[block][name] for name in settings} == settings, block
    assert {name: config["gan"]["optimizer"][name] for name in ADAM} == ADAM
    assert config["gan"]["optimizer"]["drops"] == config["optimizer"]["drops"]
    assert config["phases"] == ()


@pytest.mark.parametrize("path", LARGE, ids=name_of)
def test_a_large_recipes_parts_fit_both_clusters_of_its_header(path: Path) -> None:
    """4 crops a part (8 in Open-MAGVIT2's) as released, on 32 GPUs as on 8."""
    config = load(path)
    crops = 8 if path.stem.startswith("open-magvit2") else 4
    (on_eight,) = [
        load(path, *(word for word in words if "=" in word))
        for words in trainings(header(path))
        if any(word.startswith("run.accumulate=") for word in words)
    ]
    assert config.data.batch == 32 * config.run.accumulate * crops
    assert on_eight.data.batch == 8 * on_eight.run.accumulate * crops


def test_the_released_crops_are_the_largest_square() -> None:
    """Shorter side to 256, then a random 256-crop of that, in one step."""
    data = load(LARGE[0]).data
    crop = RandomCrop(data.crop, data.scale, data.ratio, flip=0.5 if data.flip else 0)
    rng = np.random.default_rng(0)
    lefts = set()
    for width, height in [(500, 375), (375, 500), (300, 300)] * 20:
        left, top, right, bottom = crop.sample((width, height), rng).box
        assert right - left == pytest.approx(min(width, height)) == bottom - top
        lefts.add(left)
    assert len(lefts) > 20 and max(lefts) > 100


@pytest.mark.parametrize("path", LARGE, ids=name_of)
def test_a_large_recipes_network_is_the_published_one(path: Path) -> None:
    name = path.stem.removesuffix("-gd")
    model, published = load(path).model, preset(name)
    assert model.generative == path.stem.endswith("-gd")
    noise = 9 * model.bits * model.channels * model.mults[-1]  # 3 x 3 weights of conv_in
    encoder, decoder = PUBLISHED[name]
    decoder += noise * (model.generative - published.generative)
    assert counts(model) == (encoder, decoder)
    # The header's, in millions.
    trained = decoder if model.generative else (encoder, decoder)
    told = re.search(r"([\d.]+) M (?:\+ ([\d.]+) M|trained) parameters", header(path))
    assert told is not None
    if isinstance(trained, int):
        assert (told[1], told[2]) == (f"{trained / 1e6:.1f}", None)
    else:
        assert told.groups() == tuple(f"{count / 1e6:.1f}" for count in trained)


@pytest.mark.parametrize("path", [p for p in RECIPES if p.stem.endswith("-gd")], ids=name_of)
def test_a_second_stage_goes_on_from_its_first(path: Path) -> None:
    stage = first_stage(path)
    assert stage is not None and stage.stem == path.stem.removesuffix("-gd")
    first, second = load(stage), load(path)
    assert differences(first, second) & {f"model.{name}" for name in ModelConfig.model_fields} == {
        "model.generative"
    }
    run = second.run
    assert second.model.generative and run.freeze == "encoder" and run.export == "newest"
    assert second.gan is not None and second.loss.perceptual_weight
    if path in LARGE:
        own = {"model.generative", "run.init", "run.freeze", "run.export", "run.steps"}
        assert differences(first, second) - own <= {"optimizer.drops", "gan.optimizer.drops"}
        assert run.init == f"runs/{stage.stem}/model" and run.steps == first.run.steps // 2


def test_ablations_differ_in_what_they_are_about() -> None:
    baseline = load(ABLATION["groups-2"])
    assert (baseline.model.bits, baseline.optimizer.schedule) == (16, "constant")

    groups, sizes = {}, {}
    for stem, path in ABLATION.items():
        config = load(path)
        if stem.startswith("groups-"):
            assert differences(baseline, config) <= {"model.groups"}
            groups[stem] = config.model.groups
        if stem.startswith("size-") or stem == "groups-2":
            assert differences(baseline, config) <= {"model.channels", "model.blocks"}
            sizes[config.model.channels, config.model.blocks] = sum(counts(config.model))
    assert groups == {f"groups-{g}": g for g in (1, 2, 4, 8, 16)}
    assert sizes.keys() == {(16, 1), (16, 2), (32, 1), (32, 2)}
    assert all(0.1e6 < count < 1e6 for count in sizes.values())

    cosine = load(ABLATION["rate-cosine"])
    assert differences(baseline, cosine) == {"optimizer.schedule", "optimizer.warmup"}
    with_noise, without = (
        load(ABLATION[f"decoder-{kind}"]) for kind in ("generative", "deterministic")
    )
    assert differences(with_noise, without) == {"model.generative"}
    assert with_noise.model.generative and with_noise.gan and with_noise.run.freeze == "encoder"
    assert with_noise.run.init == "runs/groups-2/model"


# Running them


class Watcher:
    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def step(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def event(self, text: str) -> None:
        pass


class Done(NamedTuple):
    """A run of two steps a phase."""

    config: TrainConfig
    folder: Path
    records: list[dict[str, Any]]
    still: set[str]
    """Parameters that did not change."""


Train = Callable[..., Done]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two made-up ones, 32 x 32, which is as much as is validated on here."""
    folder = write_pictures(tmp_path_factory.mktemp("pictures"), 2)
    for path in folder.glob("*.png"):
        Image.open(path).resize((32, 32)).save(path)
    return folder


@pytest.fixture(scope="module")
def train(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Train]:
    """Runs a recipe for two steps of every phase, once a session, after its first stage.

    On small crops, with an LPIPS-vgg of random weights (LPIPS-alex is in the package). Networks of
    the large recipes have 8 channels and one block; everything else is the recipe's.
    """
    root = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    save_file(LPIPS("vgg").state_dict(), root / "lpips.safetensors")

    @functools.cache
    def run(path: Path, *more: str) -> Done:
        overrides = [
            f"data.train={pictures}",
            f"data.val={pictures}",
            "data.batch=2",
            "run.device=cpu",
            "run.log_every=1",
            "run.trackers=[]",
            *more,
        ]
        recipe = load(path)
        if recipe.loss.perceptual == "vgg":
            overrides.append(f"loss.perceptual_weights={root / 'lpips.safetensors'}")
        if path in LARGE:
            overrides += ["model.channels=8", "model.blocks=1"]
        if recipe.gan and recipe.gan.start:
            overrides += ["gan.start=1", "gan.warmup=1", "gan.ramp=0"]
        stage = first_stage(path)
        if stage is not None and not any(word.startswith("run.init=") for word in more):
            overrides.append(f"run.init={run(stage).folder / 'model'}")
        side = max(32, 2 * recipe.model.factor)  # which PatchGAN and LPIPS can take
        small = {"data.crop": side, "data.batch": 2}
        phases = [
            {"until": 2 * index, "set": {**phase.set, **small}}
            for index, phase in enumerate(recipe.phases, 1)
        ]
        steps = 2 * max(1, len(phases))
        overrides += [f"data.crop={side}", f"run.steps={steps}", f"phases={phases}"]
        config = load(path, *overrides)
        folder = root / str(len(list(root.iterdir()))) / path.stem
        watcher = Watcher()
        training = Run(config, folder, watcher)
        parameters = dict(training.state.network.named_parameters())
        before = {name: value.detach().clone() for name, value in parameters.items()}
        assert training.train()
        still = {name for name, value in parameters.items() if value.equal(before[name])}
        return Done(config, folder, watcher.records, still)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WETOK_CACHE", str(root / "cache"))
        patch.setattr("wetok.train.validate.SIDE", 32)
        yield run


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_two_steps(path: Path, train: Train) -> None:
    config, folder, records, still = train(path)
    steps = config.run.steps
    assert [record["step"] for record in records] == list(range(1, steps + 1))
    assert len(checkpoints(folder / "checkpoints")) == 1

    frozen = config.run.freeze is not None
    weights = {*wetok.load(folder / "model").model.state_dict()}
    encoder = {name for name in weights if name.startswith("encoder.")}
    assert encoder and still == (encoder if frozen else set()), "what learns, and nothing else"

    terms = set.union(*(set(record) for record in records))
    latent = {"commitment", "token_entropy", "codebook_entropy"}
    assert terms & latent == (set() if frozen else latent)
    judged = {"generator", "discriminator", "lecam"}
    assert terms & judged == (judged if config.gan else set())
    every = config.loss.perceptual_every
    if config.loss.perceptual_weight:
        assert [("lpips" in record) for record in records] == [
            (record["step"] - 1) % every == 0 for record in records
        ]
    lowest = [] if config.gan is None else [record["discriminator"] for record in records]
    assert np.isfinite([*lowest, *(record["loss"] for record in records)]).all()

    assert wetok.load(folder / "model").config == config.model
    stage = first_stage(path)
    if stage is not None and frozen:
        first, second = tensors(train(stage).folder / "model"), tensors(folder / "model")
        assert all(second[name].equal(first[name]) for name in encoder)


def tensors(folder: Path | str) -> dict[str, Tensor]:
    return wetok.load(folder).model.state_dict()


def scores(folder: Path) -> list[dict[str, Any]]:
    """The validations in a run's log."""
    from wetok.train.curves import read_log

    return read_log(folder / "log.jsonl")[1]


def psnr(model: str | Path, pictures: Path) -> float:
    """Mean PSNR of 8-bit values, through a model's public methods."""
    tokenizer, values = wetok.load(model), []
    for path in sorted(pictures.glob("*.png")):
        image = Image.open(path).convert("RGB")
        again = tokenizer.decode(tokenizer.encode(image), seed=0, precision="float32")[0]
        error = np.asarray(again, float) - np.asarray(image, float)
        values.append(10 * np.log10(255**2 / np.mean(error**2)))
    return float(np.mean(values))


def test_finetune_starts_from_the_shipped_model(train: Train, pictures: Path) -> None:
    done = train(FINETUNE)
    assert done.config.run.init == "tiny-48x"
    start, *_, end = scores(done.folder)
    assert start["step"] == 0
    assert start["psnr"] == pytest.approx(psnr("tiny-48x", pictures), abs=1e-3)
    assert end["psnr"] != start["psnr"]


def test_finetuning_the_decoder_only_keeps_the_tokens(train: Train, pictures: Path) -> None:
    shipped = wetok.load("tiny-48x")
    done = train(FINETUNE, "run.freeze=encoder")
    tuned = wetok.load(done.folder / "model")
    assert done.still == {name for name in tensors("tiny-48x") if name.startswith("encoder.")}
    for path in pictures.glob("*.png"):
        assert tuned.encode(path).ids.equal(shipped.encode(path).ids)


@pytest.mark.parametrize("name", ["tiny-48x", "tiny-48x-gd", "tiny-24x"])
def test_the_family_starts_from_what_its_first_model_gives(
    name: str, train: Train, pictures: Path
) -> None:
    """With more channels of noise, or more bits, that its decoder ignores at first."""
    path = ROOT / f"recipes/tiny/{name}.yaml"
    done = train(path, "run.init=tiny-48x")
    assert scores(done.folder)[0]["psnr"] == pytest.approx(psnr("tiny-48x", pictures), abs=1e-3)


# docs/recipes.md


def test_the_document_lists_every_recipe() -> None:
    rows = re.findall(r"^\| \[([^\]]+)\]\(([^)]+)\) \|(.*)\|$", DOCUMENT, re.MULTILINE)
    listed = {}
    for name, target, rest in rows:
        path = (ROOT / "docs" / target).resolve()
        assert path.stem == name and path not in listed
        listed[path] = [cell.strip() for cell in rest.split("|")]
    assert listed.keys() == set(RECIPES)
    for path, (what, parameters, scale, command) in listed.items():
        config = load(path)
        millions = " + ".join(f"{count / 1e6:.1f}" for count in counts(config.model))
        assert what and parameters == f"{millions} M", path
        crops = [f"{c.data.batch} x {c.data.crop}" for _, c in config.stretches()]
        told = ", then ".join(dict.fromkeys(crops))
        assert scale == f"{told}; {config.run.steps:,}", path
        assert command == f"`wetok train {name_of(path)}`"


def test_the_commands_of_the_document_load() -> None:
    shown = list(trainings(DOCUMENT))
    assert len(shown) > 4
    for words in shown:
        load_all(words)
    launchers = {words[0] for words in commands(DOCUMENT)}
    assert launchers >= {"wetok", "torchrun", "accelerate"}
