"""What `wetok reconstruct` imports: seconds depend on the machine, the import graph does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NOT_NEEDED = (
    "torch._dynamo",
    "torch._inductor",
    "torch.onnx",
    "torch.utils.tensorboard",
    "sympy",
    "scipy",
    "sklearn",
    "matplotlib",
    "pandas",
    "pyarrow",
    "datasets",
    "transformers",
    "diffusers",
    "gradio",
    "onnxruntime",
    "ray",
    "rich.progress",
    "wetok.train",
    "wetok.losses",
    "wetok.generate",
    "wetok.tokenize",
    "wetok.export",
    "wetok.app",
)
"""Each takes from a tenth of a second to several to import."""

SCRIPT = """
import json, sys
from wetok.cli import main
try:
    main(sys.argv[1:])
finally:
    print(json.dumps(sorted(sys.modules)))
"""


@pytest.mark.parametrize("command", ["reconstruct", "encode"])
def test_only_what_is_needed_is_imported(command: str, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(photo)
    call = [sys.executable, "-c", SCRIPT, command, str(photo), "-o", str(tmp_path / "out")]
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
    assert len(list((tmp_path / "out").iterdir())) == 1
    modules = set(json.loads(done.stdout.splitlines()[-1]))
    assert "torch" in modules
    assert not modules & set(NOT_NEEDED)
