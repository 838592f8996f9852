"""`remote_decode` and `remote_encode`: what is asked for in the protocol's words, and what its answers become."""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np
from PIL import Image

from . import transport
from .tensors import answered_picture, answered_tensor, is_torch, like, named, one_or_list, png, tensor_bytes
from .transport import ProgressCallback, Session

Query = list[tuple[str, str]]


def remote_decode(
    endpoint: str,
    tensor: Any,
    processor: Any = None,
    do_scaling: bool | None = True,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
    output_type: Literal["mp4", "pil", "pt"] = "pil",
    return_type: Literal["mp4", "pil", "pt"] = "pil",
    image_format: Literal["png", "jpg"] = "jpg",
    partial_postprocess: bool = False,
    input_tensor_type: Literal["binary"] = "binary",
    output_tensor_type: Literal["binary"] = "binary",
    height: int | None = None,
    width: int | None = None,
    *,
    precision: Literal["exact", "fast"] | None = None,
    fps: float | None = None,
    crf: int | None = None,
    windows: bool | None = None,
    tiling: bool | None = None,
    tile_sample_min_size: int | None = None,
    tile_latent_min_size: int | None = None,
    tile_overlap_factor: float | None = None,
    timeout: float | None = 600.0,
    retries: int = 2,
    api_key: str | None = None,
    progress: ProgressCallback | None = None,
    session: Session | None = None,
) -> Any:
    """Decodes latents into pictures.

    `tensor` holds latents `[batch, channels, height, width]`, those of a clip `[batch, channels, frames, height, width]`,
    or packed ones `[batch, tokens, channels]` with `height` and `width` of the picture in pixels. The latents are divided
    by `scaling_factor`, then `shift_factor` is added; with neither, and `do_scaling`, the server uses the model's own. False
    says that they are divided already, None nothing.

    - `output_type="pil"`: a PIL picture. A batch of several, or a clip, is asked for as bytes and comes back as a list.
    - `output_type="pt"`: with `return_type="pt"` a tensor of the kind that was given: float16 `[batch, 3, height, width]`
      in about -1 to 1, or with `partial_postprocess` uint8 `[batch, height, width, 3]`. With `return_type="pil"` a
      picture or a list of them: of the uint8 answer, or of `processor.postprocess` of the float one.
    - `output_type="mp4"`: the bytes of the file.

    Of a clip: `fps` and `crf` are frames per second and quality of an MP4 (the server's defaults are 10 and 23). `windows`
    and `tiling` say whether it is decoded in windows of frames and in tiles of pictures, as the server's `--windows` and
    `--tiling` do where they are None. Of a picture, `tiling=True` gives what diffusers computes after `enable_tiling()`;
    the three `tile_` arguments are its attributes of these names, or their defaults where they are None.

    `precision` is one of the server's, `timeout` the longest silence in seconds, `retries` how often a busy or unreachable
    server is asked again. `progress` is called with a `Progress` while bytes travel. A `session` brings its own
    connections, limits and key.

    Raises ValueError or TypeError for arguments that cannot be sent, ServerUnreachable, ServerRefused.
    """
    for name, value in [("input_tensor_type", input_tensor_type), ("output_tensor_type", output_tensor_type)]:
        if value != "binary":
            raise ValueError(f"Expected `{name}` to be 'binary'. Got {value!r}.")
    if output_type not in ("mp4", "pil", "pt"):
        raise ValueError(f"Expected `output_type` to be 'mp4', 'pil' or 'pt'. Got {output_type!r}.")
    if image_format not in ("png", "jpg"):
        raise ValueError(f"Expected `image_format` to be 'png' or 'jpg'. Got {image_format!r}.")
    if isinstance(tensor, Image.Image):
        raise TypeError("Expected latents as a torch tensor or a numpy array. Got a PIL picture: `remote_encode` takes those.")
    shape, dtype, body = tensor_bytes(tensor)
    check_latents(shape, height is not None and width is not None)
    wants_picture = output_type == "pil" and processor is None
    if wants_picture and (shape[0] > 1 or len(shape) == 5):
        # A picture file holds one sample.
        output_type, partial_postprocess, wants_picture, return_type = "pt", True, False, "pil"
    if output_type == "pt" and return_type == "pil" and not partial_postprocess and processor is None:
        raise ValueError("`output_type='pt'` gives pictures only with a `processor` or with `partial_postprocess`.")
    query = [
        ("image_format", image_format),
        ("output_type", output_type),
        ("partial_postprocess", str(bool(partial_postprocess))),
        *(("shape", str(side)) for side in shape),
        ("dtype", dtype),
    ]
    if do_scaling:
        query += factors(scaling_factor, shift_factor)
        if scaling_factor is None:
            query.append(("do_scaling", "True"))
    elif do_scaling is not None:
        query.append(("do_scaling", "False"))
    if height is not None and width is not None:
        query += [("height", str(height)), ("width", str(width))]
    if precision is not None:
        query.append(("precision", precision))
    query += clip_options(fps, crf, windows, tiling)
    query += tile_options(tile_sample_min_size, tile_latent_min_size, tile_overlap_factor)
    accept = "tensor/binary"
    if wants_picture:
        accept = "image/png" if image_format == "png" else "image/jpeg"
    elif output_type == "mp4":
        accept = "text/plain"
    headers = {"Accept": accept, "Content-Type": "tensor/binary"}
    answer = _session(session, timeout, retries, api_key).post(endpoint, query, body, headers, progress)
    if output_type == "mp4":
        return answer.body
    if wants_picture:
        return answered_picture(answer.headers, answer.body)
    array = answered_tensor(answer.headers, answer.body)
    if return_type == "pt":
        return like(array, tensor)
    return one_or_list(_pictures(array, output_type, processor))


