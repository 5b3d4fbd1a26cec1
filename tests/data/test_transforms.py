"""Crops: which part is taken, and that exactly this part comes out."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from wetok.config import WetokError
from wetok.data.images import load_image
from wetok.data.transforms import Plan, RandomCrop, center_crop, needed_size

sides = st.integers(1, 400)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    )


def ramp(width: int, height: int) -> Image.Image:
    """Red tells x, green tells y, as a share of the whole: pixel centres at (i + 0.5) / side."""
    x = (np.arange(width) + 0.5) / width
    y = (np.arange(height) + 0.5) / height
    array = np.stack([*np.meshgrid(x, y), np.full((height, width), 0.5)], -1)
    return Image.fromarray(np.rint(array * 255).astype(np.uint8))


def expected_ramp(plan: Plan, size: int) -> np.ndarray:
    """What the ramp looks like within the plan's box: float [size,size,2]."""
    (width, height), (left, top, right, bottom) = plan.size, plan.box
    steps = (np.arange(size) + 0.5) / size
    x = (left + steps * (right - left)) / width
    y = (top + steps * (bottom - top)) / height
    return np.stack(np.meshgrid(x[::-1] if plan.flip else x, y), -1) * 255


scales = st.one_of(
    st.none(), st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(lambda p: (min(p), max(p)))
)
ratios = st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(lambda p: (min(p), max(p)))


@settings(max_examples=300, deadline=None)
@given(
    width=sides,
    height=sides,
    size=st.integers(1, 300),
    scale=scales,
    ratio=ratios,
    enlarge=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_the_part_keeps_every_promise_that_the_image_allows(
    width: int,
    height: int,
    size: int,
    scale: tuple[float, float] | None,
    ratio: tuple[float, float],
    enlarge: bool,
    seed: int,
) -> None:
    crop = RandomCrop(size, scale, ratio, enlarge=enlarge)
    plan = crop.sample((width, height), np.random.default_rng(seed))
    left, top, right, bottom = plan.box
    assert plan.size == (width, height)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    box_width, box_height = right - left, bottom - top
    slack = 1e-6 * max(width, height)
    if scale is None:
        assert box_width == box_height == min(size, width, height)
        assert left == int(left) and top == int(top)
        return
    if not enlarge:
        assert box_width >= min(size, width) - slack or box_height >= height - slack
        assert box_height >= min(size, height) - slack or box_width >= width - slack
    area, shape = box_width * box_height, box_width / box_height
    whole = width * height
    if enlarge or area > size**2 * 1.01 and min(box_width, box_height) > size * 1.01:
        # Nothing had to give way to the crop's size.
        assert ratio[0] * (1 - 1e-6) <= shape <= ratio[1] * (1 + 1e-6)
        assert area <= scale[1] * whole * (1 + 1e-6)
        touches = box_width >= width - slack or box_height >= height - slack
        assert area >= scale[0] * whole * (1 - 1e-6) or touches


@settings(max_examples=100, deadline=None)
@given(
    width=sides,
    height=sides,
    size=st.integers(1, 64),
    scale=scales,
    jitter=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 2**32),
)
def test_result_has_the_size_and_follows_the_generator(
    width: int,
    height: int,
    size: int,
    scale: tuple[float, float] | None,
    jitter: float,
    seed: int,
) -> None:
    image = noise(width, height)
    before = image.tobytes()
    crop = RandomCrop(size, scale, jitter=jitter)
    first = crop(image, np.random.default_rng(seed))
    again = crop(image, np.random.default_rng(seed))
    assert first.size == (size, size) and first.mode == "RGB"
    assert first.tobytes() == again.tobytes()
    assert image.tobytes() == before


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(60, 500),
    height=st.integers(60, 500),
    size=st.integers(8, 64),
    enlarge=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_the_planned_part_is_what_comes_out(
    width: int, height: int, size: int, enlarge: bool, seed: int
) -> None:
    """On a ramp, resampling has a closed form, to a fraction of a pixel; the rim is left out."""
    crop = RandomCrop(size, (0.1, 1.0), enlarge=enlarge)
    plan = crop.sample((width, height), np.random.default_rng(seed))
    result = np.asarray(crop.apply(ramp(width, height), plan)).astype(float)[..., :2]
    wanted = expected_ramp(plan, size)
    rim = 3
    inner = (slice(rim, -rim), slice(rim, -rim))
    assert abs(result[inner] - wanted[inner]).max() < 2


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(80, 500),
    height=st.integers(80, 500),
    size=st.integers(8, 48),
    seed=st.integers(0, 2**32),
)
def test_the_same_part_of_a_smaller_decode(width: int, height: int, size: int, seed: int) -> None:
    file = io.BytesIO()
    ramp(width, height).save(file, "JPEG", quality=98, subsampling=0)
    crop = RandomCrop(size, (0.1, 1.0))
    plan = crop.sample((width, height), np.random.default_rng(seed))
    need = needed_size(plan, size)
    small = load_image(file.getvalue(), draft=lambda _: need)
    assert small.width >= need[0] and small.height >= need[1]
    share = (plan.box[2] - plan.box[0]) / width, (plan.box[3] - plan.box[1]) / height
    assert small.width * share[0] >= size - 1e-6 and small.height * share[1] >= size - 1e-6
    result = np.asarray(crop.apply(small, plan)).astype(float)[..., :2]
    difference = result - expected_ramp(plan, size)
    assert abs(difference[3:-3, 3:-3]).max() < 3


def test_a_smaller_decode_is_really_used() -> None:
    plan = Plan((1000, 800), (100.0, 100.0, 900.0, 700.0), False, (1, 1, 1))
    assert needed_size(plan, 100) == (188, 200)
    assert needed_size(plan, 500) == (938, 800)  # never more than there is


