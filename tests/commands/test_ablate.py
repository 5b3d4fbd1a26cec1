"""`wetok ablate`: what it trains is what `wetok train` trains, and its tables say what came out."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.command_lines import check
from tests.train.tiny import write_pictures
from wetok import checkpoint
from wetok.cli import main
from wetok.commands.ablation import entropies, plots, report, runs
from wetok.commands.ablation.grouping import KINDS, correlated, model_latents, shuffled
from wetok.commands.ablation.matrix import run_matrix
from wetok.commands.ablation.results import read_results, write_result
from wetok.commands.ablation.runs import Job
from wetok.commands.ablation.scoring import StandInSystem, as_bytes
from wetok.commands.ablation.variants import (
    QUESTIONS,
    STAND_INS,
    VARIANTS,
    Claim,
    chosen,
    stand_in,
)
from wetok.config import WetokError
from wetok.data.images import load_image
from wetok.evaluate.pixels import psnr
from wetok.evaluate.protocols import protocol
from wetok.model.quantizer import GroupedQuantizer

ROOT = Path(__file__).resolve().parent.parent.parent
RECIPES = ROOT / "recipes" / "ablation"
SHORT = ("run.steps=2", "data.batch=2", "data.crop=32", "run.log_every=1", "run.device=cpu")

Command = Callable[..., SimpleNamespace]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Calls the command line in this process."""

    def call(*words: object) -> SimpleNamespace:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=ended.value.code, out=out, err=err)

    return call


# What is compared


def test_every_recipe_is_a_variant_and_every_variant_is_asked_about() -> None:
    own = {name for name in VARIANTS if name not in STAND_INS}
    assert own == {path.stem for path in RECIPES.glob("*.yaml")}
    assert {name for question in QUESTIONS for name in question.variants} == set(VARIANTS)
    for name, variant in VARIANTS.items():
        assert variant.name == name and variant.path(RECIPES).is_file()


def test_stand_ins_take_as_many_bits_as_ours() -> None:
    for name in STAND_INS:
        config = VARIANTS[name].config(RECIPES, [])
        quantizer: Any = stand_in(name, config)
        model = config.model
        assert quantizer.groups == model.groups
        assert quantizer.group_bits == model.group_bits and model.bits == 16
    assert stand_in("groups-2", VARIANTS["groups-2"].config(RECIPES, [])) is None


def test_a_second_stage_brings_its_first_along_and_comes_after_it() -> None:
    assert [one.name for one in chosen(["decoder-generative"])] == [
        "groups-2",
        "decoder-generative",
    ]
    assert [one.name for one in chosen([])] == list(VARIANTS)
    with pytest.raises(WetokError, match="only='group-2' is no variant; did you mean 'groups-2'"):
        chosen(["group-2"])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_job_is_a_command_that_a_user_could_give(name: str, tmp_path: Path) -> None:
    job = Job(VARIANTS[name], 3, RECIPES, tmp_path / "photos", tmp_path, ("run.steps=7",))
    words = job.command()
    check(words)
    assert words[0] == ("ablate" if name in STAND_INS else "train")
    assert "--resume" not in words and f"-o {job.folder}" in " ".join(words)
    config = job.config
    assert (config.run.seed, config.run.steps, config.data.val) == (3, 7, None)
    (job.folder / "checkpoints" / "step-00000005").mkdir(parents=True)
    (job.folder / "checkpoints" / "step-00000005" / "state.pt").touch()
    assert job.command() == [*words, "--resume"]


# Training and scoring


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 3)


