"""What `wetok eval` and `wetok compare` share: networks to score with, names and digits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wetok.evaluate.wording import digits_of as digits_of
from wetok.evaluate.wording import number as number
from wetok.evaluate.wording import title_of as title_of

if TYPE_CHECKING:
    from wetok.evaluate.networks import Networks


def networks_for(
    lpips: list[str] | None, frechet: list[str] | None, fid_weights: Path | None
) -> Networks:
    """The networks asked for, or those on this machine.

    Raises:
        WetokError: an unknown name, or weights that can't be had.
    """
    from wetok.config import WetokError
    from wetok.evaluate.inception import Inception
    from wetok.evaluate.networks import FD_VGG, Networks, check_frechet_name
    from wetok.losses.perceptual import LPIPS
    from wetok.weights import find, here

    nets = [net for net in ("alex", "vgg") if here(f"lpips-{net}")] if lpips is None else lpips
    nets = [net for net in nets if net != "none"]
    for net in nets:
        if net not in ("alex", "vgg"):
            raise WetokError(f"lpips={net!r} must be 'alex' or 'vgg'")
    if frechet is None:
        fid = fid_weights is not None or here("inception-fid")
        names = ["rfid"] if fid else [FD_VGG] if here("lpips-vgg") else []
    else:
        names = [check_frechet_name(name) for name in frechet if name != "none"]
    networks = {net: LPIPS.from_file(find(f"lpips-{net}"), net) for net in dict.fromkeys(nets)}  # type: ignore[arg-type]
    vgg = None
    if FD_VGG in names:
        vgg = networks.get("vgg") or LPIPS.from_file(find("lpips-vgg"), "vgg")
    inceptions = []
    for name in dict.fromkeys(names):
        if name != FD_VGG:
            try:
                file = find("inception-fid", fid_weights)
            except WetokError as error:
                raise WetokError(
                    f"{error}; or give --frechet {FD_VGG}, which is another number"
                ) from None
            convention = "torch-fidelity" if name.endswith("torch-fidelity") else "pytorch-fid"
            inceptions.append(Inception.from_file(file, convention))  # type: ignore[arg-type]
    return Networks(list(networks.values()), inceptions, vgg)


def networks_used(networks: Networks) -> dict[str, list[str]]:
    """The options that ask for just these networks, wherever else there are more or fewer."""
    frechet = [name.replace("fd-inception", "rfid") for name in networks.dims]
    return {"lpips": list(networks.lpips) or ["none"], "frechet": frechet or ["none"]}
