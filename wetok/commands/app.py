"""`wetok app`: a page in the browser that shows what a tokenizer does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wetok.commands import options

if TYPE_CHECKING:
    from wetok.app.desk import Desk
    from wetok.app.photos import Limits

PHOTOS = Path(__file__).parent.parent / "assets" / "photos"


def command(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="A model folder or a Hub id to offer beside the shipped ones; repeatable. The "
            "first is chosen at the start.",
        ),
    ] = None,
    generator: Annotated[
        Path | None, typer.Option(help="Folder of a generator: adds a tab for new pictures.")
    ] = None,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on; 0.0.0.0 lets others in, who need no password."),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="0: any that is free, which is printed.")
    ] = 7860,
    max_upload: Annotated[
        float, typer.Option(min=0.001, help="Largest file that is taken, in MB.")
    ] = 20,
    max_pixels: Annotated[
        float,
        typer.Option(
            min=0.001, help="Largest photo that is computed with, in megapixels; made smaller."
        ),
    ] = 4,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
) -> None:
    """Show a page in the browser: drop a photo, see what its tokens keep.

    Original and reconstruction under one slider, where they differ, the
    tokens as pictures, JPEG, WebP and AVIF in as many bytes, damage to
    tokens, .wetok files in and out. Ctrl-C ends it.

    Example: wetok app --port 8000
    """
    from wetok.app.photos import Limits
    from wetok.app.server import application, listen, own_folder, serve
    from wetok.memory import keep_freed_memory

    limits = Limits(round(max_upload * 1e6), round(max_pixels * 1e6))
    with own_folder() as folder, listen(host, port) as listening:
        import gradio  # noqa: F401  before the models: where it is absent, that is told at once

        from wetok.app.page import Outbox, build, copy_samples
        from wetok.data.images import find_images

        keep_freed_memory()
        samples = copy_samples(folder / "samples", find_images(PHOTOS))
        desk = _desk(model or [], generator, device, precision, limits, samples)
        app = application(build(desk, Outbox(folder / "out")), folder, limits)
        own_port = listening.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host

        def ready() -> None:
            typer.echo(f"wetok: http://{shown}:{own_port}  (Ctrl-C ends it)")

        serve(app, listening, ready)


def _desk(
    models: list[str],
    generator: Path | None,
    device: str,
    precision: str,
    limits: Limits,
    samples: list[Path],
) -> Desk:
    """Everything that the page computes with, loaded."""
    import torch

    from wetok import checkpoint
    from wetok.app.desk import Desk
    from wetok.app.making import maker_for
    from wetok.app.models import Models
    from wetok.losses.perceptual import LPIPS
    from wetok.weights import find, here

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    names = list(dict.fromkeys([*models, *checkpoint.shipped()]))
    offered = Models(options.load(name, device, precision) for name in names)
    maker = None
    if generator is not None:
        from wetok.generate.folder import load_generator

        loaded, name = load_generator(generator)
        maker = maker_for(name, loaded.to(device), offered)
    lpips = LPIPS.from_file(find("lpips-alex"), "alex").to(device) if here("lpips-alex") else None
    offered.warm_up()
    return Desk(offered, limits, samples, lpips, maker)
