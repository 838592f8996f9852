"""The examples of the README and of the guide run as they stand, with our server's address for theirs."""

import asyncio
import re

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT

import remote_vae

PAGES = [ROOT / "python" / "README.md", ROOT / "docs" / "python.md"]


def blocks():
    for page in PAGES:
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)):
            # Those for diffusers name models of the hub; test_pipelines.py has their like.
            if "from_pretrained" not in block:
                yield pytest.param(block, id=f"{page.parent.name}-{number}")


@pytest.mark.parametrize("block", list(blocks()))
def test_examples_run(server, block, monkeypatch):
    monkeypatch.setattr(Image.Image, "show", lambda picture: shown.append(picture))
    shown = []
    made = [np.random.default_rng(seed).standard_normal((1, 4, 4, 6)).astype(np.float16) for seed in range(3)]
    names = {name: getattr(remote_vae, name) for name in ("AsyncDecodeQueue", "DecodeQueue", "remote_decode")}
    names |= {"latents": made[0], "all_latents": made, "prompts": ["a", "b", "c"]}
    names |= {"make_latents": lambda prompt: made["abc".index(prompt)], "make": lambda: iter(made)}
    block = block.replace("http://127.0.0.1:8080", server)
    if "async with" in block:
        lines = "".join(f"    {line}\n" for line in block.splitlines())
        exec(f"async def example():\n{lines}", names)
        asyncio.run(names["example"]())
    else:
        exec(block, names)
    if "show()" in block:
        assert [picture.size for picture in shown] == [(48, 32)] * 3
    if "pictures" in names:
        assert [picture.size for picture in names["pictures"]] == [(48, 32)] * 3
