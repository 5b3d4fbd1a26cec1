"""The engine for clusters gives the bytes of the local one, whatever dies.

On a cluster of two nodes of one processor each. WETOK_KILLS=5 takes 20,000 crops of 64 x 64 of the
shared photographs and the shipped model, and kills as many drivers, encoders and decoding workers.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from tests.tokenize.job import SIDE, failed, files, planned, run, write_pictures
from tests.tokenize.test_kill import KILLS, Job, parts, wait_for, write_crops
from wetok import checkpoint
from wetok.cli import main
from wetok.config import WetokError
from wetok.model.tokenizer import Tokenizer
from wetok.tokenize import ray_cluster, ray_workers
from wetok.tokenize.inputs import Inputs, Item, Reader, open_inputs
from wetok.tokenize.local import Progress
from wetok.tokenize.output import Output
from wetok.tokenize.plan import Plan
from wetok.tokenize.ray_engine import Cluster, _Shares, tokenize
from wetok.tokenize.verify import verify
from wetok.tokenize.views import Preprocessing

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'wetok[scale]'")
pytest.importorskip("ray.data", reason="ray[data] is not installed: pip install 'wetok[scale]'")

LONG = bool(os.environ.get("WETOK_RAY"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one processor each, on this machine."""
    patch = pytest.MonkeyPatch()
    for name, value in ray_cluster._LOCAL.items():
        patch.setenv(name, value)
    patch.setattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER", False)  # loopback, as _LOCAL
    patch.setenv("RAY_AUTH_MODE", "disabled")
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
    patch.setenv("OMP_NUM_THREADS", "1")
    from ray.cluster_utils import Cluster as Nodes

    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    nodes = Nodes(initialize_head=True, head_node_args=node)
    nodes.add_node(**node)
    yield nodes
    ray.shutdown()
    nodes.shutdown()
    patch.undo()


def job_of(
    out: Path, inputs: Inputs, tokenizer: Tokenizer, cluster: Cluster, **options: Any
) -> tuple[Plan, Progress]:
    """A whole job, from where it is, on `cluster`."""
    told = {name: options.pop(name) for name in ("tell", "stop") if name in options}
    plan, output = planned(inputs, tokenizer, **options), Output(out)
    with output.locked():
        output.begin(plan)
        progress = tokenize(
            plan, inputs, tokenizer, output, output.missing(plan), cluster=cluster, **told
        )
        output.finish(plan)
    return plan, progress


