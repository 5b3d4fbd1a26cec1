"""`wetok bench`: how fast a model is on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from wetok.commands import options

if TYPE_CHECKING:
    from collections.abc import Callable

    from wetok.model.tokenizer import Tokenizer


def command(
    model: Annotated[
        str, typer.Argument(help="A shipped name, a model folder or a Hub id.")
    ] = options.DEFAULT_MODEL,
    side: Annotated[int, typer.Option(min=1, help="Height and width of the image, pixels.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each is measured.")] = 5,
    as_json: options.Json = False,
    device: options.Device = "auto",
) -> None:
    """Measure how many images a second a model encodes and decodes here.

    One image after another, in each precision; the median of the rounds.
    A star marks what is taken by default.

    Example: wetok bench tiny-48x --side 512
    """
    import torch

    from wetok.commands.tables import show_json

    tokenizer = options.load(model, device, tiles="off")
    modes = measured(tokenizer, side, rounds)
    if as_json:
        about = {"model": tokenizer.name, "fingerprint": tokenizer.fingerprint}
        show_json(
            {
                **about,
                "device": str(tokenizer.device),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "side": side,
                "rounds": rounds,
                "modes": modes,
            }
        )
        return
    print(f"{tokenizer.name} on {tokenizer.device}, {side}x{side} pixels, images a second")
    for row in modes:
        star = "*" if row["default"] else ""
        name = row["direction"] + star
        print(f"  {name:<8} {row['precision']:<8} {row['images_per_second']:>8.2f}")


def measured(tokenizer: Tokenizer, side: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each direction and precision: seconds an image, the modes in turn every round."""
    from statistics import median
    from time import perf_counter

    import torch

    from wetok.model.running import PRECISIONS, Direction

    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens = tokenizer.encode(image, tiles="off")

    def encode(precision: str) -> Any:
        return tokenizer.encode(image, tiles="off", precision=precision)

    def decode(precision: str) -> Any:
        return tokenizer.decode(tokens, output="uint8", tiles="off", precision=precision)

    ways: list[tuple[Direction, Callable[[str], Any]]] = [("encode", encode), ("decode", decode)]
    seconds: dict[tuple[Direction, str], list[float]] = {}
    for number in range(rounds + 1):
        for direction, run in ways:
            for precision in PRECISIONS:
                _wait(tokenizer)
                began = perf_counter()
                run(precision)
                _wait(tokenizer)
                if number:  # the first round warms up
                    each = seconds.setdefault((direction, precision), [])
                    each.append(perf_counter() - began)
    return [
        {
            "direction": direction,
            "precision": precision,
            "default": tokenizer.way(direction).precision == precision,
            "seconds": median(each),
            "images_per_second": 1 / median(each),
        }
        for (direction, precision), each in seconds.items()
    ]


def _wait(tokenizer: Tokenizer) -> None:
    import torch

    if tokenizer.device.type == "cuda":
        torch.cuda.synchronize(tokenizer.device)
