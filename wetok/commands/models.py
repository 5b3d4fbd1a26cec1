"""`wetok models`: what there is to load, import or train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wetok.commands import options

if TYPE_CHECKING:
    from wetok.config import ModelConfig


def command(as_json: options.Json = False) -> None:
    """List the shipped models and the published shapes.

    f: side in pixels of the square that a position stands for.
    d: bits of a position. g: groups they are cut into.
    bpp: bits a pixel, d/f². ratio: 24/bpp.

    Example: wetok models
    """
    from wetok import checkpoint
    from wetok.commands.tables import show, show_json
    from wetok.presets import PRESETS

    shipped = checkpoint.shipped()
    configs = {name: checkpoint.read_config(checkpoint.SHIPPED / name).network for name in shipped}
    configs |= {name: config for name, config in PRESETS.items() if name not in configs}
    rows = [_row(name, config, name in shipped) for name, config in configs.items()]
    if as_json:
        show_json(rows)
        return

    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)  # fits 80 columns
    table.add_column("model", no_wrap=True)
    for heading in ("f", "d", "g", "bpp", "ratio", "params"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("decoder", no_wrap=True)
    table.add_column("weights")
    for row in rows:
        table.add_row(
            row["name"],
            str(row["factor"]),
            str(row["bits"]),
            str(row["groups"]),
            f"{row['bpp']:.3g}",
            f"{row['ratio']:.0f}x",
            f"{(row['encoder_parameters'] + row['decoder_parameters']) / 1e6:,.0f} M",
            row["decoder"],
            row["weights"],
        )
    show(table)


def _row(name: str, config: ModelConfig, shipped: bool) -> dict[str, Any]:
    encoder, decoder = count_parameters(config)
    if shipped:
        weights = "shipped"
    else:
        # This project trains the tiny ones; the others' weights are their authors' to give.
        weights = "wetok train" if name.startswith("tiny-") else "wetok import"
    return {
        "name": name,
        "factor": config.factor,
        "bits": config.bits,
        "groups": config.groups,
        "bpp": config.bpp,
        "ratio": config.ratio,
        "encoder_parameters": encoder,
        "decoder_parameters": decoder,
        "decoder": "generative" if config.generative else "deterministic",
        "weights": weights,
        "shipped": shipped,
    }


def count_parameters(config: ModelConfig) -> tuple[int, int]:
    """Parameters of the encoder and of the decoder, counted without giving them memory."""
    import torch

    from wetok.model.network import TokenizerNetwork

    with torch.device("meta"):
        network = TokenizerNetwork(config)
    encoder, decoder = (
        sum(weight.numel() for weight in part.parameters())
        for part in (network.encoder, network.decoder)
    )
    return encoder, decoder
