"""Receipts: what must agree, how nearly, and what is told."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from wetok.config import WetokError
from wetok.evaluate.receipt import IDENTITY, differences, finite, read, write

SUMMARY: dict[str, Any] = {
    "model": "toy",
    "fingerprint": "0123456789abcdef",
    "protocol": "original",
    "preprocessing_hash": "aa",
    "lpips_weights": {"alex": "bb"},
    "frechet_weights": {"rfid": "cc"},
    "images": 31,
    "image_list_hash": "dd",
    "failed": 0,
    "seed": 0,
    "samples": 2,
    "bpp": 0.5,
    "coded_bpp": None,
    "psnr": 24.0,
    "ssim": 0.7,
    "lpips-alex": 0.3,
    "rfid": 12.0,
    "usage": [1.0, 0.9],
    "token_entropy": [7.9, 7.8],
    "encode_seconds": 0.1,
    "of_samples": {"psnr": {"mean": 24.0, "best": 25.0, "spread": 0.5}},
    "device": "cpu",
    "versions": {"wetok": "1", "torch": "2"},
}


def changed(**changes: Any) -> list[str]:
    """What is told about a summary that differs from the receipt by `changes`, if it matters."""
    return [str(one) for one in differences(SUMMARY, {**SUMMARY, **changes}) if one.matters]


def test_a_file_and_back(tmp_path: Path) -> None:
    write(tmp_path / "r.json", {**SUMMARY, "psnr": math.inf}, {"data": ["photos"]})
    receipt = read(tmp_path / "r.json")
    assert receipt["arguments"] == {"data": ["photos"]} and receipt["psnr"] == "inf"
    assert differences(receipt, {**SUMMARY, "psnr": math.inf}) == []
    assert differences(receipt, SUMMARY) != []


def test_equal_scores_agree() -> None:
    assert changed() == [] and changed(encode_seconds=9.0, model="another name") == []


@pytest.mark.parametrize("key", IDENTITY)
def test_whatever_makes_it_another_measurement_matters(key: str) -> None:
    (line,) = changed(**{key: "another"})
    assert line.startswith(IDENTITY[key] + ": ") and line.endswith(" now") and "\n" not in line


@pytest.mark.parametrize(
    ("key", "within", "beyond"),
    [
        ("psnr", 24.0009, 24.0011),
        ("psnr", 23.9991, 23.9989),
        ("ssim", 0.700009, 0.700011),
        ("lpips-alex", 0.30009, 0.30011),
        ("rfid", 12.011, 12.013),
        ("bpp", 0.5, 0.5001),
        ("usage", [1.0, 0.8991], [1.0, 0.8989]),
        ("token_entropy", [7.9009, 7.8], [7.9011, 7.8]),
    ],
)
def test_scores_agree_within_their_tolerance(key: str, within: Any, beyond: Any) -> None:
    assert changed(**{key: within}) == []
    (line,) = changed(**{key: beyond})
    assert line.startswith(f"{key}: ")


def test_what_is_missing_or_new_differs() -> None:
    without = {key: value for key, value in SUMMARY.items() if key != "rfid"}
    assert [one.what for one in differences(SUMMARY, without)] == ["rfid"]
    assert [one.what for one in differences(without, SUMMARY)] == ["rfid"]
    assert changed(usage=[1.0]) and changed(psnr=None) and changed(psnr=math.nan)
    assert changed(**{"lpips-vgg": 0.4}) == ["lpips-vgg: nothing on the receipt, 0.4 now"]


def test_samples_count() -> None:
    of = {"psnr": {"mean": 24.0, "best": 25.5, "spread": 0.5}}
    assert changed(of_samples=of) == ["psnr, best of the samples: 25 on the receipt, 25.5 now"]
    assert len(changed(of_samples={})) == 3


def test_versions_and_the_device_are_told_but_do_not_matter() -> None:
    found = differences(
        SUMMARY, {**SUMMARY, "versions": {"wetok": "1", "torch": "3"}, "device": "cuda"}
    )
    assert [(one.what, one.matters) for one in found] == [("torch", False), ("device", False)]
    assert str(found[0]) == "torch: 2 on the receipt, 3 now"


def test_finite() -> None:
    value = {"a": [math.inf, 1.5], "b": {"c": -math.inf}, "d": math.nan, "e": (1, None)}
    assert finite(value) == {"a": ["inf", 1.5], "b": {"c": "-inf"}, "d": "nan", "e": [1, None]}
    json.dumps(finite(value), allow_nan=False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "can't be read: not JSON"),
        ("[]", "is not a receipt"),
        ('{"psnr": 3}', "is not a receipt"),
        ('{"receipt": 99, "arguments": {}}', "has format 99"),
        ('{"receipt": 1, "arguments": {"data": "photos"}}', "arguments.data is 'photos'"),
        ('{"receipt": 1, "arguments": {"data": [1]}}', r"arguments.data is \[1\]"),
        ('{"receipt": 1, "arguments": {"seed": true}}', "arguments.seed is True"),
    ],
)
def test_other_files_are_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(WetokError, match=said) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(WetokError, match="can't be read: No such file"):
        read(tmp_path / "absent.json")
    with pytest.raises(WetokError, match="can't be written"):
        write(tmp_path / "no" / "such" / "r.json", SUMMARY, {})
    assert list(tmp_path.iterdir()) == []
