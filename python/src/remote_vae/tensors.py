"""Tensors and pictures as they travel: torch tensors, numpy arrays and PIL pictures to bytes and back."""

from __future__ import annotations

import io
import json
import sys
from email.message import Message
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from .errors import RemoteVAEError

DTYPES = {"float16": np.float16, "float32": np.float32, "uint8": np.uint8}


def is_torch(value: Any) -> bool:
    """Whether `value` is a torch tensor (or its subclass); torch is not imported for it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def tensor_bytes(tensor: Any) -> tuple[list[int], str, bytes]:
    """Shape, name of the dtype and the elements in order, little-endian, of a torch tensor or a numpy array."""
    if is_torch(tensor):
        import torch

        tensor = tensor.detach().cpu().contiguous()
        shape, dtype = list(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        if dtype == "bfloat16":
            tensor = tensor.view(torch.int16)
        elements = tensor.numpy()
    elif isinstance(tensor, np.ndarray):
        elements, shape, dtype = np.ascontiguousarray(tensor), list(tensor.shape), tensor.dtype.name
    else:
        raise TypeError(f"Expected latents as a torch tensor or a numpy array. Got {named(tensor)}.")
    if dtype not in (*DTYPES, "bfloat16"):
        raise TypeError(f"Expected float16, float32, bfloat16 or uint8 elements. Got {dtype}.")
    if elements.size == 0:
        raise ValueError(f"Expected a tensor with elements. Got shape {shape}.")
    return shape, dtype, elements.astype(elements.dtype.newbyteorder("<"), copy=False).tobytes()


def named(value: Any) -> str:
    """What `value` is, for messages: of a list also what is in it."""
    if value is None:
        return "None"
    kind = type(value).__name__
    if isinstance(value, (list, tuple)):
        return f"a {kind} of {type(value[0]).__name__}" if value else f"an empty {kind}"
    return f"{kind} {value!r}" if isinstance(value, str) else kind


def answered_tensor(headers: Message, body: bytes) -> np.ndarray:
    """The tensor of an answer that says its shape and dtype in headers."""
    try:
        shape, dtype = json.loads(headers["shape"]), DTYPES[headers["dtype"]]
        elements = np.frombuffer(body, np.dtype(dtype).newbyteorder("<"))
        return elements.reshape(shape).astype(dtype)
    except (KeyError, TypeError, ValueError) as error:
        raise RemoteVAEError(_unexpected("a tensor", headers, body)) from error


def answered_picture(headers: Message, body: bytes) -> Image.Image:
    """The picture of an answer that is a PNG or JPEG file, as RGB."""
    try:
        return Image.open(io.BytesIO(body)).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise RemoteVAEError(_unexpected("a picture", headers, body)) from error


def _unexpected(expected: str, headers: Message, body: bytes) -> str:
    said = f"content type {headers.get('content-type')!r}, shape {headers.get('shape')!r}, {len(body)} bytes"
    return f"Expected {expected} in the answer. Got {said}; is it a Remote VAE endpoint?"


def like(array: np.ndarray, given: Any) -> Any:
    """`array` as a torch tensor on the CPU if `given` is one."""
    if not is_torch(given):
        return array
    import torch

    return torch.from_numpy(array)


def one_or_list(pictures: list[Image.Image]) -> Image.Image | list[Image.Image]:
    """A picture alone, several as a list."""
    return pictures[0] if len(pictures) == 1 else pictures


#: Modes of Pillow that a PNG file has.
_OF_PNG = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})


def png(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    file = io.BytesIO()
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        # Pillow's own conversion refuses some of these, or wraps what 16 bits do not hold, by its version.
        picture = Image.fromarray(np.asarray(picture).clip(0, 65535).astype(np.uint16))
    elif picture.mode not in _OF_PNG:
        # Nothing but their unmultiplied forms comes of the modes with premultiplied alpha.
        picture = picture.convert({"RGBa": "RGBA", "La": "LA"}.get(picture.mode, "RGB"))
    picture.save(file, format="PNG")
    return file.getvalue()