def workers(of: str) -> list[psutil.Process]:
    """Processes of our cluster that run something whose name contains `of`."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = process.cmdline()
            if title and title[0].startswith("ray::") and of in title[0]:
                found.append(process)
        except psutil.Error:
            continue
    return found


def same(out: Path, reference: Path) -> None:
    mine, theirs = files(out), files(reference)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name] != theirs[name]] == []


@dataclass(frozen=True)
class Deadly:
    """A reader of which some images end the process that decodes them."""

    inner: Reader
    deadly: frozenset[str]
    driver: int

    def read(self, item: Item) -> tuple[Image.Image, dict[str, Any]]:
        if item.key in self.deadly and os.getpid() != self.driver:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner.read(item)


@dataclass
class Dangerous:
    """Inputs with such a reader."""

    inner: Inputs
    deadly: frozenset[str]

    def __post_init__(self) -> None:
        self.left_out, self.schema = self.inner.left_out, self.inner.schema
        self.reader: Reader = Deadly(self.inner.reader, self.deadly, os.getpid())

    def __len__(self) -> int:
        return len(self.inner)

    def items(self, start: int, stop: int) -> list[Item]:
        return self.inner.items(start, stop)


@pytest.mark.skipif(bool(KILLS), reason="one campaign at a time")
def test_batches_and_views_give_the_same_bytes(
    cluster: Any, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "pictures", 75, broken=7)
    inputs = open_inputs([tmp_path / "pictures"], labels="folder")
    options = {"part_size": 31, "batch": 6, "preprocessing": Preprocessing(SIDE, "flip")}
    run(tmp_path / "here", inputs, tokenizer, **options)
    monkeypatch.setattr("wetok.tokenize.chunks.IMAGES", 7)  # so that parts are in pieces: of 6
    _, progress = job_of(
        tmp_path / "there", inputs, tokenizer, Cluster(cluster.address, workers=2), **options
    )
    same(tmp_path / "there", tmp_path / "here")
    assert (progress.inputs, progress.images, progress.failed) == (75, 2 * 68, 7)
    assert progress.parts == 3 and progress.encoding > 0
    assert verify(Output(tmp_path / "there"), inputs).ok


@pytest.mark.skipif(not LONG, reason="minutes on a busy machine: set WETOK_RAY=1")
def test_a_node_an_encoder_and_what_decodes_die(
    cluster: Any, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = write_pictures(tmp_path / "pictures", 120, broken=6)
    deadly = frozenset({"a/00050.png", "b/00077.png"})
    inputs = Dangerous(open_inputs([tmp_path / "pictures"]), deadly)
    run(tmp_path / "here", inputs, tokenizer, workers=1, part_size=20)
    told = failed(tmp_path / "here")
    assert told.keys() == bad | deadly
    assert all("ended 2 processes (SIGKILL" in told[key] for key in deadly)

    killed: list[str] = []

    def tell(progress: Progress) -> None:
        if not killed and (found := workers("Encoding")):
            found[0].kill()
            killed.append("encoder")
        elif killed == ["encoder"] and progress.inputs >= 40:
            node = next(one for one in cluster.list_all_nodes() if not one.is_head())
            cluster.remove_node(node, allow_graceful=False)
            cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
            killed.append("node")

    monkeypatch.setattr("wetok.tokenize.chunks.IMAGES", 5)
    cluster_ = Cluster(cluster.address, encoders=1)
    _, progress = job_of(tmp_path / "there", inputs, tokenizer, cluster_, part_size=20, tell=tell)
    assert killed == ["encoder", "node"]
    same(tmp_path / "there", tmp_path / "here")
    assert progress.inputs == 120 and progress.failed == len(bad | deadly)
    assert verify(Output(tmp_path / "there"), inputs).ok


@pytest.mark.skipif(not LONG, reason="minutes on a busy machine: set WETOK_RAY=1")
def test_a_driver_killed_goes_on_with_either_engine(
    cluster: Any, tmp_path: Path, tokenizer: Tokenizer, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first one has a cluster of its own, on the loopback interface, which ends with it."""
    write_pictures(tmp_path / "pictures", 160, broken=5)
    checkpoint.save_folder(tmp_path / "model", tokenizer.model, "toy")
    words = [tmp_path / "pictures", "-m", tmp_path / "model", "--size", SIDE, "--shard-size", 8]
    inputs = open_inputs([tmp_path / "pictures"])
    run(tmp_path / "here", inputs, tokenizer, part_size=8)
    out, told = tmp_path / "there", tmp_path / "told.txt"

    first = Job(*words, "-o", out, "--engine", "ray", told=told)
    wait_for(first, lambda: parts(out) >= 2)
    listening = {
        place.laddr.ip.removeprefix("::ffff:")
        for child in first.children()
        for place in child.net_connections()
        if place.status == psutil.CONN_LISTEN
    }
    first.kill()
    assert told.read_text() == "", "Ray is silent"
    assert listening == {"127.0.0.1"}
    assert first.left() == [], "no process outlives the driver"
    done = parts(out)
    assert 2 <= done < 20

    plan, output = planned(inputs, tokenizer, part_size=8), Output(out)
    from wetok.tokenize.local import tokenize as tokenize_here

    with output.locked():
        tokenize_here(plan, inputs, tokenizer, output, output.missing(plan)[:3])
    assert parts(out) == done + 3
    with output.locked(), pytest.raises(WetokError, match="in use by another process"):
        job_of(out, inputs, tokenizer, Cluster(cluster.address), part_size=8)

    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        more = ["--engine", "ray", "--address", cluster.address, "--encoders", 2, "--workers", 1]
        main(["tokenize", *map(str, [*words, "-o", out, *more])])
    assert ended.value.code == 1
    assert capfd.readouterr().err == ""
    assert {name: one for name, one in files(out).items() if name.startswith("tokens-")} == {
        name: one for name, one in files(tmp_path / "here").items() if name.startswith("tokens-")
    }
    assert (out / "failed.jsonl").read_bytes() == (tmp_path / "here/failed.jsonl").read_bytes()
    assert verify(output, inputs).ok