def _pictures(array: np.ndarray, output_type: str, processor: Any) -> list[Image.Image]:
    """Pictures of an answer, one for each sample or frame."""
    if array.dtype == np.uint8:
        return [Image.fromarray(pixels) for pixels in array]
    if output_type == "pil":
        # The server has brought these to 0 to 1 already.
        pixels = (array.astype(np.float32).transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)
        return [Image.fromarray(picture) for picture in pixels]
    import torch

    tensor = torch.from_numpy(array)
    if array.ndim == 5:
        clips = processor.postprocess_video(tensor, output_type="pil")
        return [frame for clip in clips for frame in clip]
    return list(processor.postprocess(tensor, output_type="pil"))


def remote_encode(
    endpoint: str,
    image: Any,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
    *,
    do_scaling: bool | None = None,
    seed: int | None = None,
    precision: Literal["exact", "fast"] | None = None,
    windows: bool | None = None,
    tiling: bool | None = None,
    tile_sample_min_size: int | None = None,
    tile_latent_min_size: int | None = None,
    tile_overlap_factor: float | None = None,
    timeout: float | None = 600.0,
    retries: int = 2,
    api_key: str | None = None,
    progress: ProgressCallback | None = None,
    session: Session | None = None,
) -> Any:
    """Encodes a picture into latents `[batch, channels, height, width]`, float16.

    `image` is a PIL picture, a list of them of one size, or a torch tensor or numpy array `[batch, 3, height, width]` (of one
    picture also `[3, height, width]`): in -1 to 1 where it has negative values, otherwise in 0 to 1 (bytes: 0 to 255). `shift_factor` is taken off the latents,
    which are then multiplied by `scaling_factor`; with neither they stay as the model gives them, or with `do_scaling` get
    the model's own factors (False: those of a full autoencoder, also from a tiny one). They are the mode of the
    encoder's distribution, or with `seed` a sample. A picture gives a torch tensor where torch can be imported, otherwise a
    numpy array; a tensor gives one of its kind. The other arguments are those of `remote_decode`.

    Raises ValueError or TypeError for arguments that cannot be sent, ServerUnreachable, ServerRefused.
    """
    query = factors(scaling_factor, shift_factor)
    pictures = [image] if isinstance(image, Image.Image) else image
    is_pictures = isinstance(pictures, (list, tuple))
    if is_pictures and len(pictures) == 1 and isinstance(pictures[0], Image.Image):
        body, content = png(pictures[0]), "image/png"
    else:
        shape, dtype, body = tensor_bytes(_stacked(pictures) if is_pictures else _pixels(image))
        query += [*(("shape", str(side)) for side in shape), ("dtype", dtype)]
        content = "tensor/binary"
    if do_scaling is not None:
        query.append(("do_scaling", str(bool(do_scaling))))
    if precision is not None:
        query.append(("precision", precision))
    query += clip_options(None, None, windows, tiling)
    query += tile_options(tile_sample_min_size, tile_latent_min_size, tile_overlap_factor)
    if seed is not None:
        query.append(("seed", str(seed)))
    headers = {"Accept": "*/*", "Content-Type": content}
    answer = _session(session, timeout, retries, api_key).post(endpoint, query, body, headers, progress)
    array = answered_tensor(answer.headers, answer.body)
    if is_pictures:
        try:
            import torch
        except ImportError:
            return array
        return torch.from_numpy(array)
    return like(array, image)


