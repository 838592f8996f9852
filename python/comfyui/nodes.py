"""Remote VAE Decode, Encode and Decode (video).

ComfyUI's latents are those of the autoencoder itself: its samplers end with `process_out` of the model's latent format, which
undoes scaling, shift, means and deviations (SD 1.x, SDXL, SD3, Flux, HunyuanVideo, Wan …). So they travel without any factor.
FLUX.2 is the exception: its latents stay normalised, in 2x2 patches as 128 channels, and its autoencoder undoes both.

Images are float32 `[batch, height, width, 3]` in 0 to 1, frames of a video one after the other; latents are
`{"samples": [batch, channels, height, width]}` or `[batch, channels, frames, height, width]`.
"""

from __future__ import annotations

import os
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from typing import Any, Callable

import torch

try:
    from remote_vae import ModelNotFound, RemoteVAEError, Session, remote_decode, remote_encode, server_info
    from remote_vae.info import served_model
    from remote_vae.transport import ProgressCallback
except ImportError as error:
    raise ImportError("The nodes of remote-vae need its package: pip install remote-vae") from error

#: Holds the key where none is typed: what is typed is saved with the workflow, and in every picture made by it.
KEY_VARIABLE = "REMOTE_VAE_API_KEY"
#: Seconds between two looks at ComfyUI's stop button.
LOOK = 0.1

SERVER_INPUTS = {
    "url": (
        "STRING",
        {"default": "http://127.0.0.1:8080", "tooltip": "Address of a `remote-vae serve`, or another Remote VAE endpoint."},
    ),
    "model": (
        "STRING",
        {"default": "", "tooltip": "Name of one of the server's models; empty for its first one."},
    ),
    "precision": (
        ["server default", "exact", "fast"],
        {"tooltip": "exact: 32-bit floating point. fast: 16 bits where that does no harm."},
    ),
}
OPTIONAL_INPUTS = {
    "api_key": (
        "STRING",
        {
            "default": "",
            "tooltip": f"The server's key. It is saved with the workflow and in pictures: leave it empty and set {KEY_VARIABLE}.",
        },
    ),
}


class _Server:
    """What the inputs of a node name."""

    def __init__(self, url: str, model: str, precision: str, api_key: str) -> None:
        address = url.strip().rstrip("/")
        self.url = f"{address}/{urllib.parse.quote(model.strip())}" if model.strip() else address
        self.precision = None if precision == "server default" else precision
        self.session = Session(api_key=api_key.strip() or os.environ.get(KEY_VARIABLE) or None)

    def description(self) -> dict[str, Any]:
        """The served model's description; empty for servers that have none."""
        try:
            info = server_info(self.url, session=self.session)
        except ModelNotFound:
            return {}
        return served_model(self.url, info)["description"]

    def run(self, work: Callable[[ProgressCallback], Any]) -> Any:
        """Does `work` in a thread, while ComfyUI's progress bar moves and its stop button ends it."""
        bar = _progress_bar()
        with ThreadPoolExecutor(1, thread_name_prefix="remote-vae") as threads:
            future = threads.submit(work, bar)
            while True:
                try:
                    return future.result(LOOK)
                except NotYet:
                    if future.done():
                        raise
                try:
                    _raise_if_interrupted()
                except BaseException:
                    self.session.abort()
                    raise

    def decode(self, latents: torch.Tensor, normalised: bool) -> torch.Tensor:
        """Pixels `[batch, 3, …]` of about -1 to 1."""

        def work(progress: ProgressCallback) -> torch.Tensor:
            return remote_decode(
                self.url,
                latents,
                do_scaling=normalised,
                output_type="pt",
                return_type="pt",
                precision=self.precision,
                session=self.session,
                progress=progress,
            )

        return self.run(work)

    def encode(self, pixels: torch.Tensor, normalised: bool) -> torch.Tensor:
        """Latents of pixels `[batch, 3, …]` in 0 to 1."""

        def work(progress: ProgressCallback) -> torch.Tensor:
            return remote_encode(
                self.url,
                pixels,
                do_scaling=normalised,
                precision=self.precision,
                session=self.session,
                progress=progress,
            )

        return self.run(work)


def _progress_bar() -> ProgressCallback:
    """Moves ComfyUI's bar of this node: bytes sent and received, a half each. Without ComfyUI nothing."""
    try:
        from comfy.utils import ProgressBar
    except ImportError:
        return lambda _: None
    bar = ProgressBar(100)
    first = {"sending": 0, "computing": 50, "receiving": 50}

    def tell(progress: Any) -> None:
        share = 0.0 if progress.stage == "computing" else progress.done / max(progress.total, 1)
        bar.update_absolute(first[progress.stage] + int(50 * min(share, 1.0)))

    return tell


