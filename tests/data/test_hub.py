"""Data sets of the Hub and from disk, without a connection."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data.streams import check_stream, encoded, numbers_of, picture
from wetok.config import WetokError
from wetok.data.hub import DatasetRows, is_saved, open_hub, open_saved
from wetok.data.parquet import ParquetRows

datasets = pytest.importorskip(
    "datasets", reason="datasets is not installed (extras dev and scale)"
)


@pytest.fixture(scope="module", autouse=True)
def _quiet_and_apart(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        datasets.disable_progress_bars()
        yield
        datasets.enable_progress_bars()


def table(numbers: range) -> Any:
    features = datasets.Features({"label": datasets.Value("int64"), "image": datasets.Image()})
    images = [{"bytes": encoded(number), "path": None} for number in numbers]
    return datasets.Dataset.from_dict({"label": list(numbers), "image": images}, features=features)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    table(range(20)).save_to_disk(tmp_path / "one", max_shard_size="3KB")
    return tmp_path / "one"


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    parts = {"train": table(range(6)), "test": table(range(6, 9))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    return tmp_path / "both"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What stands for a data set of the Hub: a folder of the same layout under the same name."""
    folder = tmp_path / "someone" / "pictures" / "data"
    folder.mkdir(parents=True)
    table(range(9)).to_parquet(folder / "train-00000-of-00002.parquet", batch_size=4)
    table(range(9, 12)).to_parquet(folder / "train-00001-of-00002.parquet", batch_size=4)
    table(range(12, 14)).to_parquet(folder / "test-00000-of-00001.parquet")
    monkeypatch.chdir(tmp_path)
    return "someone/pictures"


def test_saved(saved: Path, tmp_path: Path) -> None:
    assert is_saved(saved) and not is_saved(tmp_path)
    source = open_saved(saved)
    assert len(list(saved.glob("*.arrow"))) > 1
    assert numbers_of(source, 20) == list(range(20))
    assert source.name(3) == f"{saved}: row 3"
    assert not source.skipped


def test_stream(saved: Path) -> None:
    check_stream(lambda: open_saved(saved))


def test_stream_of_damaged_images(tmp_path: Path) -> None:
    images = [{"bytes": encoded(number), "path": None} for number in range(12)]
    images[3] = {"bytes": b"junk", "path": None}
    images[7] = None  # type: ignore[call-overload]
    features = datasets.Features({"image": datasets.Image()})
    data = datasets.Dataset.from_dict({"image": images}, features=features)
    data.save_to_disk(tmp_path / "one")
    check_stream(lambda: open_saved(tmp_path / "one"), broken=2)


def test_formats_indices_and_paths_do_not_matter(tmp_path: Path) -> None:
    chosen = table(range(8)).select([5, 2, 7]).with_format("numpy")
    assert numbers_of(DatasetRows(chosen), 8) == [5, 2, 7]
    files = []
    for number in range(3):
        files.append(str(tmp_path / f"{number}.png"))
        picture(number).save(files[-1])
    by_path = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    assert numbers_of(DatasetRows(by_path), 3) == [0, 1, 2]
    plain = datasets.Dataset.from_dict({"jpg": [encoded(4)], "json": ["{}"]})
    assert numbers_of(DatasetRows(plain), 5) == [4]


def test_splits(splits: Path, saved: Path) -> None:
    assert is_saved(splits)
    assert numbers_of(open_saved(splits), 9) == list(range(6))
    test = open_saved(splits, "test")
    assert numbers_of(test, 9) == [6, 7, 8] and test.name(0) == f"{splits}/test: row 0"
    with pytest.raises(WetokError, match="split='tst' is not in .*did you mean 'test'"):
        open_saved(splits, "tst")
    alone = datasets.DatasetDict({"validation": table(range(2))})
    alone.save_to_disk(splits.with_name("alone"))
    assert len(open_saved(splits.with_name("alone"))) == 2


def test_hub_downloaded(hub: str) -> None:
    assert numbers_of(open_hub(hub), 14) == list(range(12))
    test = open_hub(hub, "test")
    assert numbers_of(test, 14) == [12, 13] and test.name(0) == f"hub:{hub} (test): row 0"
    assert numbers_of(open_hub(hub, "train[2:5]"), 14) == [2, 3, 4]


def test_hub_streamed(hub: str) -> None:
    source = open_hub(hub, stream=True)
    assert isinstance(source, ParquetRows)
    assert numbers_of(source, 14) == list(range(12))
    assert source.name(10).endswith("train-00001-of-00002.parquet: row 1")
    check_stream(lambda: open_hub(hub, stream=True))
    assert numbers_of(open_hub(hub, "test", stream=True), 14) == [12, 13]
    with pytest.raises(WetokError, match="split='tset' is not in hub:someone/pictures.*'test'"):
        open_hub(hub, "tset", stream=True)


def test_streaming_what_is_not_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "someone" / "files"
    folder.mkdir(parents=True)
    for number in range(3):
        picture(number).save(folder / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WetokError, match=r"can't be streamed: .*\.png.*set stream off"):
        open_hub("someone/files", stream=True)


@pytest.mark.parametrize("stream", [False, True])
def test_no_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stream: bool) -> None:
    monkeypatch.chdir(tmp_path)
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(WetokError, match="hub:someone/unknown can't be opened: .*check the name"):
        open_hub("someone/unknown", stream=stream)


@pytest.mark.parametrize("name", ["", "a/b/c", "a b", "https", "../x/y"])
def test_names_that_are_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise ConnectionError("asked the Hub")

    monkeypatch.setattr(datasets, "load_dataset", never)
    part = "asked the Hub" if name == "https" else "is not a name on the Hub"
    with pytest.raises(WetokError, match=part):
        open_hub(name)


def test_other_mistakes(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(WetokError, match="column='imag' is not in .*did you mean 'image'"):
        open_saved(saved, column="imag")
    with pytest.raises(WetokError, match="DatasetDict: expected a datasets.Dataset"):
        DatasetRows(datasets.DatasetDict({"train": table(range(2))}))
    with pytest.raises(WetokError, match="data set has no rows"):
        DatasetRows(table(range(0)))
    (saved / "state.json").write_text("{")
    with pytest.raises(WetokError, match="can't be opened: .*save it again"):
        open_saved(saved)


def test_missing_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for opening in (lambda: open_hub("a/b"), lambda: open_saved(tmp_path)):
        with pytest.raises(WetokError, match=r"'datasets'.*pip install 'wetok\[scale\]'"):
            opening()


def test_images_are_decoded_as_everywhere_else(tmp_path: Path) -> None:
    """Transparency over white: `datasets` on its own would hand out RGBA."""
    import io

    buffer = io.BytesIO()
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(buffer, "png")
    cell = {"bytes": buffer.getvalue(), "path": None}
    features = datasets.Features({"image": datasets.Image()})
    data = datasets.Dataset.from_dict({"image": [cell]}, features=features)
    assert DatasetRows(data).read(0).getpixel((0, 0)) == (255, 255, 255)
