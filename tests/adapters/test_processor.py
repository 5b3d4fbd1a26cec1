"""The image processor against the tokenizer's own way in and out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.export.small import small
from wetok.adapters.processor import WetokImageProcessor
from wetok.config import WetokError
from wetok.data.images import to_tensor
from wetok.evaluate.protocols import protocol

rng = np.random.default_rng(0)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def test_pixel_values_are_what_the_model_takes() -> None:
    tokenizer = small()
    processor = WetokImageProcessor.from_tokenizer(tokenizer)
    images = [picture(21, 14), picture(21, 14)]
    batch = processor(images, return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 16, 24)
    assert torch.equal(batch.pixel_values[:, :, :14, :21], torch.stack([*map(to_tensor, images)]))
    with torch.no_grad():
        ids = tokenizer.model.quantizer(tokenizer.model.encoder(batch["pixel_values"])).ids
    assert torch.equal(ids, tokenizer.encode(images).ids)
    back = processor.post_process(batch.pixel_values, batch.original_sizes)
    assert [np.array_equal(a, b) for a, b in zip(back, images, strict=True)] == [True, True]
    assert [image.size for image in processor.postprocess(batch.pixel_values)] == [(24, 16)] * 2


def test_every_kind_of_image(tmp_path: Path) -> None:
    processor = WetokImageProcessor(4)
    image = picture(8, 12)
    image.save(tmp_path / "a.png")
    wanted = processor(image)["pixel_values"]
    array = np.asarray(image)
    kinds = (tmp_path / "a.png", array, array[None], torch.tensor(array), to_tensor(image), [array])
    for kind in kinds:
        assert torch.equal(processor(kind)["pixel_values"], wanted)
    assert np.array_equal(processor(image, return_tensors="np")["pixel_values"], wanted.numpy())
    loose = processor([image, picture(9, 9)], return_tensors=None)
    assert [tuple(one.shape) for one in loose["pixel_values"]] == [(3, 12, 8), (3, 12, 12)]


def test_resizing_is_the_protocols() -> None:
    processor = WetokImageProcessor(8, size=256, crop_size=256)
    for image in (picture(301, 400), picture(500, 260)):
        wanted = to_tensor(protocol("modern-256").prepare(image))
        assert torch.equal(processor(image)["pixel_values"][0], wanted)
    small_one = picture(40, 20)
    resized = WetokImageProcessor(4, size=10)(to_tensor(small_one))["original_sizes"]
    assert resized.tolist() == [[10, 20]]


def test_moving() -> None:
    batch = WetokImageProcessor(4)(picture(8, 8)).to(torch.float16)
    assert batch.pixel_values.dtype == torch.float16
    assert batch.original_sizes.dtype == torch.int64
    with pytest.raises(AttributeError):
        _ = batch.labels


def test_saved_and_loaded(tmp_path: Path) -> None:
    processor = WetokImageProcessor(8, size=64, crop_size=48)
    processor.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "preprocessor_config.json"
    assert json.loads(path.read_text())["image_processor_type"] == "WetokImageProcessor"
    again = WetokImageProcessor.from_pretrained(tmp_path / "model")
    assert again.to_dict() == processor.to_dict()
    for text in ("[]", "{", '{"image_processor_type": "ViTImageProcessor"}'):
        path.write_text(text)
        with pytest.raises(WetokError, match="no image processor"):
            WetokImageProcessor.from_pretrained(tmp_path / "model")
    with pytest.raises(WetokError, match="no image processor"):
        WetokImageProcessor.from_pretrained(tmp_path)


def test_mistakes() -> None:
    processor = WetokImageProcessor(4)
    with pytest.raises(WetokError, match="images of one size"):
        processor([picture(8, 8), picture(8, 16)])
    with pytest.raises(WetokError, match="return_tensors='tf'"):
        processor(picture(8, 8), return_tensors="tf")
    with pytest.raises(WetokError, match="crop_size=99 is more than"):
        WetokImageProcessor(4, crop_size=99)(picture(8, 8))
    with pytest.raises(WetokError, match="factor=0"):
        WetokImageProcessor(0)
