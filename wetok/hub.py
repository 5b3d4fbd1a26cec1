"""A model folder to the Hugging Face Hub, with a card that tells what is known and what is not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wetok.checkpoint import CARD, CONFIG, TABLES, WEIGHTS, FolderConfig, find_folder, read_config
from wetok.config import WetokError

_UNTOLD = "not told by whoever published it"


@dataclass(frozen=True)
class Facts:
    """What a card can't read off a model; None is told as missing."""

    licence: str | None = None
    """As the Hub writes them: apache-2.0, mit, cc-by-4.0, ..."""
    data: str | None = None
    scores: Mapping[str, Any] = field(default_factory=dict)
    protocol: str | None = None


def card(config: FolderConfig, parameters: int, repo: str, facts: Facts) -> str:
    """README.md of a model on the Hub: metadata, shape, usage, scores, data, licence, citation."""
    network = config.network
    licence = "" if facts.licence is None else f"license: {json.dumps(facts.licence)}\n"
    scores = "Scores: " + _UNTOLD + "."
    if facts.scores:
        rows = "\n".join(f"| {name} | {_number(value)} |" for name, value in facts.scores.items())
        protocol = facts.protocol or _UNTOLD
        scores = f"Protocol: {protocol}.\n\n| score | value |\n| --- | --- |\n{rows}"
    return f"""---
{licence}library_name: wetok
pipeline_tag: image-to-image
tags:
- image-tokenizer
- wetok
---

# {repo.rpartition("/")[2]}

A discrete image tokenizer: photographs to integer tokens and back, by WeTok's grouped lookup-free
quantization.

| | |
| --- | --- |
| downsampling factor | {network.factor} |
| bits a position, groups | {network.bits}, {network.groups} |
| bits a pixel, compression ratio | {network.bpp:.4g}, {network.ratio:.4g} |
| decoder | {"generative" if network.generative else "deterministic"} |
| parameters | {parameters:,} |
| stored as | {config.precision} |
| fingerprint | {config.fingerprint or "none"} |

## Usage

```python
import wetok

tok = wetok.load("{repo}")
tokens = tok.encode("photo.jpg")
(image,) = tok.decode(tokens)
```

## Scores

{scores}

## Training data

{facts.data or "Training data: " + _UNTOLD + "."}

## Licence

{f"The weights: {facts.licence}." if facts.licence else "Licence of the weights: " + _UNTOLD + "."}

## Citation

The method is that of *WeTok: Powerful Discrete Tokenization for High-Fidelity Visual
Reconstruction* (arXiv 2508.05599).
"""


def scores_of(receipt: Path) -> tuple[dict[str, Any], str | None]:
    """The numbers and the protocol in a file that `wetok eval --json` printed or wrote.

    Raises:
        WetokError: it can't be read, or has no scores.
    """
    try:
        tree = json.loads(receipt.read_text("utf-8"))
        rows = tree.get("scores", tree)
        numbers = {
            name: value
            for name, value in rows.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        if not numbers:
            raise ValueError("it has no scores")
        protocol = tree.get("protocol")
        return numbers, protocol if isinstance(protocol, str) else None
    except (OSError, ValueError, AttributeError) as error:
        raise WetokError(f"{receipt}: no scores can be read: {_line(error)}") from None


def push(
    model: str | Path,
    repo: str,
    *,
    private: bool | None = None,
    branch: str | None = None,
    facts: Facts | None = None,
    message: str = "Upload a wetok tokenizer",
) -> str:
    """Uploads a model folder in one commit, its files as they are.

    Args:
        model: a shipped name or a folder. Its README.md is uploaded, unless there are `facts`, of
            which a new card is written.
        repo: `user/name`; made if it is not there.
        private: of a new repository; None leaves it to the account's default.
        branch: made if it is not there; None is main.

    Returns:
        The commit's address.

    Raises:
        WetokError: no such model, no right to write, the Hub can't be reached.
    """
    import re

    from huggingface_hub import CommitOperationAdd, HfApi

    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", repo) is None:
        raise WetokError(f"repo={repo!r} must be user/name on the Hub")
    folder = find_folder(model)
    config = read_config(folder)
    if not (folder / WEIGHTS).is_file():
        raise WetokError(f"{folder}: incomplete model folder: it has no {WEIGHTS}")
    files: dict[str, Any] = {
        name: str(folder / name)
        for name in (CONFIG, WEIGHTS, TABLES, CARD)
        if (folder / name).is_file()
    }
    if facts is not None or CARD not in files:
        text = card(config, _parameters(folder), repo, facts or Facts())
        files[CARD] = text.encode()
    with told(repo):
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        if branch is not None:
            api.create_branch(repo, branch=branch, exist_ok=True)
        done = api.create_commit(
            repo,
            [CommitOperationAdd(name, content) for name, content in files.items()],
            commit_message=message,
            revision=branch,
        )
    return str(done.commit_url)


@contextmanager
def told(repo: str) -> Iterator[None]:
    """What goes wrong while writing to the Hub, in one line."""
    from huggingface_hub import errors

    transport: Any = errors.HfHubHTTPError.__bases__[0]
    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise WetokError(
            f"{repo!r} can't be written: offline mode is on (HF_HUB_OFFLINE)"
        ) from None
    except errors.LocalTokenNotFoundError:
        raise WetokError(f"{repo!r} can't be written: log in first (hf auth login)") from None
    except (errors.HfHubHTTPError, errors.HFValidationError, transport, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403, 404):
            raise WetokError(
                f"{repo!r} can't be written: the Hub answers {status}: log in with a token that "
                "may write there (hf auth login), and check the spelling"
            ) from None
        raise WetokError(f"{repo!r} can't be written: {_line(error)}") from None


def _parameters(folder: Path) -> int:
    import math

    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise WetokError(f"{folder / WEIGHTS}: broken weights: {_line(error)}") from None


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
