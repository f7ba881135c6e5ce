"""The default generator: its networks and the diffusers pipeline that draws a new face."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from anonymize.aligners import CROP_SIZE
from anonymize.errors import ConfigError
from anonymize.priors import CODE, CONTEXT, CodePrior

FOLD = 4
"""The U-Net works at this fraction of the crop's resolution."""


class Refinement(nn.Module):
    """A residual block under a class embedding, which does nothing before it is trained."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * width)
        self.norm2 = nn.GroupNorm(8, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        for parameter in self.conv2.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(N, width, H, W) and (N, embedding) to (N, width, H, W)."""
        scale, shift = self.film(F.silu(embedding))[:, :, None, None].chunk(2, 1)
        y = self.norm2(self.conv1(F.silu(self.norm1(x))))
        out: Tensor = x + self.conv2(F.silu(y * (1 + scale) + shift))
        return out


class FaceAdapter(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """What stands around the U-Net: identity code to class embedding, features to pixels.

    The U-Net works at a quarter of the crop's resolution, which is what makes it fast on a CPU.
    This module folds pixels into channels on the way in and unfolds them on the way out, with a
    residual block at half resolution and a correction at full resolution that removes the grid
    which unfolding alone would leave. Each level of `depth` beyond the first adds two blocks at
    half and one at full resolution.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, embedding: int = 256, features: int = 128, depth: int = 1) -> None:
        super().__init__()
        inputs, half = 3 + CONTEXT, features // 4
        self.embed = nn.Sequential(
            nn.Linear(CODE, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.skip = nn.Conv2d(inputs, 8, 3, padding=1)
        self.norm1 = nn.GroupNorm(8, half + 8)
        self.conv1 = nn.Conv2d(half + 8, half, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * half)
        self.norm2 = nn.GroupNorm(8, half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1)
        self.join = nn.Conv2d(half + 8, half, 1)
        self.unfold = nn.Conv2d(half, 4 * 12, 3, padding=1)
        self.fine1 = nn.Conv2d(12 + inputs, 16, 3, padding=1)
        self.fine2 = nn.Conv2d(16, 3, 3, padding=1)
        self.coarse_blocks = nn.ModuleList(
            Refinement(half, embedding) for _ in range(2 * (depth - 1))
        )
        self.fine_blocks = nn.ModuleList(Refinement(16, embedding) for _ in range(depth - 1))
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.fine2.weight)

    def encode(self, code: Tensor) -> Tensor:
        """(N, 128) unit codes to (N, embedding) class embeddings for the U-Net."""
        out: Tensor = self.embed(code * CODE**0.5)
        return out

    def fold(self, noisy: Tensor, context: Tensor) -> Tensor:
        """(N, 3, S, S) and (N, 7, S, S) to the U-Net's input (N, 160, S / 4, S / 4)."""
        return F.pixel_unshuffle(torch.cat([noisy, context], 1), FOLD)

    def forward(
        self, features: Tensor, noisy: Tensor, context: Tensor, embedding: Tensor
    ) -> Tensor:
        """The U-Net's output (N, features, S / 4, S / 4) to pixels (N, 3, S, S), about -1..1."""
        inputs = torch.cat([noisy, context], 1)
        x = torch.cat([F.pixel_shuffle(features, 2), self.skip(F.avg_pool2d(inputs, 2))], 1)
        scale, shift = self.film(F.silu(embedding))[:, :, None, None].chunk(2, 1)
        y = self.conv1(F.silu(self.norm1(x)))
        x = self.join(x) + self.conv2(F.silu(self.norm2(y) * (1 + scale) + shift))
        for block in self.coarse_blocks:
            x = block(x, embedding)
        x = F.pixel_shuffle(self.unfold(F.silu(x)), 2)
        fine = self.fine1(torch.cat([x, inputs], 1))
        for block in self.fine_blocks:
            fine = block(fine, embedding)
        out: Tensor = x[:, :3] + self.fine2(F.silu(fine))
        return out


class InpaintPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Draws a given new identity into head crops whose face region was removed.

    The U-Net predicts the clean picture (x0) at every step, so one step already is an answer and
    more steps refine it. `unet`, `adapter` and `prior` are trained by `anonymize train`.
    """

    def __init__(
        self, unet: UNet2DModel, adapter: FaceAdapter, prior: CodePrior, scheduler: DDIMScheduler
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, adapter=adapter, prior=prior, scheduler=scheduler)

    @property
    def size(self) -> int:
        """Side of the crops in pixels that it was trained on."""
        return FOLD * int(self.unet.config.sample_size)

    @torch.inference_mode()
    def __call__(
        self, context: Tensor, code: Tensor, noise: Tensor, steps: int = 1, **_: Any
    ) -> Tensor:
        """Generates faces.

        Args:
            context: (N, 7, S, S) as `contexts` makes it.
            code: (N, 128) unit identity codes.
            noise: (N, 3, S, S) normal, standard deviation up to 1; the only source of randomness.
            steps: scheduler steps, 1 or 2 are useful.

        Returns:
            (N, 3, S, S) in -1..1, the whole crop; outside the region it repeats the context.
        """
        last = torch.channels_last  # the layout of convolutions: nothing is copied in between
        context, noise = (
            context.contiguous(memory_format=last),
            noise.contiguous(memory_format=last),
        )
        mask = context[:, 3:4]
        scheduler = copy(self.scheduler)  # it keeps state, and threads share this pipeline
        scheduler.set_timesteps(steps, device=context.device)
        noisy = noise * mask
        clean = noisy
        for step in scheduler.timesteps:
            clean = predict(self.unet, self.adapter, noisy, step, context, code).clamp(-1, 1)
            if step > scheduler.timesteps[-1]:
                noisy = scheduler.step(clean, step, noisy).prev_sample * mask
        return clean


def predict(
    unet: UNet2DModel,
    adapter: FaceAdapter,
    noisy: Tensor,
    step: Tensor,
    context: Tensor,
    code: Tensor,
) -> Tensor:
    """One evaluation of the generator: the clean crop (N, 3, S, S), about -1..1.

    Args:
        noisy: (N, 3, S, S) the region's noised pixels, zero outside it.
        step: () or (N,) scheduler time step.
        context: (N, 7, S, S).
        code: (N, 128).
    """
    noisy, context, code = (x.to(adapter.dtype) for x in (noisy, context, code))
    embedding = adapter.encode(code)
    features = unet(adapter.fold(noisy, context), step, class_labels=embedding).sample
    out: Tensor = adapter(features, noisy, context, embedding)
    return out.float()


def contexts(crops: Tensor, masks: Tensor, heats: Tensor) -> Tensor:
    """What the generator is allowed to see of pictures.

    Args:
        crops: (N, 3, S, S) in -1..1.
        masks: (N, 1, S, S), 1 where the face is removed.
        heats: (N, 3, S, S) landmark maps.

    Returns:
        (N, 7, S, S); nothing under the mask is left in it.
    """
    return torch.cat([crops * (1 - masks), masks, heats], 1)


def new_pipeline(
    channels: Sequence[int] = (64, 128, 192),
    cells: int = 8,
    size: int = CROP_SIZE,
    depth: int = 2,
) -> InpaintPipeline:
    """An untrained pipeline for crops of `size` pixels, `depth` residual blocks to each level.

    Raises:
        ConfigError: the levels do not halve the folded crop evenly.
    """
    fold = FOLD * 2 ** (len(channels) - 1)
    if size % fold:
        raise ConfigError(
            f"got crops of {size} pixels, expected a multiple of {fold} for {len(channels)} levels"
        )
    features = 2 * channels[0]
    unet = UNet2DModel(
        sample_size=size // FOLD,
        in_channels=(3 + CONTEXT) * FOLD**2,
        out_channels=features,
        down_block_types=("DownBlock2D",) * len(channels),
        up_block_types=("UpBlock2D",) * len(channels),
        block_out_channels=tuple(channels),
        layers_per_block=depth,
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="identity",
        add_attention=False,
    )
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        prediction_type="sample",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        clip_sample=True,
    )
    adapter = FaceAdapter(embedding=4 * channels[0], features=features, depth=depth)
    return InpaintPipeline(unet, adapter, CodePrior(cells), scheduler)


def copy_networks(given: InpaintPipeline, pipeline: InpaintPipeline) -> None:
    """Gives a pipeline the U-Net and adapter of another one of the same channels.

    That may have less depth: the blocks it lacks begin as doing nothing, and so the pipeline draws
    what the other one does (Chen, Goodfellow and Shlens, Net2Net, 2016).
    """
    more = pipeline.unet.config.layers_per_block - given.unet.config.layers_per_block
    state = pipeline.unet.state_dict()
    for name, value in pipeline.unet.state_dict().items():
        if re.match(r"(down|up)_blocks.*conv2", name):
            state[name] = torch.zeros_like(value)
        elif re.match(r"up_blocks.*conv_shortcut\.weight", name):  # pass on, without the skip
            state[name] = torch.eye(*value.shape[:2])[:, :, None, None]
        elif re.match(r"up_blocks.*conv_shortcut\.bias", name):
            state[name] = torch.zeros_like(value)
    for name, value in given.unet.state_dict().items():
        # a level on the way up first meets what the last block on its way down has left
        later = re.sub(
            r"^(up_blocks\.\d+\.resnets\.)([1-9]\d*)",
            lambda found: f"{found[1]}{int(found[2]) + more}",
            name,
        )
        state[later] = value
    pipeline.unet.load_state_dict(state)
    pipeline.adapter.load_state_dict(given.adapter.state_dict(), strict=more == 0)
