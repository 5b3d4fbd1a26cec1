"""Systems that are not ours: each kind against the other package's own output, and its mistakes."""

from __future__ import annotations

import io
import math
import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from wetok.cli import main
from wetok.config import ModelConfig, WetokError
from wetok.data.images import load_image, to_tensor
from wetok.data.transforms import center_crop
from wetok.evaluate.evaluation import Evaluation
from wetok.evaluate.others import open_system
from wetok.evaluate.protocols import protocol
from wetok.evaluate.systems import System, TokenizerSystem
from wetok.model.network import TokenizerNetwork

SIZES = [(300, 270), (41, 57), (64, 48)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index, size in enumerate(SIZES):
        pixels = np.random.default_rng(index).integers(0, 256, (5, 6, 3), np.uint8)
        photo = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        photo.save(folder / f"photo {index}.png")
    return folder


def scored(system: System, photos: Path, name: str = "original") -> Evaluation:
    evaluation = Evaluation(system, protocol(name))
    evaluation.add_all(sorted(photos.iterdir()))
    return evaluation


def image(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def open_on_cpu(spec: str) -> System:
    return open_system(spec, "cpu")


# Ours


def test_ours_by_name() -> None:
    system = open_on_cpu("tiny-48x")
    assert isinstance(system, TokenizerSystem) and system.name == "tiny-48x"
    with pytest.raises(WetokError, match="no model 'tiny-49x'.*did you mean 'tiny-48x'"):
        open_on_cpu("tiny-49x")


def test_a_folder_of_ours_may_have_a_colon(tmp_path: Path) -> None:
    from wetok.checkpoint import save_folder

    config = ModelConfig(bits=4, groups=1, channels=8, mults=(1, 1), blocks=1, patch=2)
    save_folder(tmp_path / "run:3", TokenizerNetwork(config), "third")
    assert open_on_cpu(str(tmp_path / "run:3")).name == "third"


def test_open_magvit2_by_way_of_import(tmp_path: Path, photos: Path) -> None:
    """A checkpoint in the published layout, of one group as Open-MAGVIT2 has, becomes a model."""
    config = ModelConfig(bits=6, groups=1, channels=32, mults=(1, 2), blocks=2)
    torch.manual_seed(1)
    network = TokenizerNetwork(config).eval()
    state = {**network.state_dict(), "loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4)}
    torch.save({"state_dict": state, "global_step": 5}, tmp_path / "magvit.ckpt")
    arguments = ["--groups", "1", "--weights", "raw", "-o", str(tmp_path / "magvit")]
    with pytest.raises(SystemExit) as ended:
        main(["import", str(tmp_path / "magvit.ckpt"), *arguments])
    assert not ended.value.code
    system = open_on_cpu(str(tmp_path / "magvit"))
    result = system.reconstruct(image(16, 24), [0])
    with torch.no_grad():
        code = network.quantizer(network.encoder(image(16, 24))).code
        expected = network.decoder(code, None).clamp(-1, 1)
    assert torch.allclose(result.images[0], expected, atol=1e-5)
    assert result.bits == 8 * 12 * 6 and system.code_shape == (1, 6)
    assert scored(system, photos).summary()["images"] == 3


# Folders


def test_a_folder_of_crops_and_of_whole_images(tmp_path: Path, photos: Path) -> None:
    """Both ways to keep reconstructions give what is computed by hand."""
    noise = np.random.default_rng(9)
    for folder in ("whole", "crops"):
        (tmp_path / folder / "deep").mkdir(parents=True)
    expected = []
    for index, path in enumerate(sorted(photos.iterdir())):
        original = load_image(path)
        pixels = np.asarray(original).astype(int)
        again = Image.fromarray(
            (pixels + noise.integers(-20, 21, pixels.shape)).clip(0, 255).astype(np.uint8)
        )
        suffix = ("png", "webp", "bmp")[index]
        options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
        again.save(tmp_path / "whole" / f"{path.stem}.{suffix}", **options)
        again = center_crop(again, 256)
        again.save(tmp_path / "crops" / "deep" / f"{path.stem}.png")
        error = np.asarray(center_crop(original, 256)).astype(float) - np.asarray(again)
        expected.append(10 * math.log10(255**2 / np.mean(error**2)))
    fingerprints = set()
    for folder in ("whole", "crops"):
        system = open_on_cpu(f"folder:{tmp_path / folder}?bpp=0.25")
        evaluation = scored(system, photos, "modern-256")
        summary = evaluation.summary()
        assert [row["psnr"] for row in evaluation.images] == pytest.approx(expected, abs=1e-9)
        assert (summary["bpp"], summary["ratio"]) == (0.25, 96)
        assert summary["encode_seconds"] is None and "usage" not in summary
        fingerprints.add(summary["fingerprint"])
    assert len(fingerprints) == 2


def test_a_folders_fingerprint_follows_its_pixels(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    first = open_on_cpu(f"folder:{tmp_path}").fingerprint
    assert open_on_cpu(f"folder:{tmp_path}").fingerprint == first
    assert open_on_cpu(f"folder:{tmp_path}?bpp=1").fingerprint != first
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    assert open_on_cpu(f"folder:{tmp_path}").fingerprint != first


def test_bytes_of_compressed_files(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "decoded").mkdir()
    (tmp_path / "packed").mkdir()
    for index, path in enumerate(sorted(photos.iterdir())):
        shutil.copy(path, tmp_path / "decoded" / path.name)
        (tmp_path / "packed" / f"{path.stem}.bin").write_bytes(bytes(100 * (index + 1)))
    system = open_on_cpu(f"folder:{tmp_path / 'decoded'}?files={tmp_path / 'packed'}")
    summary = scored(system, photos).summary()
    pixels = sum(width * height for width, height in SIZES)
    assert summary["coded_bpp"] == pytest.approx(8 * 600 / pixels, rel=1e-12)
    assert summary["bpp"] is None and summary["psnr"] == math.inf
    cropped = scored(system, photos, "modern-256")
    for row, size, count in zip(cropped.images, SIZES, (100, 200, 300), strict=True):
        assert row["coded_bytes"] == round(count * 256 * 256 / (size[0] * size[1]))


def test_what_a_folder_lacks_fails_by_image(tmp_path: Path, photos: Path) -> None:
    shutil.copy(photos / "photo 0.png", tmp_path)
    Image.new("RGB", (40, 57)).save(tmp_path / "photo 1.png")
    evaluation = scored(open_on_cpu(f"folder:{tmp_path}"), photos, "modern-256")
    assert len(evaluation.images) == 1 and len(evaluation.failures) == 2
    wrong, absent = evaluation.failures
    assert "has 40x57 pixels; needed are 256x256" in wrong and "or 41x57 (the original)" in wrong
    assert "no reconstruction of 'photo 2.png'" in absent


def test_one_stem_is_one_image(tmp_path: Path, photos: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(photos / "photo 0.png", tmp_path / name)
    with pytest.raises(WetokError, match="share the stem 'photo 0'"):
        open_on_cpu(f"folder:{tmp_path}")
    evaluation = Evaluation(open_on_cpu(f"folder:{photos}"), protocol("original"))
    evaluation.add_all([tmp_path / "a" / "photo 0.png", tmp_path / "b" / "photo 0.png"])
    assert len(evaluation.images) == 1 and "which one was reconstructed" in evaluation.failures[0]


# Python functions

CODE = """
import torch
from wetok.evaluate.systems import Reconstruction

def halved(device):
    return lambda image: image / 2

def sized(device):
    def there_and_back(image):
        assert image.shape[-1] % 16 == image.shape[-2] % 16 == 0
        return image.flip(-1).flip(-1) * 0.5, 3 * image.shape[-1]
    return there_and_back

def network(device):
    torch.manual_seed(SEED)
    return torch.nn.Conv2d(3, 3, 1)

class Noisy:
    name, fingerprint, generative, code_shape = "noisy", "0" * 16, True, None
    device = torch.device("cpu")
    def reconstruct(self, image, seeds):
        return Reconstruction([image * (1 - 0.1 * (seed + 1)) for seed in seeds], bits=8)

def system(device):
    return Noisy()

def none(device):
    return None

def breaks(device):
    raise RuntimeError("no weights here\\nsecond line")

def picky(device):
    def there_and_back(image):
        if image.shape[-1] < 50:
            raise ValueError("too narrow")
        return image
    return there_and_back

def small(device):
    return lambda image: image[..., ::2]

def bytes_(device):
    return lambda image: image.byte()

def numbers(device):
    return lambda image: (image, 0.5)
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder, of a name that no other test has."""
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(CODE.replace("SEED", "5"))
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_a_function(mine: str) -> None:
    before = list(sys.path)
    system = open_on_cpu(f"{mine}:halved")
    assert sys.path == before
    result = system.reconstruct(image(5, 7), [0])
    assert torch.equal(result.images[0], image(5, 7) / 2)
    assert (result.bits, result.encode_seconds, system.generative) == (None, None, False)


def test_a_function_with_bits_on_padded_images(mine: str) -> None:
    result = open_on_cpu(f"{mine}:sized?multiple=16").reconstruct(image(21, 40), [0])
    assert torch.equal(result.images[0], image(21, 40) / 2) and result.bits == 3 * 48


def test_a_network_has_its_weights_in_the_fingerprint(mine: str, tmp_path: Path) -> None:
    system = open_on_cpu(f"{mine}:network")
    torch.manual_seed(5)
    reference = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        expected = reference(image(4, 4)).clamp(-1, 1)
    assert torch.equal(system.reconstruct(image(4, 4), [0]).images[0], expected)
    first = open_on_cpu(f"{mine}:network").fingerprint
    assert first == system.fingerprint
    sys.modules[mine].SEED = 6
    source = (tmp_path / f"{mine}.py").read_text()
    (tmp_path / f"{mine}.py").write_text(source.replace("manual_seed(5)", "manual_seed(6)"))
    del sys.modules[mine]
    assert open_on_cpu(f"{mine}:network").fingerprint != first


def test_a_system_of_ones_own(mine: str, photos: Path) -> None:
    evaluation = Evaluation(open_on_cpu(f"{mine}:system"), protocol("original"), samples=3)
    evaluation.add_all(sorted(photos.iterdir()))
    summary = evaluation.summary()
    assert summary["model"] == "noisy" and summary["of_samples"]["psnr"]["spread"] > 1


def test_an_image_it_refuses_counts_as_failed(mine: str, photos: Path) -> None:
    evaluation = scored(open_on_cpu(f"{mine}:picky"), photos)
    assert len(evaluation.images) == 2
    (line,) = evaluation.failures
    assert line.endswith(
        f"photo 1.png: {mine}:picky: failed on an image of 57x41: ValueError: too narrow"
    )


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("small", r"gave \[1, 3, 8, 4\] for an image \[1, 3, 8, 8\]"),
        ("bytes_", "gave torch.uint8, not a floating-point tensor"),
        ("numbers", "bits=0.5 must be a whole number"),
    ],
)
def test_what_a_function_may_not_give(mine: str, function: str, told: str) -> None:
    with pytest.raises(WetokError, match=told):
        open_on_cpu(f"{mine}:{function}").reconstruct(image(8, 8), [0])


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("{mine}:none", r"none\(device\) gave NoneType, which can't be called"),
        ("{mine}:breaks", r"breaks\(device\) failed: RuntimeError: no weights here"),
        ("{mine}:absent", "has no function 'absent'"),
        ("no_such_module_at_all:f", "No module named 'no_such_module_at_all'"),
        ("difusers:some/vae", "did you mean 'diffusers'"),
        ("{mine}:halved?multiple=0", "multiple='0' must be a whole number above 0"),
        ("{mine}:halved?size=3", "option 'size' is not known; known: multiple"),
        ("{mine}:halved?multiple", "'multiple' must be key=value"),
        ("{mine}:halved?multiple=2&multiple=4", "given twice"),
        ("folder:", "a place must follow the colon"),
        ("folder:nowhere", "there is no folder 'nowhere'"),
        ("folder:.?bpp=much", "bpp='much' must be a number above 0"),
        ("folder:.?bpp=inf", "bpp='inf' must be a number above 0"),
        ("torchscript:nowhere", "give a folder with encoder.jit and decoder.jit"),
        ("torchscript:.", "there is no file"),
    ],
)
def test_mistakes_are_one_line(mine: str, spec: str, told: str) -> None:
    with pytest.raises(WetokError, match=told) as caught:
        open_on_cpu(spec.format(mine=mine))
    assert "\n" not in str(caught.value)


# TorchScript


class Encoder(nn.Module):
    """Discrete as Cosmos's: indices, codes and a loss, by FSQ of the given levels."""

    def __init__(self, levels: list[int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, len(levels), 8, 8)
        self.levels = torch.tensor(levels)
        self.basis = torch.tensor([math.prod(levels[:k]) for k in range(len(levels))])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        levels = self.levels[:, None, None]
        digits = (torch.sigmoid(3 * self.stem(x)) * levels).floor().clamp(min=0)
        digits = torch.minimum(digits, levels - 1)
        indices = (digits * self.basis[:, None, None]).sum(1).to(torch.int32)
        return indices, digits / levels, x.mean()


class Decoder(nn.Module):
    def __init__(self, levels: list[int]) -> None:
        super().__init__()
        self.head = nn.ConvTranspose2d(len(levels), 3, 8, 8)
        self.levels = torch.tensor(levels)
        self.basis = torch.tensor([math.prod(levels[:k]) for k in range(len(levels))])

    def forward(self, indices: Tensor) -> Tensor:
        digits = (indices[:, None] // self.basis[:, None, None]) % self.levels[:, None, None]
        return self.head(digits.float() / 8)


class Latent(nn.Module):
    """Continuous as Cosmos's: latent and moments."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        latent = self.stem(x)
        return latent, latent.mean()


def save_script(module: nn.Module, example: Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(module.eval(), example, check_trace=False).save(str(path))


def save_pair(folder: Path, levels: list[int], seed: int = 0) -> tuple[Encoder, Decoder]:
    torch.manual_seed(seed)
    folder.mkdir(exist_ok=True)
    encoder, decoder = Encoder(levels), Decoder(levels)
    save_script(encoder, image(16, 32), folder / "encoder.jit")
    save_script(decoder, encoder(image(16, 32))[0], folder / "decoder.jit")
    return encoder, decoder


@pytest.mark.parametrize("levels", [[8, 8, 8, 5, 5, 5], [8, 4, 2]])
def test_a_discrete_pair(tmp_path: Path, levels: list[int]) -> None:
    encoder, decoder = save_pair(tmp_path / "di", levels)
    written = ",".join(map(str, levels))
    system = open_on_cpu(f"torchscript:{tmp_path / 'di'}?levels={written}")
    result = system.reconstruct(image(32, 48), [0])
    with torch.no_grad():
        indices = encoder(image(32, 48))[0]
        expected = decoder(indices).clamp(-1, 1)
    assert torch.equal(result.images[0], expected)
    assert len(indices.unique()) > 5
    assert result.bits == math.ceil(4 * 6 * sum(math.log2(level) for level in levels))
    assert result.encode_seconds > 0 and result.decode_seconds > 0
    if math.prod(levels) == 64:
        assert system.code_shape == (1, 6) and torch.equal(result.ids[0, 0], indices[0])
    else:
        assert system.code_shape is None and result.ids is None


def test_sizes_that_do_not_fit_are_padded_and_cut_off(tmp_path: Path, photos: Path) -> None:
    encoder, decoder = save_pair(tmp_path / "di", [8, 4, 2])
    files = f"{tmp_path / 'di' / 'encoder.jit'},{tmp_path / 'di' / 'decoder.jit'}"
    system = open_on_cpu(f"torchscript:{files}?levels=64&multiple=8")
    result = system.reconstruct(image(21, 35), [0])
    padded = np.pad(image(21, 35).numpy(), ((0, 0), (0, 0), (0, 3), (0, 5)), "reflect")
    with torch.no_grad():
        expected = decoder(encoder(torch.from_numpy(padded))[0])[..., :21, :35].clamp(-1, 1)
    assert torch.equal(result.images[0], expected) and result.bits == 3 * 5 * 6
    summary = scored(system, photos).summary()
    assert summary["images"] == 3 and 0 < summary["usage"][0] <= 1


def test_fingerprints_of_pairs(tmp_path: Path) -> None:
    prints = set()
    for seed in (0, 1):
        save_pair(tmp_path / str(seed), [4, 4], seed)
        prints.add(open_on_cpu(f"torchscript:{tmp_path / str(seed)}").fingerprint)
    prints.add(open_on_cpu(f"torchscript:{tmp_path / '0'}?dtype=bfloat16").fingerprint)
    assert len(prints) == 3


def test_a_continuous_pair(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder, decoder = Latent(), nn.ConvTranspose2d(16, 3, 8, 8)
    save_script(encoder, image(16, 16), tmp_path / "encoder.jit")
    save_script(decoder, torch.zeros(1, 16, 2, 2), tmp_path / "decoder.jit")
    result = open_on_cpu(f"torchscript:{tmp_path}").reconstruct(image(32, 16), [0])
    with torch.no_grad():
        expected = decoder(encoder(image(32, 16))[0]).clamp(-1, 1)
    assert torch.equal(result.images[0], expected) and result.bits is None and result.ids is None
    counted = open_on_cpu(f"torchscript:{tmp_path}?latent_bits=16").reconstruct(image(32, 16), [0])
    assert counted.bits == 16 * 4 * 2 * 16
    half = open_on_cpu(f"torchscript:{tmp_path}?dtype=bfloat16").reconstruct(image(32, 16), [0])
    difference = (half.images[0] - expected).abs().max()
    assert half.images[0].dtype == torch.float32 and 0 < difference < 0.05


def test_pairs_that_are_none(tmp_path: Path) -> None:
    save_pair(tmp_path / "di", [8, 4, 2])
    with pytest.raises(WetokError, match="is not one of 4 codes"):
        open_on_cpu(f"torchscript:{tmp_path / 'di'}?levels=2,2").reconstruct(image(16, 16), [0])
    with pytest.raises(WetokError, match="levels='8,1' must be whole numbers above 1"):
        open_on_cpu(f"torchscript:{tmp_path / 'di'}?levels=8,1")
    (tmp_path / "di" / "decoder.jit").write_bytes(b"no zip at all")
    with pytest.raises(WetokError, match="decoder.jit' is no TorchScript file: RuntimeError"):
        open_on_cpu(f"torchscript:{tmp_path / 'di'}")
    save_script(nn.Conv2d(3, 3, 3, 16), image(16, 16), tmp_path / "di" / "decoder.jit")
    with pytest.raises(WetokError, match="failed on an image of 16x16: RuntimeError: ") as caught:
        open_on_cpu(f"torchscript:{tmp_path / 'di'}").reconstruct(image(16, 16), [0])
    assert "\n" not in str(caught.value)


# diffusers


def save_vae(folder: Path, kind: str = "AutoencoderKL", **changes: Any) -> Any:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    shapes: dict[str, dict[str, Any]] = {
        "AutoencoderKL": {
            "block_out_channels": (8, 8, 16),
            "down_block_types": ("DownEncoderBlock2D",) * 3,
            "up_block_types": ("UpDecoderBlock2D",) * 3,
            "latent_channels": 16,
            "norm_num_groups": 4,
            "layers_per_block": 1,
            "sample_size": 64,
        },
        "AutoencoderTiny": {
            "encoder_block_out_channels": (8, 8),
            "decoder_block_out_channels": (8, 8),
            "num_encoder_blocks": (1, 1),
            "num_decoder_blocks": (1, 1),
        },
        "AutoencoderDC": {
            "latent_channels": 8,
            "attention_head_dim": 4,
            "encoder_block_types": "ResBlock",
            "decoder_block_types": "ResBlock",
            "encoder_block_out_channels": (8, 16, 16),
            "decoder_block_out_channels": (8, 16, 16),
            "encoder_layers_per_block": (1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1),
            "encoder_qkv_multiscales": ((), (), ()),
            "decoder_qkv_multiscales": ((), (), ()),
        },
    }
    torch.manual_seed(0)
    model = getattr(diffusers, kind)(**{**shapes[kind], **changes}).eval()
    model.save_pretrained(folder)
    return model


def test_a_vae_as_sd35_and_flux_have_it(tmp_path: Path) -> None:
    """16 channels, no quant_conv; the mode of the posterior, no scaling or shift."""
    changes = {"use_quant_conv": False, "use_post_quant_conv": False}
    changes |= {"scaling_factor": 0.3611, "shift_factor": 0.1159}
    vae = save_vae(tmp_path / "pipeline" / "vae", **changes)
    for spec in (
        f"{tmp_path}/pipeline",
        f"{tmp_path}/pipeline?subfolder=vae",
        f"{tmp_path}/pipeline/vae",
    ):
        system = open_on_cpu(f"diffusers:{spec}")
        result = system.reconstruct(image(32, 24), [0])
        with torch.no_grad():
            latent = vae.encode(image(32, 24)).latent_dist.mean
            expected = vae.decode(latent).sample.clamp(-1, 1)
        assert torch.equal(result.images[0], expected)
        assert result.bits is None and system.code_shape is None and not system.generative
    counted = open_on_cpu(f"diffusers:{tmp_path}/pipeline?latent_bits=16")
    assert counted.reconstruct(image(32, 24), [0]).bits == 16 * 16 * 8 * 6


@pytest.mark.parametrize(("kind", "factor"), [("AutoencoderTiny", 2), ("AutoencoderDC", 4)])
def test_other_autoencoders(tmp_path: Path, kind: str, factor: int) -> None:
    model = save_vae(tmp_path / "ae", kind)
    result = open_on_cpu(f"diffusers:{tmp_path}/ae?latent_bits=1").reconstruct(image(16, 16), [0])
    with torch.no_grad():
        latent = getattr(model.encode(image(16, 16)), "latents" if factor == 2 else "latent")
        expected = model.decode(latent).sample.clamp(-1, 1)
    assert torch.equal(result.images[0], expected)
    assert result.bits == latent.numel() == latent.shape[1] * (16 // factor) ** 2


def test_a_vae_scores_sizes_that_do_not_fit(tmp_path: Path, photos: Path) -> None:
    vae = save_vae(tmp_path / "vae")
    evaluation = scored(open_on_cpu(f"diffusers:{tmp_path}/vae"), photos)
    assert evaluation.failures == [] and evaluation.summary()["bpp"] is None
    path = photos / "photo 1.png"
    original = to_tensor(load_image(path))[None]
    padded = np.pad(original.numpy(), ((0, 0), (0, 0), (0, 3), (0, 3)), "reflect")
    with torch.no_grad():
        latent = vae.encode(torch.from_numpy(padded)).latent_dist.mode()
        again = vae.decode(latent).sample[..., :57, :41].clamp(-1, 1)
    pixels = (((again + 1) * 127.5).round() - (original + 1) * 127.5).double()
    expected = 10 * math.log10(255**2 / pixels.square().mean().item())
    assert evaluation.images[1]["psnr"] == pytest.approx(expected, abs=1e-3)


def test_a_vaes_fingerprint_follows_weights_and_type(tmp_path: Path) -> None:
    vae = save_vae(tmp_path / "vae")
    first = open_on_cpu(f"diffusers:{tmp_path}/vae").fingerprint
    shutil.copytree(tmp_path / "vae", tmp_path / "copy")
    assert open_on_cpu(f"diffusers:{tmp_path}/copy").fingerprint == first
    assert open_on_cpu(f"diffusers:{tmp_path}/copy?dtype=bfloat16").fingerprint != first
    with torch.no_grad():
        vae.decoder.conv_out.bias[0] += 1e-3
    vae.save_pretrained(tmp_path / "copy")
    assert open_on_cpu(f"diffusers:{tmp_path}/copy").fingerprint != first


def test_what_is_no_vae(tmp_path: Path) -> None:
    save_vae(tmp_path / "vae")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WetokError, match="no autoencoder in diffusers' layout can be read") as told:
        open_on_cpu(f"diffusers:{tmp_path}/empty")
    assert "\n" not in str(told.value)
    with pytest.raises(WetokError, match="is no folder, and no Hub id"):
        open_on_cpu(f"diffusers:{tmp_path}/nowhere")
    config = (tmp_path / "vae" / "config.json").read_text()
    (tmp_path / "vae" / "config.json").write_text(config.replace("AutoencoderKL", "UNet2DModel"))
    with pytest.raises(WetokError, match="a UNet2DModel is no autoencoder that is known"):
        open_on_cpu(f"diffusers:{tmp_path}/vae")
    with pytest.raises(WetokError, match="dtype='int8' must be float32, float16, bfloat16"):
        open_on_cpu(f"diffusers:{tmp_path}/vae?dtype=int8")


def test_only_safetensors_are_read(tmp_path: Path) -> None:
    """A pickle could hold code."""
    vae = save_vae(tmp_path / "vae")
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(vae.state_dict(), tmp_path / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(WetokError, match="safetensors"):
        open_on_cpu(f"diffusers:{tmp_path}/vae")


# The document


def test_the_documents_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: Path
) -> None:
    root = Path(__file__).resolve().parent.parent.parent
    text = (root / "docs" / "other-tokenizers.md").read_text("utf-8")
    example, from_python = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "mytokenizer.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    try:
        system = open_on_cpu("mytokenizer:open")
    finally:
        sys.modules.pop("mytokenizer", None)
    path = photos / "photo 0.png"
    result = system.reconstruct(to_tensor(load_image(path))[None], [0])
    file = io.BytesIO()
    load_image(path).save(file, "JPEG", quality=50)
    assert result.bits == 8 * len(file.getvalue())
    file.seek(0)
    assert torch.allclose(result.images[0], to_tensor(load_image(file))[None], atol=1e-6)
    exec(compile(from_python, "other-tokenizers.md", "exec"), {"__name__": "snippet"})


def test_the_document_names_every_option() -> None:
    root = Path(__file__).resolve().parent.parent.parent
    text = (root / "docs" / "other-tokenizers.md").read_text("utf-8")
    for file in (root / "wetok" / "evaluate").glob("from_*.py"):
        (known,) = re.findall(r"Options\(spec, options, \((.*?)\)\)", file.read_text("utf-8"))
        for option in re.findall(r'"(\w+)"', known):
            assert f"`{option}`" in text or f"{option}=" in text, option
