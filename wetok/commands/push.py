"""`wetok push`: a model folder to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", show_default=False, help="A model folder or shipped name."),
    ],
    repo: Annotated[
        str, typer.Argument(metavar="USER/NAME", show_default=False, help="Where it goes.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="A new repository is seen by its owner only.")
    ] = False,
    branch: Annotated[str | None, typer.Option(help="Branch to write to, instead of main.")] = None,
    licence: Annotated[
        str | None, typer.Option(help="Of the weights, as the Hub writes it: apache-2.0, mit.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="A sentence on what the model was trained on.")
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="JSON of `wetok eval`, whose numbers the card tells.")
    ] = None,
) -> None:
    """Upload a model to the Hugging Face Hub, in one commit.

    The folder's README.md goes along; with --licence, --data or --scores,
    or where there is none, a card is written that tells what is missing.

    Example: wetok push runs/mine/model someone/mine --licence apache-2.0
    """
    from wetok.hub import Facts, push, scores_of

    facts = None
    if licence is not None or data is not None or scores is not None:
        numbers, protocol = scores_of(scores) if scores is not None else ({}, None)
        facts = Facts(licence, data, numbers, protocol)
    address = push(model, repo, private=True if private else None, branch=branch, facts=facts)
    print(f"{model} -> {address}")
    print(f'use it: wetok.load("{repo}")')
