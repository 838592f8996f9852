"""ComfyUI's nodes of remote-vae: decode and encode on another machine.

Put this folder into `ComfyUI/custom_nodes` and install the package `remote-vae` into ComfyUI's Python.
"""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
