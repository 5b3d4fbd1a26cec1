"""Writes docs/notebooks/quickstart.ipynb and runs it, so that it is committed with its outputs:

python docs/building/notebook.py

Pictures are kept small. Cells that install something are not run here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "docs" / "notebooks" / "quickstart.ipynb"

CELLS = (
    """# wetok: photographs to tokens and back

The [quickstart](../quickstart.md) as a notebook. It needs no GPU and, once wetok is installed, no
network. Where wetok is not installed yet, run in a cell of its own, with the path of your clone:

    %pip install PATH/TO/THE/CLONE""",
    """%matplotlib inline
%config InlineBackend.figure_formats = ["jpeg"]
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from PIL import Image

import wetok

photos = Path(wetok.__file__).parent / "assets" / "photos"  # put a folder of your own here
photo = Image.open(photos / "cat.jpg")""",
    """## There and back

`ids` are the tokens: for each image 4 groups of numbers below 256, a position for 8 x 8 pixels.""",
    """tok = wetok.load("tiny-48x")
tokens = tok.encode(photo)
(back,) = tok.decode(tokens)
print(tokens)
print(tokens.ids.shape, tokens.ids.dtype, "up to", int(tokens.ids.max()))""",
    """def show(images, titles, width=7):
    figure, axes = plt.subplots(1, len(images), figsize=(width, 2.6), dpi=64)
    for axis, image, title in zip(axes, images, titles, strict=True):
        axis.imshow(image, cmap="viridis")
        axis.set_title(title, fontsize=8)
        axis.axis("off")
    plt.tight_layout()
    plt.show()


show([photo, back], ["photograph", "from its tokens"])""",
    """## What the tokens look like

The ids of the first two groups as pictures. Neighbouring numbers have nothing to do with one
another: an id is eight signs, read as a binary number.""",
    """show([group.numpy() for group in tokens.ids[0, :2]], ["group 0", "group 1"])""",
    """## Files

Entropy-coded, with a checksum and the fingerprint of the model.""",
    """tokens.save("cat.wetok")
size = Path("cat.wetok").stat().st_size
pixels = photo.width * photo.height
print(f"{size:,} bytes: {8 * size / pixels:.3f} bits a pixel, of {pixels * 3:,} bytes of pixels")
assert wetok.Tokens.load("cat.wetok") == tokens""",
    """## Break some tokens

A fifth of the positions gets random ids. What is around them stays as it is: the decoder looks a
few positions far.""",
    """broken = tokens.ids.clone()
torch.manual_seed(0)
hit = torch.rand(broken.shape[-2:]) < 0.2
broken[..., hit] = torch.randint(0, 256, broken[..., hit].shape, dtype=broken.dtype)
(worse,) = tok.decode(wetok.Tokens(broken, tokens.size, tokens.model, tokens.group_bits))
show([back, worse], ["as encoded", "a fifth at random"])""",
    """## The quantizer, for a network of yours

Any latent `[B, d, h, w]`; exact entropies to train with, and no table of all codes.""",
    """quantizer = wetok.GroupedQuantizer(bits=32, groups=4)
latent = (0.05 * torch.randn(2, 32, 16, 16)).requires_grad_()
out = quantizer(latent)
(out.token_entropy - out.codebook_entropy + 0.25 * out.commitment).backward()
print(f"token entropy {out.token_entropy:.2f}, of the codebook {out.codebook_entropy:.2f} nats")""",
    """## Further

[How it works](../concepts.md), [training on a laptop](../training/laptop.md),
[questions](../faq.md).""",
)
"""Sources in order: Markdown where the text does not read as Python's."""


def notebook() -> nbformat.NotebookNode:
    """The notebook without outputs; the same each time."""
    made = nbformat.v4.new_notebook()
    for number, source in enumerate(CELLS):
        is_text = source.startswith("#")
        new = nbformat.v4.new_markdown_cell if is_text else nbformat.v4.new_code_cell
        made.cells.append(new(source, id=f"cell-{number}"))
    made.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    return made


def run(made: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Runs all cells in `folder` and leaves their outputs, without the times of the run."""
    NotebookClient(
        made, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    for cell in made.cells:
        cell.metadata.pop("execution", None)
        if "outputs" in cell:  # warnings tell of the machine
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    made.metadata.pop("language_info", None)
    return made


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        nbformat.write(run(notebook(), Path(folder)), TARGET)
    print(f"{TARGET.stat().st_size:,} bytes", file=sys.stderr)
