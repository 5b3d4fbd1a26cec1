"""Options that several commands share, so that each reads and means the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from wetok.model.tokenizer import Tokenizer

DEFAULT_MODEL = "tiny-48x"


def _not_negative(value: int) -> int:
    if value < 0:
        raise typer.BadParameter(f"{value} is negative; give 0 or more.")
    return value


Images = Annotated[
    list[Path],
    typer.Argument(metavar="INPUT", show_default=False, help="Photographs or folders of them."),
]
Model = Annotated[
    str, typer.Option("--model", "-m", help="A shipped name, a model folder or a Hub id.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write to, or one file's name.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")]
Seed = Annotated[
    int, typer.Option(callback=_not_negative, help="Of a generative decoder's noise, from 0 on.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")]
Tiles = Annotated[
    str,
    typer.Option(
        help="For large images: off (as a whole), exact (in strips: slower, the same result), fast "
        "(in tiles: a few bits differ), or auto: off where memory allows it, else exact."
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        help="float32, bf16 (faster; bits near zero may differ), or auto: float32 to encode, bf16 "
        "to decode where the device is faster at it."
    ),
]
Lpips = Annotated[
    list[str] | None,
    typer.Option(help="LPIPS network, alex, vgg or none; repeatable.  [default: those here]"),
]
Frechet = Annotated[
    list[str] | None,
    typer.Option(
        help="Frechet distance, rfid, rfid-torch-fidelity, fd-vgg or none; repeatable.  "
        "[default: rfid if its network is here, else fd-vgg if that is]"
    ),
]
FidWeights = Annotated[
    Path | None, typer.Option(help="File of the FID network, instead of the cached one.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def load(
    model: str, device: str, precision: str = "auto", *, tiles: str | None = None
) -> Tokenizer:
    """The tokenizer called `model`, on `device`, for a program that does nothing else.

    Args:
        tiles: of the command, if it has the option: images that it is for can be large.

    Raises:
        WetokError: no such model, no such device, or no such precision.
    """
    import torch

    from wetok import checkpoint
    from wetok.memory import keep_freed_memory

    keep_freed_memory(large=tiles in ("auto", "off"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return checkpoint.load(model, device, precision=precision)
