"""A model folder on disk and on the Hub: config.json + model.safetensors (+ README.md, tables).

`docs/formats.md` describes the folder and the fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

from pydantic import Field, field_validator

from wetok.config import ModelConfig, Settings, WetokError, near, validate

if TYPE_CHECKING:
    from torch import Tensor, nn

    from wetok.codec.tables import CodingTables
    from wetok.model.network import TokenizerNetwork
    from wetok.model.tokenizer import Tokenizer

FORMAT = 1
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
TABLES = "coding.safetensors"  # may be absent: what `wetok coding` learned (`codec.tables`)
SHIPPED = Path(__file__).parent / "assets" / "models"
_CONFIG_LIMIT = 1 << 20  # bytes; a real one has a few hundred

Config = TypeVar("Config", bound=Settings)
Network = TypeVar("Network", bound="nn.Module")
Precision = Literal["float32", "float16", "bfloat16"]


class NetworkFolder(Settings):
    """What config.json says of any network."""

    format: Literal[1] = 1
    model_type: str
    name: str
    network: Settings
    precision: Precision = Field("float32", description="type the weights are stored in")
    fingerprint: str | None = Field(
        None, pattern="^[0-9a-f]{16}$", description="verified on loading; leave out to skip"
    )

    @field_validator("name")
    @classmethod
    def _usable(cls, name: str) -> str:
        check_name(name)
        return name


class FolderConfig(NetworkFolder):
    """What config.json says of a tokenizer."""

    model_type: Literal["wetok"] = "wetok"
    network: ModelConfig
    decodes: tuple[Annotated[str, Field(pattern="^[0-9a-f]{16}$")], ...] = Field(
        (), description="fingerprints of models with the same encoder, whose tokens it reads too"
    )


def check_name(name: str) -> None:
    """Raises WetokError unless `name` can be a model's name, which every `.wetok` file carries."""
    if not name or not name.isprintable() or len(name.encode()) > 255:
        raise WetokError(f"model name {name!r} must be 1 to 255 bytes of printable UTF-8")


def load(
    name_or_path: str | Path,
    device: str = "cpu",
    *,
    revision: str | None = None,
    precision: str | None = None,
) -> Tokenizer:
    """The tokenizer called `name_or_path`, ready to encode and decode on `device`.

    Args:
        name_or_path: a shipped name, a model folder or a Hub id (`user/model`). A shipped name
            wins over a folder of that name; `./tiny-48x` or a Path means the folder.
        revision: branch, tag or commit on the Hub.
        precision: "float32" or "bf16" for encoding and decoding both; by default what is best for
            the device: float32 to encode, bf16 to decode where the device is faster at it.

    Raises:
        WetokError: no such model, a broken folder, the Hub can't be reached, no such device, an
            unknown precision.
    """
    import torch

    from wetok.model.tokenizer import Tokenizer

    network, name = load_network(name_or_path, revision=revision)
    try:
        network = network.to(torch.device(device))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise WetokError(f"device={device!r} can't be used: {_line(error)}; try 'cpu'") from None
    tables = find_tables(name_or_path, revision=revision)
    return Tokenizer(network, name=name, tables=tables, precision=precision)


def load_network(
    name_or_path: str | Path, *, revision: str | None = None, **hub: Any
) -> tuple[TokenizerNetwork, str]:
    """The network in evaluation mode, float32 on the CPU, and the name that tokens carry.

    The name is the folder's, or the Hub id, so that whoever meets the tokens can find the model.

    Args:
        name_or_path, revision: as in `load`.
        hub: cache_dir, force_download, local_files_only, token: as in `hf_hub_download`.

    Raises:
        WetokError: as in `load`.
    """
    name = str(name_or_path)
    if _is_hub_id(name_or_path):
        folder = _download(name, revision, hub)
        return _read_network(folder, name), name
    if revision is not None:
        raise WetokError(f"revision={revision!r} is for Hub ids (user/model), {name!r} is none")
    folder = find_folder(name_or_path)
    return _read_network(folder, str(folder)), read_config(folder).name


