"""`RemoteVAE`: takes the place of `pipe.vae` in the pipelines of diffusers. Needs torch and diffusers."""

from __future__ import annotations

from typing import Any, Literal, Mapping

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput

from .client import Query
from .errors import ModelNotFound, RemoteVAEError
from .info import served_model, server_info
from .local import LocalServer
from .tensors import answered_tensor, tensor_bytes
from .transport import ProgressCallback, Session, shown


class LatentsOutput(dict[str, torch.Tensor]):
    """What encoding gives for models without a distribution (the tiny ones): `latents`."""

    def __init__(self, latents: torch.Tensor) -> None:
        super().__init__(latents=latents)
        self.latents = latents


class RemoteVAE(ModelMixin, ConfigMixin):
    """An autoencoder that works elsewhere: on a server, or with `local=True` on this machine's processor.

        pipe = StableDiffusionPipeline.from_pretrained(..., vae=RemoteVAE("http://localhost:8080"))
        pipe = StableDiffusionPipeline.from_pretrained(..., vae=RemoteVAE(local=True, model="sd-v1"))

    `url` is the server's address; `model` names one of its models (the same as `url/model`), or with `local` what
    `remote-vae serve --model` takes. `config` holds the keys of the model's config.json; a remote-vae server is asked for
    them, any other server of the protocol cannot tell. `precision` is one of the server's. `timeout` (seconds of silence),
    `retries`, `api_key` and `progress` are those of `remote_decode`; `threads` bounds the processors that `local` uses.

    `dtype` and `device` are those of its results: float32 on the CPU at first, changed by `to` as for any module. Numbers
    come from the server as float16, or better said as float16 can hold them. No gradients pass.

    Raises ServerUnreachable, ServerRefused, RemoteVAEError.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        model: str | None = None,
        local: bool = False,
        config: Mapping[str, Any] | None = None,
        precision: Literal["exact", "fast"] | None = None,
        threads: int | None = None,
        timeout: float | None = 600.0,
        retries: int = 2,
        api_key: str | None = None,
        progress: ProgressCallback | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if (url is None) != local:
            raise ValueError("Expected either the `url` of a server or `local=True`.")
        if threads is not None and not local:
            raise ValueError("`threads` is for `local=True`; a server has its own.")
        self._server = LocalServer(model, precision=precision, threads=threads) if local else None
        if self._server is not None:
            url = self._server.url
        elif model is not None:
            url = f"{str(url).rstrip('/')}/{model}"
        self._url = str(url)
        self._session = Session(timeout=timeout, retries=retries, api_key=api_key)
        self._precision = precision
        self._progress = progress
        # Has dtype and device, and takes part in `to`, `half` and the hooks that move modules.
        self.register_buffer("_place", torch.zeros(1), persistent=False)
        found = dict(config) if config is not None else self._served_config()
        self._gives_latents = found.get("_class_name") == "AutoencoderTiny"
        self.register_to_config(**found)  # type: ignore[no-untyped-call]
        # Pipelines may set these; the server bounds its memory by itself.
        self.use_tiling = False
        self.use_slicing = False

    def _served_config(self) -> dict[str, Any]:
        """The served model's config in diffusers' words."""
        try:
            info = server_info(self._url, session=self._session)
        except ModelNotFound as error:
            raise RemoteVAEError(
                f"{shown(self._url)} does not tell what its model is; pass the `config` of its config.json."
            ) from error
        description = served_model(self._url, info)["description"]
        config = {"_class_name": description["family"], **description["config"]}
        config.setdefault("latent_channels", description["latent_channels"])
        config.setdefault("force_upcast", False)
        scaling = description["scaling"]
        if scaling["kind"] == "per_channel":
            config.setdefault("latents_mean", scaling["mean"])
            config.setdefault("latents_std", scaling["std"])
        elif scaling["kind"] == "per_patch_element":
            self.bn = _batch_norm(scaling, config["batch_norm_eps"])
        if description["family"] == "AutoencoderTiny":
            config |= {"scaling_factor": 1.0, "shift_factor": 0.0, "latent_magnitude": 3, "latent_shift": 0.5}
            config["block_out_channels"] = config["decoder_block_out_channels"]
        if description["temporal_factor"] is not None:
            config.setdefault("spatial_compression_ratio", description["spatial_factor"])
            config.setdefault("temporal_compression_ratio", description["temporal_factor"])
            config.setdefault("scale_factor_spatial", description["spatial_factor"])
            config.setdefault("scale_factor_temporal", description["temporal_factor"])
            config.setdefault("z_dim", description["latent_channels"])
        return config

    @property
    def url(self) -> str:
        """The address that is asked."""
        return self._url

    @property
    def spatial_compression_ratio(self) -> int:
        """Pixels per latent, both ways."""
        levels = self.config.get("block_out_channels") or [0] * 4
        return int(self.config.get("spatial_compression_ratio") or 2 ** (len(levels) - 1))

    @property
    def temporal_compression_ratio(self) -> int:
        """Frames per latent after the first; 1 for models of pictures."""
        return int(self.config.get("temporal_compression_ratio") or 1)

    def decode(
        self, z: torch.Tensor, return_dict: bool = True, generator: Any = None
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Decodes latents `[batch, channels, height, width]` or `[batch, channels, frames, height, width]`, in the model's
        own space as pipelines hand them over, to pixels of about -1 to 1, not clamped: `[batch, 3, …]`. Nothing is drawn
        from `generator`."""
        self._check_gradients(z)
        query = [("output_type", "pt"), ("partial_postprocess", "False")]
        sample = self._ask(z, query, "tensor/binary")
        return DecoderOutput(sample=sample.to(self._place)) if return_dict else (sample.to(self._place),)

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderKLOutput | LatentsOutput | tuple[Any]:
        """Encodes pixels `[batch, 3, height, width]` or `[batch, 3, frames, height, width]` in -1 to 1 to the distribution
        of latents (`latent_dist`) in the model's own space; a tiny model's give `latents`. In the dtype of `x`."""
        self._check_gradients(x)
        # The protocol takes a tensor without negative values as 0 to 1.
        pixels = x.float() if bool(x.min() < 0) else (x.float() + 1) / 2
        query = [] if self._gives_latents else [("moments", "True")]
        encoded = self._ask(pixels, query, "*/*").to(x)
        if self._gives_latents:
            return LatentsOutput(encoded) if return_dict else (encoded,)
        # A server without moments gives the mode.
        channels = self.config.get("latent_channels") or self.config.get("z_dim") or 0
        has_moments = encoded.shape[1] == 2 * int(channels)
        moments = encoded if has_moments else torch.cat([encoded, torch.zeros_like(encoded)], dim=1)
        distribution = DiagonalGaussianDistribution(moments, deterministic=not has_moments)
        return AutoencoderKLOutput(latent_dist=distribution) if return_dict else (distribution,)

    def forward(
        self,
        sample: torch.Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Encodes and decodes `sample`, `[batch, 3, height, width]` in -1 to 1."""
        encoded = self.encode(sample)
        if isinstance(encoded, LatentsOutput):
            latents = encoded.latents
        else:
            assert isinstance(encoded, AutoencoderKLOutput)
            distribution = encoded.latent_dist
            latents = distribution.sample(generator) if sample_posterior else distribution.mode()
        return self.decode(latents, return_dict=return_dict)

    def close(self) -> None:
        """Closes connections, and stops the server if `local` started it."""
        self._session.close()
        if self._server is not None:
            self._server.close()

    def enable_tiling(self, *_: Any, **__: Any) -> None:
        """Nothing: the server bounds its memory by itself, without seams."""

    def disable_tiling(self) -> None:
        """Nothing, as `enable_tiling`."""

    def enable_slicing(self) -> None:
        """Nothing: the server computes one picture at a time."""

    def disable_slicing(self) -> None:
        """Nothing, as `enable_slicing`."""

    def _ask(self, tensor: torch.Tensor, query: Query, accept: str) -> torch.Tensor:
        shape, dtype, body = tensor_bytes(tensor)
        query = [*query, *(("shape", str(side)) for side in shape), ("dtype", dtype)]
        if self._precision is not None:
            query.append(("precision", self._precision))
        headers = {"Accept": accept, "Content-Type": "tensor/binary"}
        answer = self._session.post(self._url, query, body, headers, self._progress)
        return torch.from_numpy(answered_tensor(answer.headers, answer.body))

    @staticmethod
    def _check_gradients(tensor: torch.Tensor) -> None:
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise RuntimeError("RemoteVAE passes no gradients; call it under torch.no_grad().")


def _batch_norm(scaling: Mapping[str, Any], epsilon: float) -> torch.nn.BatchNorm2d:
    """The statistics that FLUX.2's pipelines read off the autoencoder."""
    mean = torch.tensor(scaling["mean"])
    norm = torch.nn.BatchNorm2d(len(mean), eps=epsilon, affine=False)
    norm.running_mean = mean
    norm.running_var = torch.tensor(scaling["std"]) ** 2 - epsilon
    return norm.eval().requires_grad_(False)
