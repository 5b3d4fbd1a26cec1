"""The published shapes by name, against the table of the paper."""

from __future__ import annotations

import subprocess
import sys

import pytest

from wetok.config import WetokError
from wetok.presets import PRESETS, preset

# name: f, d, g, compression ratio, C, mults, B, generative
TABLE = {
    "general-24x": (8, 64, 8, 24, 256, (1, 2, 2, 4), 4, False),
    "general-48x": (8, 32, 4, 48, 256, (1, 2, 2, 4), 4, False),
    "general-192x": (16, 32, 4, 192, 256, (1, 1, 2, 2, 4), 4, False),
    "general-768x": (32, 32, 4, 768, 256, (1, 1, 2, 2, 4, 8), 4, True),
    "imagenet-f8": (8, 32, 4, 48, 256, (1, 2, 2, 4), 4, False),
    "imagenet-f16": (16, 32, 4, 192, 256, (1, 1, 2, 2, 4), 4, False),
    "open-magvit2-f16": (16, 18, 1, 1024 / 3, 128, (1, 1, 2, 2, 4), 4, False),
}


@pytest.mark.parametrize("name", TABLE)
def test_published_presets_are_the_papers(name):
    config = preset(name)
    factor, bits, groups, ratio, channels, mults, blocks, generative = TABLE[name]
    assert (config.factor, config.bits, config.groups) == (factor, bits, groups)
    assert (config.channels, config.mults, config.blocks) == (channels, mults, blocks)
    assert config.generative == generative
    assert config.ratio == pytest.approx(ratio)
    assert config.bpp == pytest.approx(bits / factor**2)


def test_the_others_are_this_projects_own():
    assert all(name.startswith("tiny-") for name in set(PRESETS) - set(TABLE))
    tiny = preset("tiny-48x")
    assert (tiny.factor, tiny.bits, tiny.groups, tiny.ratio) == (8, 32, 4, 48)


@pytest.mark.parametrize("name", PRESETS)
def test_a_name_tells_the_ratio_or_the_factor(name):
    family, _, number = name.removesuffix("-gd").rpartition("-")
    assert family and preset(name).generative == (name.endswith("-gd") or name == "general-768x")
    told = preset(name).ratio if number.endswith("x") else preset(name).factor
    assert told == int(number.strip("xf"))


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("general48x", "'general-48x'"),
        ("imagenet-8", "'imagenet-f8'"),
        ("magvit2", "'open-magvit2-f16'"),
        ("tiny-48", "'tiny-48x'"),
    ],
)
def test_a_wrong_name_gets_the_near_ones(wrong, near):
    with pytest.raises(WetokError, match=f"no preset is called '{wrong}'; did you mean .*{near}"):
        preset(wrong)


def test_a_name_near_none_gets_them_all():
    with pytest.raises(WetokError) as caught:
        preset("zzz")
    assert all(name in str(caught.value) for name in PRESETS)


def test_settings_and_presets_need_no_torch():
    code = "import sys, wetok.config, wetok.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