def find_tables(
    name_or_path: str | Path, *, revision: str | None = None, **hub: Any
) -> CodingTables | None:
    """The tables for entropy coding in a model's folder, or None where it has none.

    Args:
        name_or_path, revision, hub: as in `load_network`.

    Raises:
        WetokError: no such model, or broken tables.
    """
    from wetok.codec.tables import CodingTables

    if not _is_hub_id(name_or_path):
        path = find_folder(name_or_path) / TABLES
        return CodingTables.read(path) if path.exists() else None
    from huggingface_hub import errors, hf_hub_download

    try:
        path = Path(hf_hub_download(str(name_or_path), TABLES, revision=revision, **hub))
    except (errors.HfHubHTTPError, errors.EntryNotFoundError, errors.HFValidationError, OSError):
        return None  # what else is wrong with the model, who loads it will be told
    return CodingTables.read(path)


def tables_at_hand(name: str) -> CodingTables | None:
    """The tables of the model that some tokens name, if it is shipped or in the Hub's cache."""
    try:
        if name in shipped():
            return find_tables(name)
        return find_tables(name, local_files_only=True) if _is_hub_id(name) else None
    except WetokError:
        return None


def save_folder(
    path: str | Path,
    network: TokenizerNetwork,
    name: str,
    card: str | None = None,
    precision: str = "float32",
) -> None:
    """Writes `network` as the model folder `path`, complete or not at all.

    All files are written to a hidden folder inside and then moved out, config.json last, so a
    folder that has one is whole. Other files stay; so does a README.md when `card` is None.

    Args:
        name: what tokens made by this model carry; a name, or the Hub id it is going to have.
        card: text of README.md; None writes a plain one.
        precision: type of the stored weights, float32, float16 or bfloat16. Half precision rounds
            them, which changes the fingerprint: tokens made before are then another model's.

    Raises:
        WetokError: a bad name, weights that overflow `precision`, a folder that can't be written.
    """
    state = stored(network, precision)
    config = validate(
        FolderConfig,
        {
            "name": name,
            "network": network.config.model_dump(),
            "precision": precision,
            "fingerprint": fingerprint_of(network.config, state),
            "decodes": network.decodes if _same_encoder(network, state) else (),
        },
    )
    if card is None and not os.path.exists(Path(path) / CARD):
        card = _plain_card(config, sum(tensor.numel() for tensor in state.values()))
    write_folder(Path(path), config.model_dump_json(indent=2) + "\n", state, card)


def _same_encoder(network: TokenizerNetwork, state: Mapping[str, Tensor]) -> bool:
    """Whether rounding left the encoder as it was, and with it the ids."""
    return all(
        (state[f"encoder.{name}"].to(tensor.dtype) == tensor.cpu()).all()
        for name, tensor in network.encoder.state_dict().items()
    )


def stored(network: nn.Module, precision: str) -> dict[str, Tensor]:
    """The weights of any network as they go into a file: on the CPU, rounded to `precision`.

    Raises:
        WetokError: an unknown precision, or weights that overflow it.
    """
    import torch

    if precision not in get_args(Precision):
        raise WetokError(f"precision={precision!r} must be one of {', '.join(get_args(Precision))}")
    dtype: torch.dtype = getattr(torch, precision)
    state = {}
    for key, tensor in network.state_dict().items():
        kept = tensor.detach().cpu()
        if kept.is_floating_point():
            kept = kept.to(dtype)
            if not kept.isfinite().all():
                raise WetokError(f"{key} has NaN, Inf or values that overflow {precision}")
        state[key] = kept.clone(memory_format=torch.contiguous_format)
    return state


