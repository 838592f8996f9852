"""What a server tells about itself and its models at `/info`."""

from __future__ import annotations

import json
import urllib.parse
from typing import Any

from . import transport
from .errors import ModelNotFound, RemoteVAEError
from .transport import Session

#: Paths of the protocol that are no names of models.
_ACTIONS = frozenset({"", "predict", "decode", "encode"})


def server_info(endpoint: str, *, session: Session | None = None) -> dict[str, Any]:
    """The server's `/info`: `version`, `models` with their configs and latent spaces, `limits`, `queue` and more.

    Raises ServerUnreachable, or ServerRefused from a server that is no remote-vae.
    """
    try:
        info = json.loads((session or transport.shared).get(endpoint, "/info").body)
    except ValueError:
        info = None
    if not isinstance(info, dict) or not isinstance(info.get("models"), list):
        raise RemoteVAEError(f"{transport.shown(endpoint)} has an `/info` of another kind; is it a remote-vae server?")
    return info


def served_model(endpoint: str, info: dict[str, Any]) -> dict[str, Any]:
    """The entry of `models` that `endpoint` asks: by the first part of its path, or the default one.

    Raises ModelNotFound.
    """
    name = urllib.parse.unquote(transport.split(endpoint).path.strip("/").split("/")[0])
    for model in info["models"]:
        if model["name"] == name or (name in _ACTIONS and model["default"]):
            found: dict[str, Any] = model
            return found
    names = ", ".join(model["name"] for model in info["models"])
    raise ModelNotFound(f"{transport.shown(endpoint)}: no model is called {name!r}; the server has {names}.", 404)