def test_native_crop_is_a_cut() -> None:
    image = noise(50, 40)
    array = np.asarray(image)
    crop = RandomCrop(16, None, flip=0.5)
    seen = set()
    for seed in range(400):
        plan = crop.sample(image.size, np.random.default_rng(seed))
        left, top = int(plan.box[0]), int(plan.box[1])
        wanted = array[top : top + 16, left : left + 16]
        wanted = wanted[:, ::-1] if plan.flip else wanted
        np.testing.assert_array_equal(np.asarray(crop.apply(image, plan)), wanted)
        seen.add((left, top))
    assert {x for x, _ in seen} == set(range(35)) and {y for _, y in seen} == set(range(25))


def test_draws_are_uniform() -> None:
    crop = RandomCrop(1, (0.2, 0.6), (0.8, 1.25), flip=0.3, jitter=0.25)
    plans = [crop.sample((1000, 1000), np.random.default_rng(seed)) for seed in range(4000)]
    boxes = np.array([plan.box for plan in plans])
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    quantities = {
        "area": (widths * heights / 1e6 - 0.2) / 0.4,
        "ratio": np.log(widths / heights / 0.8) / math.log(1.25 / 0.8),
        "left": boxes[:, 0] / (1000 - widths),
        "top": boxes[:, 1] / (1000 - heights),
        **{f"jitter {i}": (np.array([p.jitter[i] for p in plans]) - 0.75) / 0.5 for i in range(3)},
    }
    grid = (np.arange(4000) + 0.5) / 4000
    for name, values in quantities.items():
        # Kolmogorov-Smirnov: 1.95 / sqrt(n) is exceeded by chance once in a thousand.
        assert abs(np.sort(values) - grid).max() < 1.95 / math.sqrt(4000), name
    assert abs(np.mean([plan.flip for plan in plans]) - 0.3) < 0.03
    table = np.stack(list(quantities.values()))
    assert abs(np.corrcoef(table) - np.eye(len(table))).max() < 0.07


def test_switching_flip_or_jitter_leaves_the_box_alone() -> None:
    plain = RandomCrop(8, flip=0.0).sample((90, 70), np.random.default_rng(5))
    other = RandomCrop(8, flip=1.0, jitter=0.5).sample((90, 70), np.random.default_rng(5))
    assert plain.box == other.box and not plain.flip and other.flip
    assert plain.jitter == (1, 1, 1) != other.jitter


def test_jitter_changes_what_it_says() -> None:
    image = ramp(20, 20)
    crop = RandomCrop(20, None, flip=0, jitter=0.5)
    size, box = image.size, (0.0, 0.0, 20.0, 20.0)
    original = np.asarray(image).astype(float)
    same = np.asarray(crop.apply(image, Plan(size, box, False, (1, 1, 1))))
    np.testing.assert_array_equal(same, original)
    darker = np.asarray(crop.apply(image, Plan(size, box, False, (0.5, 1, 1))))
    assert abs(darker - original / 2).max() <= 1
    flatter = np.asarray(crop.apply(image, Plan(size, box, False, (1, 0.5, 1)))).astype(float)
    assert abs(flatter.std() / original.std() - 0.5) < 0.05
    greyer = np.asarray(crop.apply(image, Plan(size, box, False, (1, 1, 0.5)))).astype(float)
    assert abs(np.ptp(greyer, axis=-1) - np.ptp(original, axis=-1) / 2).max() <= 2


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"scale": (0.0, 1.0)},
        {"scale": (0.5, 1.1)},
        {"scale": (0.9, 0.5)},
        {"ratio": (0.0, 1.0)},
        {"ratio": (2.0, 1.0)},
        {"flip": 1.5},
        {"jitter": 1.0},
        {"jitter": math.nan},
    ],
    ids=str,
)
def test_wrong_settings(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(WetokError, match=f"{name}="):
        RandomCrop(**{"size": 8, **options})  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(width=sides, height=sides, size=st.integers(1, 300))
def test_center_crop_has_the_size(width: int, height: int, size: int) -> None:
    assume(max(width, height) * size // min(width, height) < 3000)
    assert center_crop(Image.new("RGB", (width, height)), size).size == (size, size)


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(40, 300), height=st.integers(40, 300), size=st.integers(16, 200)
)  # enlarging as well
def test_center_crop_takes_the_middle(width: int, height: int, size: int) -> None:
    result = np.asarray(center_crop(ramp(width, height), size)).astype(float)[..., :2]
    side = min(width, height)
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    wanted = expected_ramp(Plan((width, height), box, False, (1, 1, 1)), size)
    rim = 2 + 3 * math.ceil(size / side)
    # The longer side is rounded to whole pixels, and so is the cut: half a pixel each.
    tolerance = 2 + 1.1 * 255 / size
    inner = (slice(rim, -rim), slice(rim, -rim))
    if 2 * rim < size:
        assert abs(result[inner] - wanted[inner]).max() < tolerance


def test_center_crop_without_resizing_is_a_cut() -> None:
    image = noise(37, 20)
    wanted = np.asarray(image)[:, 8:28]
    np.testing.assert_array_equal(np.asarray(center_crop(image, 20)), wanted)
    whole = center_crop(noise(20, 20), 20)
    np.testing.assert_array_equal(np.asarray(whole), np.asarray(noise(20, 20)))
    with pytest.raises(WetokError, match="size=0"):
        center_crop(image, 0)


def test_center_crop_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    result = np.asarray(center_crop(Image.fromarray(stripes), 8)).astype(float)
    assert abs(result - 127.5).max() < 10