def write_folder(
    folder: Path, config: str, state: Mapping[str, Tensor], card: str | None = None
) -> None:
    """Writes config.json, model.safetensors and README.md (unless None) as `save_folder` tells.

    Raises:
        WetokError: the folder can't be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    texts = {} if card is None else {CARD: card}
    texts[CONFIG] = config  # the last to be moved
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".wetok-", suffix=".tmp", dir=folder) as hidden:
            beside = Path(hidden)
            for name, text in texts.items():
                (beside / name).write_text(text, encoding="utf-8")
            save_file(dict(state), beside / WEIGHTS, metadata={"format": "pt"})
            usual = (beside / CONFIG).stat().st_mode
            (beside / WEIGHTS).chmod(usual)  # safetensors makes it private
            written = [WEIGHTS, *texts]
            for name in written:
                _sync(beside / name)
            # From here until the end the folder has no config.json: absent, not half new.
            (folder / CONFIG).unlink(missing_ok=True)
            for name in written:
                os.replace(beside / name, folder / name)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or _line(error)
        raise WetokError(f"{folder}: the model can't be written: {reason}") from None


def fingerprint(network: TokenizerNetwork) -> str:
    """16 hex digits over the settings and every weight; the same however the model was loaded.

    A SHA-256 over the settings and all tensors as float32; docs/formats.md has it byte by byte.
    """
    return fingerprint_of(network.config, network.state_dict())


def find_folder(name_or_path: str | Path) -> Path:
    """The folder of a shipped or local model.

    Raises:
        WetokError: there is none; near names, or all, are listed.
    """
    name = str(name_or_path)
    if isinstance(name_or_path, str) and name in shipped():
        return SHIPPED / name
    folder = Path(name_or_path).expanduser()
    if name and folder.is_dir():
        return folder
    if name and folder.exists():
        raise WetokError(
            f"{name}: is a file; a model is a folder with {CONFIG} and {WEIGHTS} (for a published "
            "checkpoint: wetok import)"
        )
    from wetok.presets import PRESETS

    if name in PRESETS:
        have = ", ".join(shipped()) or "none"
        raise WetokError(
            f"model {name!r} is a preset whose weights are not shipped (shipped: {have}); import a "
            "published checkpoint (wetok import) or train one (wetok train), then give its folder"
        )
    raise WetokError(
        f"no model {name!r}: not a shipped name, a folder or a Hub id (user/model)"
        f"{near(name, [*shipped(), *PRESETS])}"
    )


def shipped() -> list[str]:
    """Names of the models inside the package, in the order of the presets: most bits first."""
    from wetok.presets import PRESETS

    names = {path.parent.name for path in SHIPPED.glob(f"*/{CONFIG}")}
    return sorted(names, key=[*PRESETS, *sorted(names - PRESETS.keys())].index)


def read_config(folder: Path) -> FolderConfig:
    """config.json of a model folder, validated.

    Raises:
        WetokError: missing, not JSON, another library's, of a newer format, or a bad setting.
    """
    return read_settings(folder, FolderConfig)


def read_settings(folder: Path, kind: type[Config]) -> Config:
    """config.json of a folder with a network of any kind, whose fields `kind` tells.

    Raises:
        WetokError: as in `read_config`.
    """
    path = folder / CONFIG
    model_type = kind.model_fields["model_type"].default
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_CONFIG_LIMIT + 1)
    except FileNotFoundError:
        raise WetokError(f"{folder}: not a model folder: it has no {CONFIG}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise WetokError(f"{path}: can't be read: {_line(error)}") from None
    try:
        if len(text) > _CONFIG_LIMIT:
            raise WetokError(f"more than {_CONFIG_LIMIT} characters")
        tree = json.loads(text)
        if not isinstance(tree, dict):
            raise WetokError("not a JSON object")
        if tree.get("model_type") != model_type:
            raise WetokError(f"model_type is {tree.get('model_type')!r}, not {model_type!r}")
        if isinstance(tree.get("format"), int) and tree["format"] > FORMAT:
            raise WetokError(f"format {tree['format']} is newer than {FORMAT}: update wetok")
        return validate(kind, tree)
    except WetokError as error:
        raise WetokError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise WetokError(f"{path}: not JSON: {_line(error)}") from None


@contextmanager
def written_beside(path: str | Path) -> Iterator[Path]:
    """A new path beside `path` to write to; renamed over it when the block ends well.

    Whatever happens, `path` is either what it was or complete on the disk.

    Raises:
        WetokError: `path` or its folder can't be written.
    """
    target = Path(os.path.realpath(path))  # writes through a link, as open() does
    beside = target.with_name(f".wetok-{secrets.token_hex(6)}.tmp")
    try:
        if target.exists() and not target.is_file():
            raise WetokError(f"{path}: can't be written: not a regular file")
        try:
            yield beside
            _sync(beside)
            os.replace(beside, target)
        finally:
            beside.unlink(missing_ok=True)
        _sync(target.parent)
    except OSError as error:
        raise WetokError(f"{path}: can't be written: {error.strerror or _line(error)}") from None


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if os.name == "nt":  # which syncs no read-only handle and has none on a folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fingerprint_of(config: Settings, state: Mapping[str, Tensor]) -> str:
    """`fingerprint` of any network's settings and weights."""
    import torch

    # Only what differs from the defaults: a setting added later changes no old fingerprint.
    settings = config.model_dump(mode="json", exclude_defaults=True)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu()
        kind, dtype, layout = (
            ("f32", torch.float32, "<f4")
            if tensor.is_floating_point()
            else ("i64", torch.int64, "<i8")
        )
        shape = "x".join(str(side) for side in tensor.shape)
        digest.update(f"\n{name} {kind} {shape}\n".encode())
        digest.update(tensor.to(dtype).contiguous().numpy().astype(layout, copy=False).data)
    return digest.hexdigest()[:16]