class Matrix:
    """Trains in this process what the command trains in others, and counts."""

    def __init__(self, out: Path, pictures: Path) -> None:
        self.out, self.pictures = out, pictures
        self.trained: list[list[str]] = []

    def run(self, names: list[str], *overrides: str, seeds: int = 1) -> dict[str, Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runs.subprocess, "run", self._train)
            return run_matrix(
                chosen(names),
                range(seeds),
                recipes=RECIPES,
                train=self.pictures,
                val=self.pictures,
                out=self.out,
                overrides=(*SHORT, *overrides),
                at_once=1,
                threads=1,
                tell=lambda text: None,
            )

    def _train(self, words: list[str], env: dict[str, str], **options: Any) -> SimpleNamespace:
        assert words[1:3] == ["-m", "wetok"] and env["OMP_NUM_THREADS"] == "1"
        self.trained.append(words[3:])
        try:
            main(words[3:])
        except SystemExit as ended:
            return SimpleNamespace(returncode=ended.code)


@pytest.fixture(scope="module")
def matrix(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    """Three variants of one seed, two steps each."""
    made = Matrix(tmp_path_factory.mktemp("out"), pictures)
    threads = torch.get_num_threads()
    made.run(["decoder-generative", "vq"], "gan.start=1", "gan.warmup=1")
    torch.set_num_threads(threads)
    return made


def records(matrix: Matrix) -> dict[str, dict[str, Any]]:
    return {run["variant"]: run for run in read_results(matrix.out)["training"]["runs"]}


def test_a_stage_starts_from_the_same_seeds_first(matrix: Matrix) -> None:
    first, second = (
        checkpoint.load(matrix.out / f"{name}-seed0" / "model").model.state_dict()
        for name in ("groups-2", "decoder-generative")
    )
    encoder = [name for name in first if name.startswith("encoder.")]
    assert encoder and all(first[name].equal(second[name]) for name in encoder)
    assert not first["decoder.conv_out.weight"].equal(second["decoder.conv_out.weight"])


def test_scores_are_those_of_wetok_eval(matrix: Matrix, command: Command) -> None:
    for name in ("groups-2", "decoder-generative"):
        model = matrix.out / f"{name}-seed0" / "model"
        given = ["--lpips", "alex", "--frechet", "none", "--json"]
        scored = json.loads(command("eval", "-m", model, "-d", matrix.pictures, *given).out)
        record = records(matrix)[name]
        for score in ("psnr", "ssim", "lpips-alex"):
            assert record[score] == pytest.approx(scored[score], rel=1e-6)
        assert record["byte_usage"] == scored["usage"], "its groups are bytes already"
        assert record["fingerprint"] == scored["fingerprint"]
        assert record["steps"] == 2


def test_a_stand_ins_scores_are_its_networks(matrix: Matrix) -> None:
    job = Job(VARIANTS["vq"], 0, RECIPES, matrix.pictures, matrix.out, SHORT)
    assert not (job.folder / "model").exists(), "no folder that would claim to be one of ours"
    system, chosen_protocol, values = StandInSystem(job), protocol("modern-256"), []
    for path in sorted(matrix.pictures.glob("*.png")):
        image = chosen_protocol.to_float(chosen_protocol.prepare(load_image(path)))[None]
        with torch.no_grad():
            again = system.network(image).image.clamp(-1, 1)
        pixels = [chosen_protocol.to_8bit(one) for one in (again, image)]
        values.append(psnr(*pixels).item())
    assert records(matrix)["vq"]["psnr"] == pytest.approx(sum(values) / len(values), abs=1e-6)


def test_what_is_done_is_not_done_again(matrix: Matrix) -> None:
    before, count = (matrix.out / "training.json").read_bytes(), len(matrix.trained)
    matrix.run(["decoder-generative", "vq"], "gan.start=1", "gan.warmup=1")
    assert len(matrix.trained) == count == 3
    assert (matrix.out / "training.json").read_bytes() == before


def test_other_settings_are_not_mixed_in(matrix: Matrix) -> None:
    with pytest.raises(WetokError, match="groups-2-seed0 was trained with other settings; name an"):
        matrix.run(["groups-2"], "optimizer.lr=0.1", "gan.start=1", "gan.warmup=1")


def test_a_training_that_fails_tells_its_last_line(tmp_path: Path, pictures: Path) -> None:
    matrix = Matrix(tmp_path, tmp_path / "no photos")
    with pytest.raises(WetokError, match="groups-2-seed0: the training ended early"):
        matrix.run(["groups-2"])


def test_a_broken_off_training_goes_on(pictures: Path, tmp_path: Path) -> None:
    """As if it had not stopped: with the stand-in's own state, its vectors, in the checkpoint."""
    whole, broken = Matrix(tmp_path / "whole", pictures), Matrix(tmp_path / "broken", pictures)
    only = ["run.steps=4", "run.checkpoint_every=2", "run.keep=9"]
    whole.run(["vq"], *only)
    broken.run(["vq"], *only)
    folder = broken.out / "vq-seed0"
    (folder / "checkpoints" / "step-00000004" / "state.pt").unlink()
    (folder / "network.safetensors").unlink()
    broken.run(["vq"], *only)
    assert "--resume" in broken.trained[-1]
    weights = folder / "network.safetensors"
    assert weights.read_bytes() == (whole.out / "vq-seed0" / weights.name).read_bytes()


def test_outside_refuses_what_it_does_not_know(command: Command, tmp_path: Path) -> None:
    ended = command("ablate", "outside", "lfq", RECIPES / "groups-2.yaml", "-o", tmp_path / "x")
    assert ended.code == 2 and "quantizer='lfq' is unknown: use one of vq, fsq" in ended.err


@settings(max_examples=25, deadline=None)
@given(groups=st.sampled_from([1, 2, 4, 8, 16]), seed=st.integers(0, 2**32 - 1))
def test_bytes_are_the_same_bits_however_they_are_grouped(groups: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    code = torch.randint(0, 2, (2, 16, 3, 4), generator=generator).float() * 2 - 1
    ids = GroupedQuantizer(16, groups).code_to_ids(code)
    assert as_bytes(ids, 16 // groups).equal(GroupedQuantizer(16, 2).code_to_ids(code).long())


# The entropies and their approximation


def test_what_does_not_fit_is_computed_and_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measured(form: entropies.Form, bits: int, groups: int, threads: int) -> dict[str, Any]:
        asked.append((form.name, bits, groups))
        return {"seconds": 1.0, "wall_seconds": 1.0, "bytes": 1000}

    monkeypatch.setattr(entropies, "_measured", measured)
    bits = (8, 12, 16, 20, 28, 32, 40)
    found = entropies.measure_all(1, 3 * 10**9, lambda text: None, bits)
    of = {(record["form"], record["bits"]): record for record in found}
    assert max(bits for form, bits, _ in asked if form == "lfq-dense") == 16
    twenty = of["lfq-dense", 20]
    assert (twenty["how"], twenty["bytes"], twenty["seconds"]) == ("computed", 16_000, 16)
    assert of["lfq-exact", 28]["how"] == "measured"
    assert of["lfq-exact", 32] == {"form": "lfq-exact", "bits": 32, "groups": 1, "how": "refused"}
    assert of["gq-8", 40]["groups"] == 5 and ("gq-8", 12) not in of
    assert of["bsq", 40]["groups"] == 40
    table = report.entropy_table({"records": found})
    assert "| LFQ, dense |" in table and "*under 1 MB<br>16.0 s*" in table and "refused" in table


def test_a_measurement_runs_in_a_process_of_its_own() -> None:
    (form,) = [form for form in entropies.FORMS if form.name == "lfq-dense"]
    dense = entropies._measured(form, 12, 1, 1)
    table = 4 * entropies.POSITIONS * 2**12
    assert 2 * table < dense["bytes"] < entropies.TABLES * table
    assert 0 < dense["seconds"] < 60


@torch.no_grad()
def test_latents_are_the_shipped_models(pictures: Path) -> None:
    latents = model_latents("tiny-48x", pictures)
    assert latents.shape == (3 * 32 * 32, 32)
    tokenizer, chosen_protocol = checkpoint.load("tiny-48x"), protocol("modern-256")
    path = sorted(pictures.glob("*.png"))[1]
    image = chosen_protocol.to_float(chosen_protocol.prepare(load_image(path)))[None]
    ids = tokenizer.encode(image).ids
    bits = (latents[1024:2048].T.reshape(1, 32, 32, 32) > 0).float() * 2 - 1
    assert tokenizer.model.quantizer.code_to_ids(bits).equal(ids)


def test_made_up_latents_are_correlated_as_said() -> None:
    generator = torch.Generator().manual_seed(0)
    latents = correlated(5, 200_000, 0.9, generator)
    distance = (torch.arange(5)[:, None] - torch.arange(5)).abs()
    assert torch.allclose(torch.corrcoef(latents.T), 0.9**distance, atol=0.01)
    assert torch.allclose(latents.std(0), torch.full((5,), 0.5), atol=0.01)
    alone = shuffled(latents, generator)
    assert torch.allclose(torch.corrcoef(alone.T), torch.eye(5), atol=0.02)
    assert alone.sort(0).values.equal(latents.sort(0).values)


# Tables


def made_result(scores: dict[str, list[float]]) -> dict[str, Any]:
    rest = {"byte_usage": [1.0, 0.5], "byte_entropy": [7.0, 6.0], "dead_bits": 0, "ssim": 0.5}
    made = [
        {"variant": name, "seed": seed, "psnr": value, "lpips-vgg": -value, **rest}
        for name, values in scores.items()
        for seed, value in enumerate(values)
    ]
    return {"runs": made}


def test_differences_are_taken_seed_by_seed() -> None:
    result = made_result({"groups-2": [10, 20, 30], "rate-cosine": [11, 21, 32]})
    assert report.differences(result, "rate-cosine", "groups-2", "psnr") == [1, 1, 2]
    (rate,) = [question for question in QUESTIONS if question.name == "rate"]
    table = report.question_table(result, rate).splitlines()
    assert table[2].startswith("| GQ, g = 2 (d' = 8) | 20.00 ± 10.00 |")
    assert (
        "| 21.33 ± 10.50<br>+1.33 ± 0.58 better | 0.500 ± 0.000<br>+0.000 ± 0.000 unclear |"
        in (table[3])
    )
    assert "<br>-1.333 ± 0.577 better | 13.0 ± 0.0 | 50% |" in table[3]


@pytest.mark.parametrize(
    ("changes", "lower_is_better", "wanted"),
    [
        ([0.1, 0.2, 0.3], False, "better"),
        ([0.1, 0.2, 0.3], True, "worse"),
        ([-0.1, -0.2], True, "better"),
        ([-0.1, -0.2], False, "worse"),
        ([0.1, -0.2, 0.3], False, "unclear"),
        ([0.0, 0.1], False, "unclear"),
        ([0.1], False, "unclear"),
        ([0.1, 0.1, 2.0], False, "unclear"),  # by no more than twice the standard error
    ],
)
def test_a_verdict_takes_all_seeds(
    changes: list[float], lower_is_better: bool, wanted: str
) -> None:
    assert report.verdict(changes, lower_is_better) == wanted


def test_claims_are_answered_by_the_numbers() -> None:
    result = made_result({"groups-2": [10, 20, 30], "rate-cosine": [11, 21, 32]})
    worse = Claim("rate-cosine", "groups-2", "worse")
    line = report.claim_line(result, worse)
    assert line == (
        "- warm-up and cosine, worse than GQ, g = 2 (d' = 8)? PSNR (dB) +1.33 ± 0.58: "
        "**disagrees**; LPIPS-vgg -1.333 ± 0.577: **disagrees**."
    )
    better = Claim("rate-cosine", "groups-2", "better", ("psnr", "ssim"))
    line = report.claim_line(result, better)
    assert line is not None
    assert line.endswith("+1.33 ± 0.58: agrees; SSIM +0.000 ± 0.000: can't be told.")
    assert report.claim_line(result, Claim("vq", "groups-2", "worse")) is None


def test_one_seed_has_no_spread() -> None:
    assert math.isnan(report.Spread.of([1.0]).deviation)
    assert report.Spread.of([1.0, 2.0, 3.0]) == (2.0, 1.0)


def test_agreement_is_counted() -> None:
    proved = {"groups": [1, 2, 3, 6], "error": [0, 0.3, 0.1, 0.4]}  # 2 and 3 don't nest
    flat = {"groups": [1, 2, 4], "error": [0, 0.5, 0.5]}
    falling = {"groups": [1, 2, 4], "error": [0, 0.6, 0.5]}
    negative = {"groups": [1, 2], "error": [0, -0.1]}
    assert report.agreement([proved, flat, falling, negative]) == (4, 3, 1, 2)


def test_tables_go_between_their_marks_and_nowhere_else() -> None:
    text = "a\n<!-- ablation: one -->\nold\n<!-- end -->\nb\n<!-- end -->\n"
    once = report.insert(text, {"one": "| new \\1 |"})
    assert once == "a\n<!-- ablation: one -->\n| new \\1 |\n<!-- end -->\nb\n<!-- end -->\n"
    assert report.insert(once, {"one": "| new \\1 |"}) == once
    with pytest.raises(WetokError, match="no marks <!-- ablation: two -->"):
        report.insert(text, {"two": ""})


def test_sizes_and_times_read_well() -> None:
    assert [report._size(count) for count in (5e5, 2e6, 1.5e9, 3e10, 4.5e15)] == [
        "under 1 MB",
        "2 MB",
        "1.5 GB",
        "30 GB",
        "4.5 PB",
    ]
    assert [report._time(s) for s in (0.0012, 0.5, 90, 9000, 1e6, 1e9)] == [
        "1.2 ms",
        "0.5 s",
        "90.0 s",
        "2 hours",
        "12 days",
        "32 years",
    ]


def test_tables_and_plots_of_a_folder(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_result(tmp_path, "training", made_result({"groups-2": [10, 20], "rate-cosine": [9, 21]}))
    error = [0.0, 0.1, 0.3]
    one = {"kind": next(iter(KINDS)), "sample": "x", "bits": 4, "positions": 9, "exact": 2.0}
    one |= {"groups": [1, 2, 4], "grouped": [2.0, 2.1, 2.3], "error": error}
    write_result(tmp_path, "approximation", {"records": [one, one]})
    ended = command("ablate", "tables", "-o", tmp_path)
    assert ended.code == 0
    assert "| 15.00 ± 8.49<br>+0.00 ± 1.41 unclear |" in ended.out
    assert re.search(r"\| 4 \| 2.000 ± 0.000 \| 0.100 ± 0.000 \| 0.300 ± 0.000 \|", ended.out)
    for part in ("training", "approximation"):
        assert (tmp_path / f"ablation-{part}.png").read_bytes().startswith(b"\x89PNG")
    document = tmp_path / "docs.md"
    document.write_text("<!-- ablation: rate -->\n<!-- end -->\n")
    ended = command("ablate", "tables", "-o", tmp_path, "--docs", document)
    assert ended.code == 2 and "no marks" in ended.err


def test_a_folder_without_results_is_told(command: Command, tmp_path: Path) -> None:
    ended = command("ablate", "tables", "-o", tmp_path)
    assert ended.code == 2 and "holds no results of `wetok ablate`" in ended.err
    (tmp_path / "training.json").write_text("[]")
    ended = command("ablate", "tables", "-o", tmp_path)
    assert ended.code == 2 and "no result of `wetok ablate`; delete it" in ended.err
    assert plots is not None
