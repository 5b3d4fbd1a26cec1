"""Grouped lookup-free quantization (WeTok, arXiv 2508.05599, section 3.1): sign, ids and losses.

With groups = 1 it is LFQ (MAGVIT-v2), with groups = bits the independent bits of BSQ.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from wetok.config import WetokError
from wetok.model.entropy import MAX_BYTES, Convention, check_settings, entropies

MAX_ID_BITS = 62


class Quantized(NamedTuple):
    """What the quantizer makes of a latent. In eval mode the three losses are None; without
    entropies (`entropy=None`) the two entropies are."""

    code: Tensor  # as the latent, [B, d, h, w], in {-1, +1}, its dtype, straight-through gradient
    ids: Tensor  # [B, g, h, w], or [..., g] where channels are last, in [0, 2^d'), see `id_dtype`
    token_entropy: Tensor | None  # scalar, nats: to minimise, so that single choices are sure
    codebook_entropy: Tensor | None  # scalar, nats: to maximise, so that all codes are used
    commitment: Tensor | None  # scalar: mean squared distance of the latent to its code


def id_dtype(group_bits: int) -> torch.dtype:
    """The smallest integer type that holds ids of d' bits: uint8, int16, int32 or int64.

    uint16, uint32 and uint64 are left out because torch lacks most operations on them (shifts,
    comparisons, indexing, reductions, `bincount`), so an id of 16 bits is an int32.
    """
    for bits, dtype in ((8, torch.uint8), (15, torch.int16), (31, torch.int32)):
        if group_bits <= bits:
            return dtype
    return torch.int64


class GroupedQuantizer(nn.Module):
    """Binarises a latent and numbers the codes, group by group.

        z [B,d,h,w] --sign--> code [B,d,h,w] --group's bits, lowest first--> ids [B,g,h,w]
             \\------> token entropy, codebook entropy, commitment (training mode only)

    Args:
        bits: d, the channels of the latent.
        groups: g, any divisor of bits; d' = bits / groups <= 62 (<= 30 with entropies).
        entropy: "grouped" (the paper), "pooled" (the released training code) or None (skipped).
        temperature: of the soft assignment behind the entropies.
        eps: in log(p + eps) of the codebook entropy; 0 is advised from d' = 17 on.
        max_bytes: bound on the work memory of the entropies.
        channel_dim: 1, channels first: latents [B, d, h, w], or with more sides than two, as of
            video; or -1, channels last: [..., d], as of a sequence. Ids have g channels there.
    """

    def __init__(
        self,
        bits: int,
        groups: int,
        *,
        entropy: Literal["grouped", "pooled"] | None = "grouped",
        temperature: float = 0.01,
        eps: float = 1e-5,
        max_bytes: int = MAX_BYTES,
        channel_dim: Literal[1, -1] = 1,
    ) -> None:
        super().__init__()
        if bits < 1 or groups < 1 or bits % groups:
            raise WetokError(f"groups={groups} must divide bits={bits}, both at least 1")
        if bits // groups > MAX_ID_BITS:
            raise WetokError(
                f"bits/groups={bits // groups} must be at most {MAX_ID_BITS}, so that an id fits "
                "int64: use more groups"
            )
        if entropy is not None:
            check_settings(bits // groups, entropy, temperature, eps, max_bytes)
        if channel_dim not in (1, -1):
            raise WetokError(f"channel_dim={channel_dim!r} must be 1 (first) or -1 (last)")
        self.channel_dim = channel_dim
        self.bits, self.groups, self.group_bits = bits, groups, bits // groups
        self.entropy: Convention | None = entropy
        self.temperature, self.eps, self.max_bytes = temperature, eps, max_bytes

    def extra_repr(self) -> str:
        last = ", channel_dim=-1" if self.channel_dim == -1 else ""
        return f"bits={self.bits}, groups={self.groups}, entropy={self.entropy!r}{last}"

    def forward(self, latent: Tensor) -> Quantized:
        """Quantizes a latent [B, d, h, w] of any floating type (see `channel_dim` for others).

        Raises:
            WetokError: wrong shape or type; in eval mode also a NaN or Inf in the latent. (In
                training it shows in the losses: a read from the device at every step would cost
                more, and an error on one of many processes would leave the others waiting.)
        """
        self._check_channels("latent", latent, self.bits)
        if self.channel_dim == -1 or latent.ndim > 4:
            out = self._forward(self._to_four(latent))
            return out._replace(
                code=self._from_four(out.code, latent), ids=self._from_four(out.ids, latent)
            )
        return self._forward(latent)

    def _forward(self, latent: Tensor) -> Quantized:
        if not latent.is_floating_point():
            raise WetokError(f"latent has dtype {latent.dtype}: it must be a floating type")
        if not self.training:
            _check_finite(latent)
        positive = latent.detach() > 0
        hard = positive.to(latent.dtype).mul_(2).sub_(1)
        ids = self._pack(positive)
        # hard + 0: exactly -1 and +1, which latent + (hard - latent) is not.
        code = hard + (latent - latent.detach()) if latent.requires_grad else hard
        if not self.training:
            return Quantized(code, ids, None, None, None)
        wide = latent if latent.dtype == torch.float64 else latent.float()
        commitment = (wide - hard).square().mean()
        if self.entropy is None:
            return Quantized(code, ids, None, None, commitment)
        token, codebook = entropies(
            wide,
            self.groups,
            self.entropy,
            temperature=self.temperature,
            eps=self.eps,
            max_bytes=self.max_bytes,
        )
        return Quantized(code, ids, token, codebook, commitment)

    def ids_to_code(self, ids: Tensor) -> Tensor:
        """ids [B, g, h, w] of any integer type -> code [B, d, h, w], float32 in {-1, +1}.

        Where channels are last, ids [..., g] -> code [..., d].

        Raises:
            WetokError: wrong shape or type, or an id outside [0, 2^d').
        """
        self._check_channels("ids", ids, self.groups)
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise WetokError(f"ids has dtype {ids.dtype}: it must be an integer type")
        wide = ids.long()
        if wide.numel():
            least, most = (int(v) for v in torch.stack(wide.aminmax()).tolist())
            if least < 0 or most >= 2**self.group_bits:
                raise WetokError(
                    f"ids lie in [{least}, {most}]: {self.group_bits} bits per group allow "
                    f"[0, {2**self.group_bits - 1}]; were they made by another model?"
                )
        shift = torch.arange(self.group_bits, device=ids.device)[:, None, None]
        bits = (self._to_four(wide)[:, :, None] >> shift) & 1  # [B, g, d', h, w]
        return self._from_four(bits.flatten(1, 2).float().mul_(2).sub_(1), ids)

    def code_to_ids(self, code: Tensor) -> Tensor:
        """code [B, d, h, w] in {-1, +1} -> ids [B, g, h, w] of `id_dtype` ([..., d] -> [..., g]).

        Raises:
            WetokError: wrong shape, or a value other than -1 and +1.
        """
        self._check_channels("code", code, self.bits)
        if not bool((code.abs() == 1).all()):
            raise WetokError("code holds values other than -1 and +1: quantize the latent first")
        return self._from_four(self._pack(self._to_four(code > 0)), code)

    def _pack(self, positive: Tensor) -> Tensor:
        grouped = positive.unflatten(1, (self.groups, self.group_bits))
        dtype = id_dtype(self.group_bits)
        ids = grouped[:, :, 0].to(dtype)
        for k in range(1, self.group_bits):
            ids |= grouped[:, :, k].to(dtype) << k
        return ids

    def _check_channels(self, name: str, tensor: Tensor, channels: int) -> None:
        last = self.channel_dim == -1
        enough = tensor.ndim >= (1 if last else 4)
        if not enough or tensor.shape[self.channel_dim] != channels:
            wanted = f"[..., {channels}]" if last else f"[B, {channels}, h, w]"
            other = "" if last else " (channel_dim=-1 takes channels last)"
            raise WetokError(f"{name} has shape {tuple(tensor.shape)}: it must be {wanted}{other}")

    def _to_four(self, tensor: Tensor) -> Tensor:
        """[..., c] -> [N, c, 1, 1], and [B, c, ...] -> [B, c, h, n], without a copy."""
        if self.channel_dim == -1:
            return tensor.reshape(-1, tensor.shape[-1], 1, 1)
        return tensor if tensor.ndim == 4 else tensor.flatten(3)

    def _from_four(self, result: Tensor, like: Tensor) -> Tensor:
        """Back to the sides of `like`, whose channels may be other ones."""
        if self.channel_dim == -1:
            return result.reshape(*like.shape[:-1], result.shape[1])
        return result if like.ndim == 4 else result.unflatten(3, like.shape[3:])


def _check_finite(latent: Tensor) -> None:
    """One reduction and one read: a NaN or Inf survives into the sum. The exact look follows only
    when the sum is suspicious, which an overflow of huge finite values also makes it."""
    if bool(latent.detach().sum(dtype=torch.float32).isfinite()):
        return
    bad = int((~latent.detach().isfinite()).sum())
    if bad:
        raise WetokError(
            f"latent holds NaN or Inf in {bad} of {latent.numel()} values: the encoder has "
            "diverged (lower the learning rate or train in float32) or its weights are broken"
        )
