"""Published checkpoints: the reference vectors, every layout they come in, and what is refused."""

from __future__ import annotations

import io
import os
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import wetok
from wetok import checkpoint as folders
from wetok.config import ModelConfig, WetokError
from wetok.model.network import TokenizerNetwork
from wetok.presets import PRESETS
from wetok.released.tokenizer import infer_config, read_config, read_released

CASES = ("tiny_gq", "tiny_gd", "tiny_lfq")
TOLERANCE = 1e-4

SMALL = ModelConfig(bits=6, groups=2, channels=32, mults=(1, 2), blocks=2)
NOISY = SMALL.model_copy(update={"generative": True})


def state_of(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return TokenizerNetwork(config).state_dict()


def averages(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"model_ema." + name.replace(".", ""): tensor for name, tensor in state.items()}


def published(config: ModelConfig = SMALL, halves: tuple[str, ...] = ("encoder", "decoder")) -> Any:
    """A checkpoint in the published layout, whose averages cover `halves`."""
    ema = {name: t for name, t in state_of(config, 2).items() if name.startswith(halves)}
    return {
        "epoch": 3,
        "global_step": 77,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": OrderedDict(
            **state_of(config, 1),
            **{"loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4)},
            **{"loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1, 64, 1, 1)},
            **{"model_ema.decay": torch.tensor(0.999)},
            **{"model_ema.num_updates": torch.tensor(-1, dtype=torch.int)},
            **averages(ema),
            **{"model_ema.lossdiscriminatormain0weight": torch.zeros(4, 3, 4, 4)},
        ),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": None}},
        "optimizer_states": [],
    }


def written(tmp_path: Path, checkpoint: Any, **save: Any) -> Path:
    path = tmp_path / "WeTok.ckpt"
    torch.save(checkpoint, path, **save)
    return path


def same(network: TokenizerNetwork, state: dict[str, Tensor], half: str) -> bool:
    own = network.state_dict()
    return all(torch.equal(own[name], state[name]) for name in state if name.startswith(half))


# The reference vectors


@pytest.mark.parametrize("weights", ["raw", "ema"])
@pytest.mark.parametrize("case", CASES)
def test_reference_vectors(fixtures_dir, case, weights, record_property):
    folder = fixtures_dir / "released"
    network = read_released(
        folder / f"{case}.ckpt", folder / f"{case}.yaml", weights=weights
    ).network
    with np.load(folder / f"{case}.npz") as file:
        expected = {name: torch.from_numpy(file[name]) for name in file.files}
    image = expected["image_u8"].permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        latent = network.encoder(image)
        quantized = network.quantizer(latent)
        recon = network.decoder(quantized.code, expected.get(f"noise_{weights}"))
    assert torch.equal(quantized.ids.long(), expected[f"ids_{weights}"].long())
    for name, found in (("latent", latent), ("recon", recon)):
        error = (found - expected[f"{name}_{weights}"]).abs().max().item()
        record_property(f"{name} error", error)
        assert error < TOLERANCE, name


@pytest.mark.parametrize("case", CASES)
def test_tensors_tell_what_the_yaml_says(fixtures_dir, case):
    folder = fixtures_dir / "released"
    told = read_config(folder / f"{case}.yaml")
    assert told.generative == (case == "tiny_gd")
    inferred = read_released(folder / f"{case}.ckpt", groups=told.groups).network.config
    assert inferred == told


@pytest.mark.parametrize("weights", ["raw", "ema"])
@pytest.mark.parametrize("case", CASES)
def test_every_tensor_of_a_file_is_accounted_for(fixtures_dir, case, weights):
    path = fixtures_dir / "released" / f"{case}.ckpt"
    read = read_released(path, path.with_suffix(".yaml"), weights=weights)
    state = torch.load(path, weights_only=True)["state_dict"]
    assert read.report.used == sum(name.startswith(("encoder.", "decoder.")) for name in state)
    assert read.report.used + sum(read.report.set_aside.values()) == len(state)
    assert read.report.step == 1234 and read.report.ema_updates is None


# Layouts


@pytest.mark.parametrize("config", [SMALL, NOISY])
@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_both_halves_come_from_the_weights_asked_for(tmp_path, config, weights):
    read = read_released(written(tmp_path, published(config)), groups=2, weights=weights)
    assert same(read.network, state_of(config, 1 if weights == "raw" else 2), "")
    assert (read.report.encoder, read.report.decoder) == (weights, weights)
    assert not read.network.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in read.network.parameters())


def test_a_second_stage_has_its_encoder_from_the_raw_weights(tmp_path):
    path = written(tmp_path, published(NOISY, halves=("decoder",)))
    read = read_released(path, NOISY)
    assert same(read.network, state_of(NOISY, 1), "encoder")
    assert same(read.network, state_of(NOISY, 2), "decoder")
    assert (read.report.encoder, read.report.decoder) == ("raw", "ema")
    decoders = sum(name.startswith("decoder") for name in state_of(NOISY, 1))
    assert read.report.set_aside == {
        "losses": 2,
        "EMA counters": 2,
        "EMA of the losses": 1,
        "raw weights of the decoder": decoders,
    }


def test_averages_of_the_encoder_alone_do_not_pass_for_the_decoder(tmp_path):
    path = written(tmp_path, published(halves=("encoder",)))
    with pytest.raises(WetokError, match=r"\d+ missing: model_ema.decoderconv_inweight, "):
        read_released(path, SMALL)


def test_averages_alone_are_enough(tmp_path):
    checkpoint = {"state_dict": averages(state_of(SMALL, 2))}
    read = read_released(written(tmp_path, checkpoint), groups=2)
    assert same(read.network, state_of(SMALL, 2), "")
    assert read.report.ema_decay is None and read.report.step is None
    with pytest.raises(WetokError, match="weights='raw', but its encoder is there as 'ema' only"):
        read_released(tmp_path / "WeTok.ckpt", groups=2, weights="raw")


def test_without_averages_raw_must_be_asked_for(tmp_path):
    path = written(tmp_path, {"state_dict": state_of(SMALL, 1)})
    with pytest.raises(WetokError, match="no averaged weights; take 'raw'"):
        read_released(path, SMALL)
    assert same(read_released(path, SMALL, weights="raw").network, state_of(SMALL, 1), "")


def test_a_bare_state_dict_is_read_too(tmp_path):
    path = written(tmp_path, published()["state_dict"])
    assert same(read_released(path, SMALL).network, state_of(SMALL, 2), "")


def test_the_old_file_format_is_read_too(tmp_path):
    path = written(tmp_path, published(), _use_new_zipfile_serialization=False)
    assert same(read_released(path, SMALL).network, state_of(SMALL, 2), "")


def test_half_precision_is_widened(tmp_path):
    state = {name: tensor.half() for name, tensor in averages(state_of(SMALL, 2)).items()}
    network = read_released(written(tmp_path, {"state_dict": state}), SMALL).network
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    halved = {name: tensor.half().float() for name, tensor in state_of(SMALL, 2).items()}
    assert same(network, halved, "")


def test_the_network_outlives_its_file(tmp_path):
    path = written(tmp_path, published())
    network = read_released(path, SMALL).network
    with open(path, "r+b") as file:  # the file is mapped while it is read
        file.write(os.urandom(path.stat().st_size))
    assert same(network, state_of(SMALL, 2), "")


def test_updates_are_reported_where_they_were_counted(tmp_path):
    checkpoint = published()
    checkpoint["state_dict"]["model_ema.num_updates"] = torch.tensor(12, dtype=torch.int)
    report = read_released(written(tmp_path, checkpoint), SMALL).report
    assert (report.ema_updates, report.step) == (12, 77)
    assert report.ema_decay == pytest.approx(0.999)


def test_known_leftovers_of_training_are_set_aside(tmp_path):
    checkpoint = published()
    leftovers = ["quantize.mask", "quantize.mask_3", "quantize.zero", "quantize.codebook"]
    leftovers += ["quantize.pre_mask", "quantize.post_mask"]
    metrics = ["lpips_vgg.lin0.weight", "inception_model.fc.bias", "colorize"]
    checkpoint["state_dict"] |= {name: torch.zeros(2) for name in leftovers + metrics}
    aside = read_released(written(tmp_path, checkpoint), SMALL).report.set_aside
    assert (aside["quantizer tables"], aside["metrics"]) == (6, 3)


# What does not fit


def edited(change: Any) -> Any:
    checkpoint = published()
    change(checkpoint["state_dict"])
    return checkpoint


CHANGES = {
    "missing": (
        lambda s: [s.pop("model_ema.encoderconv_outbias"), s.pop("model_ema.decoderconv_inbias")],
        r"2 missing: model_ema.encoderconv_outbias, model_ema.decoderconv_inbias$",
    ),
    "unexpected average": (
        lambda s: s.update({"model_ema.decoderattnweight": torch.zeros(1)}),
        r"1 unexpected: model_ema.decoderattnweight$",
    ),
    "unexpected raw": (
        lambda s: s.update({"encoder.mid.attn_1.q.weight": torch.zeros(1)}),
        r"1 unexpected: encoder.mid.attn_1.q.weight$",
    ),
    "a learned codebook": (
        lambda s: s.update({"quantize.embedding.weight": torch.zeros(8, 6)}),
        r"1 unexpected: quantize.embedding.weight$",
    ),
    "an unknown part": (
        lambda s: s.update({"post_quant_conv.weight": torch.zeros(1)}),
        r"1 unexpected: post_quant_conv.weight$",
    ),
    "no tensor": (
        lambda s: s.update({"decoder.conv_in.weight": "none"}),
        r"1 unexpected: decoder.conv_in.weight$",
    ),
    "another shape": (
        lambda s: s.update({"model_ema.decodernorm_outbias": torch.zeros(7)}),
        r"1 of another shape: model_ema.decodernorm_outbias \[7\] instead of \[32\]$",
    ),
    "several": (
        lambda s: [s.pop("model_ema.decodernorm_outbias"), s.update(extra=torch.zeros(1))],
        r"1 missing: model_ema.decodernorm_outbias; 1 unexpected: extra$",
    ),
    "many": (
        lambda s: [s.pop(key) for key in list(s) if "model_ema.encodermid" in key],
        r"12 missing: (\S+, ){2}\S+ \(and 9 more\)$",
    ),
    "not finite": (
        lambda s: s["model_ema.encoderconv_outbias"].fill_(float("nan")),
        r"encoder.conv_out.bias holds NaN or Inf",
    ),
    "whole numbers": (
        lambda s: s.update({"model_ema.encoderconv_outbias": torch.zeros(6, dtype=torch.int8)}),
        r"encoder.conv_out.bias holds torch.int8, not floating-point",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_does_not_fit_is_listed_by_name(tmp_path, what):
    change, message = CHANGES[what]
    path = written(tmp_path, edited(change))
    with pytest.raises(WetokError, match=message) as caught:
        read_released(path, SMALL)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_raw_weights_are_checked_as_strictly(tmp_path):
    path = written(tmp_path, edited(lambda s: s.pop("decoder.up.1.upsample.conv1.bias")))
    with pytest.raises(WetokError, match=r"1 missing: decoder.up.1.upsample.conv1.bias$"):
        read_released(path, SMALL, weights="raw")
    read_released(path, SMALL)  # the averages are whole


def test_another_config_is_told_beside_the_one_that_fits(tmp_path):
    path = written(tmp_path, published())
    wrong = SMALL.model_copy(update={"mults": (1, 2, 2), "generative": True})
    with pytest.raises(WetokError) as caught:
        read_released(path, wrong)
    message = str(caught.value)
    assert "generative model's of 6 bits, 32 channels, mults 1-2-2, 2 blocks" in message
    assert "but a deterministic model's of 6 bits, 32 channels, mults 1-2, 2 blocks" in message
    assert re.search(r"\(and \d+ more\)", message) and len(message) < 1500


def test_groups_must_be_told_and_must_agree(tmp_path):
    path = written(tmp_path, published())
    with pytest.raises(WetokError, match=r"groups is missing.*6 bits a position.*--groups"):
        read_released(path)
    with pytest.raises(WetokError, match="groups=4 must divide bits=6"):
        read_released(path, groups=4)
    with pytest.raises(WetokError, match="groups=3 contradicts the settings' 2"):
        read_released(path, SMALL, groups=3)
    with pytest.raises(WetokError, match="weights='EMA' must be 'ema' or 'raw'"):
        read_released(path, SMALL, weights="EMA")  # type: ignore[arg-type]


# Files that are no checkpoints


class Attack:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["WETOK_TEST_ATTACK"],)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_checkpoint_is_named_and_not_run(tmp_path, monkeypatch, new_format):
    monkeypatch.setenv("WETOK_TEST_ATTACK", str(tmp_path / "attacked"))
    checkpoint = published() | {"hyper_parameters": Attack()}
    path = written(tmp_path, checkpoint, _use_new_zipfile_serialization=new_format)
    with pytest.raises(WetokError, match=r"objects of type (posix|nt|os)\.mkdir.*state_dict") as e:
        read_released(path, SMALL)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "attacked").exists()


def test_numpy_scalars_are_named(tmp_path):
    path = written(tmp_path, published() | {"best": np.float64(1.5)})
    with pytest.raises(WetokError, match=r"type numpy\.\S*scalar"):
        read_released(path, SMALL)


def test_files_that_are_no_checkpoints_end_in_one_line(tmp_path):
    whole = io.BytesIO()
    torch.save(published(), whole)
    files = {
        "empty": b"",
        "text": b"hello, this is no checkpoint\n" * 9,
        "cut": whole.getvalue()[: len(whole.getvalue()) // 2],
        "zip": b"PK\x03\x04" + b"\0" * 64,
        "pickle": pickle.dumps({"a": 1}, protocol=2),
        "list": None,
        "none": None,
        "tensors": None,
    }
    torch.save([1, 2], tmp_path / "list")
    torch.save({"state_dict": {"a": 1}}, tmp_path / "none")
    torch.save({"state_dict": {"first_stage_model.a": torch.zeros(1)}}, tmp_path / "tensors")
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        for config in (SMALL, None):
            with pytest.raises(WetokError, match=name) as caught:
                read_released(tmp_path / name, config, groups=2)
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 500, name
    for missing in (tmp_path, tmp_path / "absent.ckpt"):
        with pytest.raises(WetokError, match="no such file"):
            read_released(missing, SMALL)


# Settings


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        state = TokenizerNetwork(config).state_dict()
    return {name.replace(".", ""): tuple(tensor.shape) for name, tensor in state.items()}


CONFIGS = st.builds(
    ModelConfig,
    bits=st.integers(1, 12),
    groups=st.just(1),
    channels=st.integers(8, 40),
    mults=st.lists(st.integers(1, 3), min_size=1, max_size=12).map(tuple),
    blocks=st.integers(1, 12),
    generative=st.booleans(),
)


@settings(max_examples=8, deadline=None)
@given(config=CONFIGS)
def test_settings_follow_from_shapes_and_names_survive_without_dots(config):
    with torch.device("meta"):
        names = TokenizerNetwork(config).state_dict()
    shapes = shapes_of(config)
    assert len(shapes) == len(names)  # no two fall together
    assert infer_config(shapes, 1, Path("file")) == config


@pytest.mark.parametrize("name", [name for name in PRESETS if not name.startswith("tiny-")])
def test_every_published_shape_is_recognised(name):
    config = PRESETS[name]
    assert infer_config(shapes_of(config), config.groups, Path("file")) == config


def test_shapes_of_other_models_are_refused():
    shapes = shapes_of(SMALL)
    video = shapes | {"encoderconv_inweight": (32, 3, 3, 3, 3)}
    with pytest.raises(WetokError, match=r"encoder.conv_in.weight.*a video tokenizer has five"):
        infer_config(video, 2, Path("file"))
    with pytest.raises(WetokError, match="takes 9 channels, which must be .* 6 bits .* 12"):
        infer_config(shapes | {"decoderconv_inweight": (64, 9, 3, 3)}, 2, Path("file"))
    with pytest.raises(WetokError, match=r"\[32, 48\] wide must be multiples .* 32"):
        odd = shapes | {"encoderdown1block0conv1weight": (48, 32, 3, 3)}
        infer_config(odd, 2, Path("file"))
    with pytest.raises(WetokError, match="no decoder.conv_in.weight in it"):
        del shapes["decoderconv_inweight"]
        infer_config(shapes, 2, Path("file"))


def test_a_stray_index_asks_for_no_giant_network(tmp_path):
    state = averages(state_of(SMALL, 2))
    state["model_ema.encoderdown1block999999999conv1weight"] = torch.zeros(64, 64, 3, 3)
    path = written(tmp_path, {"state_dict": state})
    with pytest.raises(WetokError, match="unexpected: .*block999999999conv1weight"):
        read_released(path, groups=2)


def released_yaml(**init: Any) -> dict[str, Any]:
    shape = {
        "double_z": False,
        "z_channels": 32,
        "resolution": 128,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 256,
        "ch_mult": [1, 2, 2, 4],
        "num_res_blocks": 4,
    }
    args = {"n_embed": 256, "embed_dim": 32, "num_codebooks": 4, "learning_rate": 1e-4} | init
    return {"ddconfig": shape | args.pop("ddconfig", {}), **args}


def wetok_layout(**init: Any) -> dict[str, Any]:
    path = "src.WeTok.models.lfqgan.VQModel"
    return {
        "seed_everything": True,
        "trainer": {"callbacks": [{"class_path": "a.b", "init_args": {"dirpath": "."}}]},
        "model": {"class_path": path, "init_args": released_yaml(**init)},
        "ckpt_path": None,
    }


def from_yaml(tmp_path: Path, tree: Any) -> ModelConfig:
    path = tmp_path / "released.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return read_config(path)


def test_yaml_of_wetok(tmp_path):
    assert from_yaml(tmp_path, wetok_layout()) == PRESETS["general-48x"]
    deep = {"ch_mult": [1, 1, 2, 2, 4, 8]}
    assert (
        from_yaml(tmp_path, wetok_layout(ddconfig=deep, gan_decoder=True))
        == (PRESETS["general-768x"])
    )


def test_yaml_of_the_generative_decoders_training_code(tmp_path):
    tree = wetok_layout()
    tree["model"]["class_path"] = "src.WeTok.models.lfqgan_pretrain_gan_decoder.VQModel"
    assert from_yaml(tmp_path, tree).generative
    tree["model"]["class_path"] = "src.WeTok.models.lfqgan_pretrain.VQModel"
    assert not from_yaml(tmp_path, tree).generative


def test_yaml_of_open_magvit2_has_no_number_of_codebooks(tmp_path):
    shape = {"z_channels": 18, "ch": 128, "ch_mult": [1, 1, 2, 2, 4]}
    tree = wetok_layout(n_embed=2**18, embed_dim=18, ddconfig=shape)
    del tree["model"]["init_args"]["num_codebooks"]
    assert from_yaml(tmp_path, tree) == PRESETS["open-magvit2-f16"]


def test_yaml_of_a_generator_holds_its_tokenizers(tmp_path):
    stage = {"target": "src.WeTok.models.lfqgan.VQModel", "params": released_yaml(use_GFQ=True)}
    tree = {"model": {"class_path": "x.GPT", "init_args": {"first_stage_config": stage}}}
    assert from_yaml(tmp_path, tree) == PRESETS["general-48x"]


BAD_YAML = {
    "text": ("a sentence", "0 blocks hold a ddconfig"),
    "broken": ("a: [1", "not YAML"),
    "empty": ("", "0 blocks hold a ddconfig"),
    "two": ({"a": released_yaml(), "b": released_yaml()}, "2 blocks hold a ddconfig"),
    "no channels": (wetok_layout(ddconfig={"ch": None}), "ch=None must be a whole number"),
    "text for bits": (wetok_layout(embed_dim="${dim}"), "embed_dim='\\${dim}' must be a whole"),
    "a vector quantizer": (
        wetok_layout(n_embed=16384, embed_dim=256, ddconfig={"z_channels": 256}, num_codebooks=1),
        "n_embed=16384.*a lookup-free quantizer has",
    ),
    "groups": (wetok_layout(num_codebooks=5), "num_codebooks=5: a lookup-free quantizer"),
    "no groups": (wetok_layout(num_codebooks=0), "num_codebooks=0: a lookup-free quantizer"),
    "projection": (wetok_layout(ddconfig={"z_channels": 64}), "z_channels=64.*embed_dim = z_"),
    "grey": (wetok_layout(ddconfig={"in_channels": 1}), "in_channels=1 must be 3"),
    "no levels": (wetok_layout(ddconfig={"ch_mult": []}), "released.yaml: setting mults="),
    "no blocks": (wetok_layout(ddconfig={"num_res_blocks": 0}), "released.yaml: setting blocks=0"),
}


@pytest.mark.parametrize("what", BAD_YAML)
def test_yaml_that_tells_no_tokenizer_is_one_line(tmp_path, what):
    tree, message = BAD_YAML[what]
    with pytest.raises(WetokError, match=message) as caught:
        from_yaml(tmp_path, tree)
    assert "\n" not in str(caught.value) and "released.yaml" in str(caught.value)


def test_yaml_that_is_not_there(tmp_path):
    with pytest.raises(WetokError, match="config=.*absent.yaml: no such file"):
        read_config(tmp_path / "absent.yaml")


# The command


def run(*args: object) -> int:
    from wetok.cli import main

    with pytest.raises(SystemExit) as caught:
        main([str(arg) for arg in args])
    code = caught.value.code
    return code if isinstance(code, int) else 0


def test_import_writes_a_model_that_gives_the_reference_ids(fixtures_dir, tmp_path, capsys):
    folder = fixtures_dir / "released"
    out = tmp_path / "models" / "tiny"
    config = folder / "tiny_gd.yaml"
    assert run("import", folder / "tiny_gd.ckpt", "--config", config, "-o", out) == 0
    told = capsys.readouterr().out
    for part in (
        "32 bits in 4 groups, factor 2, ratio 3, generative",
        "used: 61 tensors, 534,275 parameters",
        "encoder: averaged weights (EMA)",
        "16 losses",
        "EMA: decay 0.999",
        f"wetok reconstruct PHOTO -m {out}",
    ):
        assert part in told, part

    tokenizer = wetok.load(out)
    assert tokenizer.name == "tiny" and tokenizer.fingerprint in told
    with np.load(folder / "tiny_gd.npz") as file:
        images, ids = file["image_u8"], file["ids_ema"]
    tokens = tokenizer.encode(images)
    assert np.array_equal(tokens.ids.numpy(), ids)
    assert tokenizer.decode(tokens, output="uint8").shape == (2, 3, *images.shape[1:3])
    assert "tiny_gd.ckpt" in (out / folders.CARD).read_text()


def test_import_overwrites_only_when_told(tmp_path, capsys):
    path, out = written(tmp_path, published()), tmp_path / "model"
    assert run("import", path, "--groups", 2, "-o", out, "--name", "mine") == 0
    first = folders.read_config(out)
    assert first.name == "mine"
    assert run("import", path, "--groups", 2, "-o", out, "--weights", "raw") == 2
    assert "--force" in capsys.readouterr().err
    assert folders.read_config(out) == first
    assert run("import", path, "--groups", 2, "-o", out, "--weights", "raw", "--force") == 0
    assert folders.read_config(out).fingerprint != first.fingerprint


def test_import_tells_where_a_frozen_encoder_comes_from(tmp_path, capsys):
    path = written(tmp_path, published(NOISY, halves=("decoder",)))
    assert run("import", path, "--groups", 2, "-o", tmp_path / "model") == 0
    told = capsys.readouterr().out
    assert "encoder: raw weights, as it was frozen and has no average" in told
    assert "decoder: averaged weights (EMA)" in told


def test_import_takes_a_presets_name_for_the_settings(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(PRESETS, "small", SMALL)
    path = written(tmp_path, published())
    assert run("import", path, "--config", "small", "-o", tmp_path / "model") == 0
    assert "deterministic (small)" in capsys.readouterr().out
    assert run("import", path, "--config", "general-48x", "-o", tmp_path / "other") == 2
    assert "256 channels, mults 1-2-2-4" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_import_mistakes_are_one_line(tmp_path, capsys):
    path = written(tmp_path, published())
    for arguments, message in (
        ((path,), "groups is missing"),
        ((path, "--groups", 2, "--weights", "best"), "weights='best' must be 'ema' or 'raw'"),
        ((path, "--config", tmp_path / "no.yaml"), "no such file"),
        ((tmp_path / "no.ckpt", "--groups", 2), "no such file"),
    ):
        assert run("import", *arguments, "-o", tmp_path / "model") == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert not (tmp_path / "model").exists()


def test_import_help_has_an_example(capsys):
    assert run("import", "--help") == 0
    assert "Example: wetok import" in capsys.readouterr().out


def test_the_docs_tell_how_to_import_every_published_preset(repo):
    text = (repo / "docs" / "released.md").read_text()
    for name in PRESETS:
        if not name.startswith("tiny-"):
            assert re.search(
                rf"^wetok import \S+\.ckpt --config {name} -o models/{name}$", text, re.M
            )
