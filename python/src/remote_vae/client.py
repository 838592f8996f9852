"""`remote_decode` and `remote_encode`: tensors and pictures to requests, answers to tensors and pictures."""

from __future__ import annotations

import io
import json
from typing import Any, Literal

import numpy as np
from PIL import Image

from .errors import RemoteVAEError
from .transport import post

DTYPES = {"float16": np.float16, "float32": np.float32, "uint8": np.uint8}


def _is_torch(value: Any) -> bool:
    return type(value).__module__.split(".")[0] == "torch"


def _tensor_bytes(tensor: Any) -> tuple[list[int], str, bytes]:
    """Shape, name of the dtype and the elements in order, little-endian, of a torch tensor or a numpy array."""
    if _is_torch(tensor):
        import torch

        tensor = tensor.detach().cpu().contiguous()
        shape, dtype = list(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        if dtype == "bfloat16":
            tensor = tensor.view(torch.int16)
        elements = tensor.numpy()
    elif isinstance(tensor, np.ndarray):
        elements, shape, dtype = np.ascontiguousarray(tensor), list(tensor.shape), tensor.dtype.name
    else:
        raise TypeError(f"Expected a torch tensor or a numpy array. Got {type(tensor).__name__}.")
    if dtype not in (*DTYPES, "bfloat16"):
        raise TypeError(f"Expected float16, float32, bfloat16 or uint8 elements. Got {dtype}.")
    return shape, dtype, elements.astype(elements.dtype.newbyteorder("<"), copy=False).tobytes()


def _answered_tensor(headers: Any, body: bytes) -> np.ndarray:
    """The tensor of an answer that says its shape and dtype in headers."""
    try:
        shape, dtype = json.loads(headers["shape"]), DTYPES[headers["dtype"]]
        elements = np.frombuffer(body, np.dtype(dtype).newbyteorder("<"))
        return elements.reshape(shape).astype(dtype)
    except (KeyError, TypeError, ValueError) as error:
        said = f"shape {headers.get('shape')!r}, dtype {headers.get('dtype')!r}, {len(body)} bytes"
        raise RemoteVAEError(f"Expected a tensor in the answer. Got {said}.") from error


def _like(array: np.ndarray, given: Any) -> Any:
    if not _is_torch(given):
        return array
    import torch

    return torch.from_numpy(array)


def _one_or_list(pictures: list[Image.Image]) -> Image.Image | list[Image.Image]:
    return pictures[0] if len(pictures) == 1 else pictures


def _headers(accept: str, content: str, api_key: str | None) -> dict[str, str]:
    headers = {"Accept": accept, "Content-Type": content}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    return headers


def remote_decode(
    endpoint: str,
    tensor: Any,
    processor: Any = None,
    do_scaling: bool = True,
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
    timeout: float | None = 600.0,
    retries: int = 2,
    api_key: str | None = None,
) -> Any:
    """Decodes latents into pictures.

    `tensor` holds latents `[batch, channels, height, width]`, or packed ones `[batch, tokens, channels]` with `height`
    and `width` of the picture in pixels. The latents are divided by `scaling_factor`, then `shift_factor` is added; with
    neither, and `do_scaling`, the server uses the model's own.

    - `output_type="pil"`: a PIL picture. A batch of several is asked for as bytes and comes back as a list.
    - `output_type="pt"`: with `return_type="pt"` a tensor of the kind that was given: float16 `[batch, 3, height, width]`
      in about -1 to 1, or with `partial_postprocess` uint8 `[batch, height, width, 3]`. With `return_type="pil"` a
      picture or a list of them: of the uint8 answer, or of `processor.postprocess` of the float one.
    - `output_type="mp4"`: the bytes of the file.

    `timeout` is the longest silence in seconds, `retries` how often a busy or unreachable server is asked again.

    Raises ValueError or TypeError for arguments that cannot be sent, ServerUnreachable, ServerRefused.
    """
    for name, value in [("input_tensor_type", input_tensor_type), ("output_tensor_type", output_tensor_type)]:
        if value != "binary":
            raise ValueError(f"Expected `{name}` to be 'binary'. Got {value!r}.")
    if output_type not in ("mp4", "pil", "pt"):
        raise ValueError(f"Expected `output_type` to be 'mp4', 'pil' or 'pt'. Got {output_type!r}.")
    if image_format not in ("png", "jpg"):
        raise ValueError(f"Expected `image_format` to be 'png' or 'jpg'. Got {image_format!r}.")
    shape, dtype, body = _tensor_bytes(tensor)
    if len(shape) == 3 and (height is None or width is None):
        raise ValueError("Packed latents (3 dimensions) need `height` and `width`, in pixels.")
    wants_picture = output_type == "pil" and processor is None
    if wants_picture and shape[0] > 1:
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
        factors = {"scaling_factor": scaling_factor, "shift_factor": shift_factor}
        query += [(name, repr(float(value))) for name, value in factors.items() if value is not None]
        if scaling_factor is None:
            query.append(("do_scaling", "True"))
    if height is not None and width is not None:
        query += [("height", str(height)), ("width", str(width))]
    accept = "tensor/binary"
    if wants_picture:
        accept = "image/png" if image_format == "png" else "image/jpeg"
    elif output_type == "mp4":
        accept = "text/plain"
    headers, answer = post(
        endpoint, query, body, _headers(accept, "tensor/binary", api_key), timeout, retries
    )
    if output_type == "mp4":
        return answer
    if wants_picture:
        return Image.open(io.BytesIO(answer)).convert("RGB")
    array = _answered_tensor(headers, answer)
    if return_type == "pt":
        return _like(array, tensor)
    if array.dtype == np.uint8:
        return _one_or_list([Image.fromarray(pixels) for pixels in array])
    if output_type == "pil":
        # The server has brought these to 0 to 1 already.
        pixels = (array.astype(np.float32).transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)
        return _one_or_list([Image.fromarray(picture) for picture in pixels])
    import torch

    return _one_or_list(processor.postprocess(torch.from_numpy(array), output_type="pil"))


def remote_encode(
    endpoint: str,
    image: Any,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
    *,
    timeout: float | None = 600.0,
    retries: int = 2,
    api_key: str | None = None,
) -> Any:
    """Encodes a picture into latents `[batch, channels, height, width]`, float16.

    `image` is a PIL picture, or a torch tensor or numpy array `[batch, 3, height, width]`: in -1 to 1 where it has
    negative values, otherwise in 0 to 1. `shift_factor` is taken off the latents, which are then multiplied by
    `scaling_factor`; with neither they stay as the model gives them. A picture gives a torch tensor where torch can be
    imported, otherwise a numpy array; a tensor gives one of its kind.

    Raises ValueError or TypeError for arguments that cannot be sent, ServerUnreachable, ServerRefused.
    """
    factors = {"scaling_factor": scaling_factor, "shift_factor": shift_factor}
    query = [(name, repr(float(value))) for name, value in factors.items() if value is not None]
    if isinstance(image, Image.Image):
        file = io.BytesIO()
        image.save(file, format="PNG")
        body, content = file.getvalue(), "image/png"
    else:
        shape, dtype, body = _tensor_bytes(image)
        query += [*(("shape", str(side)) for side in shape), ("dtype", dtype)]
        content = "tensor/binary"
    headers, answer = post(endpoint, query, body, _headers("*/*", content, api_key), timeout, retries)
    array = _answered_tensor(headers, answer)
    if isinstance(image, Image.Image):
        try:
            import torch
        except ImportError:
            return array
        return torch.from_numpy(array)
    return _like(array, image)