@pytest.mark.skipif(not KILLS, reason="a campaign of many minutes: set WETOK_KILLS=5")
def test_campaign(
    cluster: Any, tmp_path: Path, photos_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = int(os.environ.get("WETOK_IMAGES", 20_000))
    broken = write_crops(photos_dir / "train", tmp_path / "pictures", images)
    out, rng, told = tmp_path / "there", random.Random(3), tmp_path / "told.txt"
    words = [tmp_path / "pictures", "--size", 64, "--shard-size", 128, "-o", out]
    words += ["--engine", "ray", "--address", cluster.address]
    total, begun = -(-images // 128), time.monotonic()
    moments: list[tuple[str, int]] = []

    def start() -> Job:
        counts = ["--encoders", rng.choice([1, 2]), "--workers", rng.choice([1, 2, 3])]
        return Job(*words, *counts, told=told)

    driver = start()
    kinds = ["Encoding", "decode_rows", "driver"] * KILLS
    for number, kind in enumerate(kinds):
        goal = (number + 1) * (total - 8) // (len(kinds) + 1)
        wait_for(driver, lambda goal=goal: parts(out) >= goal)  # type: ignore[misc]
        time.sleep(rng.uniform(0, 0.3))
        assert driver.running(), told.read_text()
        if kind == "driver":
            driver.kill()
            moments.append((kind, parts(out)))
            driver = start()
            continue
        while driver.running() and not (found := workers(kind)):
            pass
        rng.choice(found).kill()
        moments.append((kind, parts(out)))
    assert driver.wait() == 1, told.read_text()
    seconds = time.monotonic() - begun
    with capsys.disabled():
        print(f"\n{images} images in {seconds:.0f} s; killed at parts: {moments}")
    assert set(failed(out)) == broken
    found_all = verify(Output(out), open_inputs([tmp_path / "pictures"]))
    assert found_all.ok and found_all.with_source, found_all.problems
    assert (found_all.inputs, found_all.failed) == (images, len(broken))
    assert json.loads((out / "summary.json").read_text())["done"]


def test_settings_that_can_not_be() -> None:
    with pytest.raises(WetokError, match="encoders=0 must be at least 1"):
        Cluster(encoders=0)
    with pytest.raises(WetokError, match="device='mps' must be auto, cpu or cuda"):
        Cluster(device="mps")
    with pytest.raises(WetokError, match="device='cuda': the cluster has no GPU"):
        _Shares.of(Cluster(device="cuda"), {"CPU": 8.0})
    with pytest.raises(WetokError, match="encoders=3 must be at most the cluster's GPUs, 2"):
        _Shares.of(Cluster(encoders=3), {"CPU": 8.0, "GPU": 2.0})


@pytest.mark.parametrize(
    ("cluster", "there", "encoders", "cpus", "gpus"),
    [
        (Cluster(), {"CPU": 8.0}, 4, 1.0, 0),
        (Cluster(), {"CPU": 1.0}, 1, 0.5, 0),
        (Cluster(workers=3, encoders=2), {"CPU": 2.0}, 2, 0.4, 0),
        (Cluster(), {"CPU": 64.0, "GPU": 8.0}, 8, 1.0, 1),
        (Cluster(device="cpu"), {"CPU": 64.0, "GPU": 8.0}, 32, 1.0, 0),
        (Cluster(encoders=2, workers=100), {"CPU": 64.0, "GPU": 8.0}, 2, 0.64, 1),
    ],
)
def test_what_is_asked_of_a_cluster(
    cluster: Cluster, there: dict[str, float], encoders: int, cpus: float, gpus: int
) -> None:
    shares = _Shares.of(cluster, there)
    assert (shares.encoders, shares.cpus, shares.gpus) == (encoders, cpus, gpus)
    taken = (0 if gpus else encoders) + (cluster.workers or 1)
    assert shares.cpus * taken <= there["CPU"], "all of them can begin"


def test_a_node_that_is_not_like_the_others(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_pictures(tmp_path / "pictures", 4)
    inputs = open_inputs([tmp_path / "pictures"])
    plan = planned(inputs, tokenizer)
    job = ray_workers.Job(plan, inputs.reader, os.getcwd(), ())
    assert job.problem() == ""
    about = plan.about
    for other, wanted in [
        (replace(job, paths=("/no/photos",)), "has no /no/photos"),
        (replace(job, plan=replace(plan, about=replace(about, wetok="0.0"))), "not 0.0"),
        (replace(job, plan=replace(plan, about=replace(about, preprocessing_hash="0"))), "Pillow"),
    ]:
        assert wanted in other.problem()


def test_without_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path / "pictures", 2)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    words = ["tokenize", str(tmp_path / "pictures"), "-o", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--engine", "ray"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--engine ray needs the package 'ray'" in line and "wetok[scale]" in line
    with pytest.raises(SystemExit):
        main([*words, "--address", "auto"])
    assert "is for --engine ray" in capsys.readouterr().err
