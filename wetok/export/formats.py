"""Three formats of a program: how each is written, and how its own runtime runs it again."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wetok.config import ModelConfig, WetokError
from wetok.export.programs import Part, Shape, dynamic_shapes, example, ports

Format = Literal["torch", "aoti", "onnx"]
FORMATS: tuple[Format, ...] = ("torch", "aoti", "onnx")
OPSET = 20
"""Of the ONNX files."""
_INLINE = 1_500_000_000  # bytes of weights that one protobuf file, at most 2 GiB, still takes

Runner = Callable[..., Tensor]
"""A written program, loaded again: CPU tensors in, a CPU tensor out."""


def file_name(part: Part, format: Format) -> str:
    """`encoder.onnx`, `encoder.torch.pt2`, `encoder.aoti.pt2`."""
    return f"{part}.onnx" if format == "onnx" else f"{part}.{format}.pt2"


def check_tools(format: Format) -> None:
    """Raises before any work if what a format needs is absent.

    Raises:
        ModuleNotFoundError: a package of `pip install 'wetok[export]'`.
        WetokError: no C++ compiler for "aoti", or a torch that is too old.
    """
    import torch.fx.experimental._config as tracing

    if not hasattr(tracing, "backed_size_oblivious"):
        raise WetokError(f"torch {torch.__version__} is too old to export: it needs 2.8 or newer")
    if format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            import_module(package)
    elif format == "aoti":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except Exception as error:  # torch's own kind has moved between versions
            line = str(error).strip().splitlines()[0] if str(error).strip() else "none found"
            raise WetokError(
                f"format='aoti' needs a C++ compiler, such as g++: {line} (CXX names another)"
            ) from None


def write(
    program: nn.Module, config: ModelConfig, part: Part, format: Format, shape: Shape, path: Path
) -> None:
    """Writes `program` to `path`; large ONNX weights go to `path` + ".data".

    Raises:
        WetokError: the tracer or compiler refuses it.
    """
    with _quiet(), torch.no_grad():
        try:
            traced = torch.export.export(
                program,
                example(config, part, shape),
                dynamic_shapes=dynamic_shapes(config, part, shape),
                strict=False,
            )
            if format == "torch":
                torch.export.save(traced, path)
            elif format == "aoti":
                _write_aoti(traced, path)
            else:
                _write_onnx(traced, config, part, shape, path)
        except (RuntimeError, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise
            line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise WetokError(f"the {part} can't be exported as {format}: {line}") from error


def _write_aoti(traced: torch.export.ExportedProgram, path: Path) -> None:
    from torch._inductor import aoti_compile_and_package

    aoti_compile_and_package(traced, package_path=str(path))


def _write_onnx(
    traced: torch.export.ExportedProgram, config: ModelConfig, part: Part, shape: Shape, path: Path
) -> None:
    inputs, output = ports(config, part, shape)
    made = torch.onnx.export(
        traced,
        dynamo=True,
        input_names=[port.name for port in inputs],
        output_names=[output.name],
        opset_version=OPSET,
        verbose=False,
    )
    assert made is not None
    weights = sum(tensor.nbytes for tensor in traced.state_dict.values())
    made.save(path, external_data=weights > _INLINE)
    _name_sides(path, inputs, output)


def _name_sides(path: Path, inputs: tuple[Any, ...], output: Any) -> None:
    """Gives the open sides the names of `ports`; the exporter has its own, such as s39."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    told = {port.name: port.shape for port in (*inputs, output)}
    for value in (*model.graph.input, *model.graph.output):
        sides = value.type.tensor_type.shape.dim
        for side, name in zip(sides, told[value.name], strict=True):
            if isinstance(name, str):
                side.dim_param = name
            else:
                side.dim_value = name
    del model.graph.value_info[:]  # shapes in between, by the exporter's names
    onnx.save(model, path)


def load(path: Path, format: Format) -> Runner:
    """The program in `path`, in its format's own runtime."""
    if format == "onnx":
        return _load_onnx(path)
    with _quiet():
        if format == "torch":
            module = torch.export.load(path).module()

            def run(*inputs: Tensor) -> Tensor:
                with torch.no_grad():
                    result: Tensor = module(*inputs)
                return result

            return run
        from torch._inductor import aoti_load_package

        package: Runner = aoti_load_package(str(path))
        return package


def _load_onnx(path: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        given = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracer's warnings of its own inside; one position and one image are sizes as
    any other, which torch otherwise would trace a program of their own for."""
    import torch.fx.experimental._config

    tracing: Any = torch.fx.experimental._config
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), tracing.patch(backed_size_oblivious=True):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)


def beside(path: Path) -> list[Path]:
    """`path`, and its ".data" where it has one."""
    data = path.with_name(path.name + ".data")
    return [path, data] if data.exists() else [path]