def check_latents(shape: list[int], has_size: bool) -> None:
    """Whether `shape` can be that of latents; `has_size` says that the picture's height and width are given."""
    if len(shape) in (4, 5) or (len(shape) == 3 and has_size):
        return
    if len(shape) == 3:
        raise ValueError(
            f"Expected latents [batch, channels, height, width]. Got shape {shape}: packed latents (Flux, [batch, tokens, "
            "channels]) also need `height` and `width` of the picture in pixels, others a batch axis (`latents[None]`)."
        )
    raise ValueError(
        f"Expected latents [batch, channels, height, width], or of a clip [batch, channels, frames, height, width]. Got "
        f"shape {shape}."
    )


#: What an encode takes, for messages.
_ENCODED = "a PIL picture, a list of PIL pictures, or a torch tensor or numpy array [batch, 3, height, width]"


def _pixels(image: Any) -> Any:
    """A tensor of pixels, checked: latents and arrays with channels last are easily taken for one."""
    if not (is_torch(image) or isinstance(image, np.ndarray)):
        advice = "; open it first: `PIL.Image.open(path)`" if isinstance(image, (str, os.PathLike)) else ""
        raise TypeError(f"Expected {_ENCODED}. Got {named(image)}{advice}.")
    shape = list(image.shape)
    if (len(shape) in (4, 5) and shape[1] == 3) or (len(shape) == 3 and shape[0] == 3):
        return image
    advice = ""
    if len(shape) >= 3 and shape[-1] in (1, 3, 4) and shape[-3] not in (1, 3):
        advice = ": an array with channels last becomes a picture with `PIL.Image.fromarray`"
    elif len(shape) in (4, 5) and shape[1] > 3:
        advice = ": if these are latents, `remote_decode` makes a picture of them"
    raise ValueError(f"Expected {_ENCODED}. Got shape {shape}{advice}.")


def _stacked(pictures: Any) -> np.ndarray:
    """Pictures of one size as bytes `[batch, 3, height, width]`."""
    if not pictures or not all(isinstance(picture, Image.Image) for picture in pictures):
        raise TypeError(f"Expected {_ENCODED}. Got {named(pictures)}.")
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        raise ValueError(f"Expected pictures of one size. Got {sorted(sizes)} (width, height).")
    return np.stack([np.asarray(picture.convert("RGB")).transpose(2, 0, 1) for picture in pictures])


def factors(scaling_factor: float | None, shift_factor: float | None) -> Query:
    """The factors that are given, as parameters."""
    given = {"scaling_factor": scaling_factor, "shift_factor": shift_factor}
    return [(name, repr(float(value))) for name, value in given.items() if value is not None]


def clip_options(fps: float | None, crf: int | None, windows: bool | None, tiling: bool | None) -> Query:
    """What is asked of a clip, as parameters."""
    numbers = [("fps", fps), ("crf", crf)]
    query = [(name, str(value)) for name, value in numbers if value is not None]
    flags = [("windows", windows), ("tiling", tiling)]
    return query + [(name, "on" if value else "off") for name, value in flags if value is not None]


def tile_options(sample_min_size: int | None, latent_min_size: int | None, overlap_factor: float | None) -> Query:
    """The sizes of tiles that are given, as parameters."""
    given = {
        "tile_sample_min_size": sample_min_size,
        "tile_latent_min_size": latent_min_size,
        "tile_overlap_factor": overlap_factor,
    }
    return [(name, str(value)) for name, value in given.items() if value is not None]


def _session(
    session: Session | None, timeout: float | None, retries: int, api_key: str | None
) -> Session:
    return transport.shared.with_options(timeout, retries, api_key) if session is None else session