def _raise_if_interrupted() -> None:
    try:
        from comfy.model_management import throw_exception_if_processing_interrupted
    except ImportError:
        return
    throw_exception_if_processing_interrupted()


def _images(pixels: torch.Tensor) -> torch.Tensor:
    """`[batch, 3, …, height, width]` of about -1 to 1 as images, frames one after the other."""
    images = pixels.float().div_(2).add_(0.5).clamp_(0, 1).movedim(1, -1)
    return images.reshape(-1, *images.shape[-3:]).contiguous()


def _is_flux_two(description: dict[str, Any]) -> bool:
    return description.get("family") == "AutoencoderKLFlux2"


class RemoteVAEDecode:
    """Latents to images."""

    CATEGORY = "latent"
    DESCRIPTION = "Decodes latents on a Remote VAE server."
    FUNCTION = "decode"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        samples = ("LATENT", {"tooltip": "The latents to decode, as ComfyUI's samplers give them."})
        return {"required": {"samples": samples, **SERVER_INPUTS}, "optional": OPTIONAL_INPUTS}

    def decode(
        self, samples: dict[str, Any], url: str, model: str, precision: str, api_key: str = ""
    ) -> tuple[torch.Tensor]:
        latents = samples["samples"]
        if latents.ndim not in (4, 5):
            raise ValueError(f"Expected latents of 4 or 5 dimensions. Got shape {list(latents.shape)}.")
        server = _Server(url, model, precision, api_key)
        return (_images(server.decode(latents, _is_flux_two(server.description()))),)


class RemoteVAEDecodeVideo(RemoteVAEDecode):
    """Latents of a video to its frames."""

    DESCRIPTION = "Decodes the latents of videos (HunyuanVideo, Wan …) on a Remote VAE server, to frames."

    def decode(
        self, samples: dict[str, Any], url: str, model: str, precision: str, api_key: str = ""
    ) -> tuple[torch.Tensor]:
        latents = samples["samples"]
        if latents.ndim != 5:
            raise ValueError(
                f"Expected latents of a video, [batch, channels, frames, height, width]. Got shape {list(latents.shape)}."
            )
        server = _Server(url, model, precision, api_key)
        # Tells a wrong name of a model before the latents travel.
        server.description()
        # One request each: the answer to a video is large.
        return (torch.cat([_images(server.decode(clip[None], False)) for clip in latents]),)


class RemoteVAEEncode:
    """Images to latents, the mode of the encoder's distribution: the same each time."""

    CATEGORY = "latent"
    DESCRIPTION = "Encodes images on a Remote VAE server. Models of videos take the images as frames."
    FUNCTION = "encode"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        pixels = ("IMAGE", {"tooltip": "The images to encode; sides are cut to multiples of the model's factor."})
        return {"required": {"pixels": pixels, **SERVER_INPUTS}, "optional": OPTIONAL_INPUTS}

    def encode(
        self, pixels: torch.Tensor, url: str, model: str, precision: str, api_key: str = ""
    ) -> tuple[dict[str, torch.Tensor]]:
        server = _Server(url, model, precision, api_key)
        description = server.description()
        normalised = _is_flux_two(description)
        factor = description.get("spatial_factor", 8) * (2 if normalised else 1)
        planes = _cut(pixels[..., :3], factor).movedim(-1, 1).float().clamp(0, 1)
        frames = description.get("temporal_factor")
        if frames is not None:
            kept = 1 + (planes.shape[0] - 1) // frames * frames
            planes = planes[:kept].movedim(0, 1)[None]
        latents = server.encode(planes, normalised).float()
        if normalised:
            latents = torch.nn.functional.pixel_unshuffle(latents, 2)
        return ({"samples": latents},)


def _cut(images: torch.Tensor, factor: int) -> torch.Tensor:
    """The middle of images `[batch, height, width, 3]` with sides that are multiples of `factor`, as ComfyUI cuts them."""
    for dimension in (1, 2):
        side = images.shape[dimension]
        if side < factor:
            raise RemoteVAEError(f"Expected images of at least {factor}x{factor} pixels. Got shape {list(images.shape)}.")
        images = images.narrow(dimension, side % factor // 2, side - side % factor)
    return images


NODE_CLASS_MAPPINGS = {
    "RemoteVAEDecode": RemoteVAEDecode,
    "RemoteVAEDecodeVideo": RemoteVAEDecodeVideo,
    "RemoteVAEEncode": RemoteVAEEncode,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "RemoteVAEDecode": "Remote VAE Decode",
    "RemoteVAEDecodeVideo": "Remote VAE Decode (video)",
    "RemoteVAEEncode": "Remote VAE Encode",
}