def _read_network(folder: Path, source: str) -> TokenizerNetwork:
    """The network in `folder`; errors speak of `source`."""
    from wetok.model.network import TokenizerNetwork

    config = read_config(folder)

    def build(tensors: int) -> TokenizerNetwork:
        _check_plausible(config.network, tensors, source)
        return TokenizerNetwork(config.network)

    network = read_weights(folder, source, build, config.network, config.fingerprint)
    network.decodes = config.decodes
    return network


def read_weights(
    folder: Path,
    source: str,
    build: Callable[[int], Network],
    settings: Settings,
    fingerprint: str | None,
) -> Network:
    """The network that `build` makes, in float32 and with the weights in `folder`.

    Args:
        source: what errors call the folder.
        build: makes it on the device "meta"; given the number of tensors in the file.
        settings, fingerprint: what the weights must belong to; None is not checked.

    Raises:
        WetokError: broken weights, or another network's.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS
    if not path.is_file():
        raise WetokError(f"{source}: incomplete model folder: it has no {WEIGHTS}")
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in names}
            # On "meta" nothing is allocated or drawn at random before the shapes are known to fit.
            with torch.device("meta"):
                network = build(len(shapes))
            wanted = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
            _check_shapes(shapes, wanted, source)
            state = {key: file.get_tensor(key) for key in shapes}
    except (SafetensorError, OSError) as error:
        raise WetokError(f"{path}: broken weights: {_line(error)}; copy the file again") from None
    except (RuntimeError, OverflowError, TypeError) as error:  # torch's, for absurd sizes
        raise WetokError(f"{folder / CONFIG}: no network can be built: {_line(error)}") from None
    for key, tensor in state.items():
        # Copies, as what safetensors gives are views of the file.
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        state[key] = tensor.to(dtype, copy=True)
    if fingerprint not in (None, found := fingerprint_of(settings, state)):
        raise WetokError(
            f"{source}: {WEIGHTS} and {CONFIG} do not belong together, or one was altered: the "
            f"fingerprint is {found}, not {fingerprint}; copy both again"
        )
    network.load_state_dict(state, assign=True)
    return network.eval()


def _check_plausible(config: ModelConfig, tensors: int, source: str) -> None:
    """Refuses settings of far more layers than there are tensors before building any."""
    blocks = max(config.blocks, config.decoder_blocks or 0)
    if blocks * len(config.mults) > tensors:
        raise WetokError(
            f"{source}: {CONFIG} asks for {blocks} blocks on each of {len(config.mults)} levels, "
            f"and {WEIGHTS} has only {tensors} tensors"
        )


def _check_shapes(
    stored: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], source: str
) -> None:
    for what, names in (
        ("lacks", sorted(wanted.keys() - stored.keys())),
        ("has unknown", sorted(stored.keys() - wanted.keys())),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise WetokError(f"{source}: {WEIGHTS} {what} {', '.join(names[:3])}{more}")
    for key, shape in wanted.items():
        if stored[key] != shape:
            raise WetokError(
                f"{source}: {key} has shape {list(stored[key])} in {WEIGHTS}, {CONFIG} asks for "
                f"{list(shape)}"
            )


def _is_hub_id(name: str | Path) -> bool:
    return (
        isinstance(name, str)
        and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) is not None
        and not os.path.exists(name)
    )


def _download(repo: str, revision: str | None, hub: Mapping[str, Any]) -> Path:
    """The folder in the Hub's cache with config.json and model.safetensors of one commit."""
    from huggingface_hub import errors, hf_hub_download

    # The transport's own base class (a connection that breaks midway): which library it is
    # depends on the version of huggingface_hub.
    transport: Any = errors.HfHubHTTPError.__bases__[0]
    at = f"{repo!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        folder = Path(hf_hub_download(repo, CONFIG, revision=revision, **hub)).parent
        read_config(folder)  # another library's model is refused before its weights are fetched
        hf_hub_download(repo, WEIGHTS, revision=folder.name, **hub)  # of the same commit
        return folder
    except errors.GatedRepoError:
        remedy = "ask for access on its page and log in (hf auth login)"
        raise WetokError(f"model {at} is gated on the Hub: {remedy}") from None
    except errors.RepositoryNotFoundError:
        raise WetokError(
            f"no model {at}: there is no such folder here, and on the Hub none or a private one; "
            "check the spelling or log in (hf auth login)"
        ) from None
    except errors.RevisionNotFoundError:
        raise WetokError(f"model {at}: the Hub has no such revision") from None
    except errors.LocalEntryNotFoundError as error:
        cause = error.__cause__ or error
        told = "offline mode is on" if isinstance(cause, errors.OfflineModeIsEnabled) else None
        raise WetokError(
            f"model {at}: no such folder here, not in the Hub's cache, and the Hub can't be "
            f"reached ({told or _line(cause)})"
        ) from None
    except errors.EntryNotFoundError as error:
        missing = WEIGHTS if WEIGHTS in str(error) else CONFIG
        raise WetokError(f"model {at} on the Hub is no wetok model: it has no {missing}") from None
    except errors.HFValidationError as error:
        raise WetokError(f"no model {at}: no such folder, and no Hub id: {_line(error)}") from None
    except (transport, OSError) as error:
        raise WetokError(f"model {at} can't be downloaded: {_line(error)}") from None


def _plain_card(config: FolderConfig, parameters: int) -> str:
    network = config.network
    decoder = "generative" if network.generative else "deterministic"
    return f"""---
library_name: wetok
tags:
- image-tokenizer
- wetok
---

# {config.name}

An image tokenizer for [wetok](https://arxiv.org/abs/2508.05599): photographs to discrete tokens
and back.

| setting | value |
| --- | --- |
| downsampling factor | {network.factor} |
| bits a position, groups | {network.bits}, {network.groups} |
| bits a pixel, compression ratio | {network.bpp:.4g}, {network.ratio:.4g} |
| decoder | {decoder} |
| parameters | {parameters:,} |
| stored as | {config.precision} |
| fingerprint | {config.fingerprint} |

```python
import wetok

tok = wetok.load("{config.name}")  # or this folder's path
tokens = tok.encode("photo.jpg")
(image,) = tok.decode(tokens)
```
"""


def _line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
