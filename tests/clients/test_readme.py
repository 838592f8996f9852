"""The README's lines of Python for diffusers and its lines for the shell, as they stand but for the server's address."""

import re
import shlex
import shutil
import subprocess

import numpy as np
import pytest
from conftest import BINARY, ROOT, draw
from PIL import Image

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
#: The demo leaves this file and the README's lines open it.
PHOTOGRAPH = ROOT / "crates" / "cli" / "assets" / "demo.png"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


#: Those with `from_pretrained` name models of the hub; python/tests has their like.
PYTHON = [block for block in blocks("python") if "from_pretrained" not in block]


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python(plain_server, number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(PHOTOGRAPH, tmp_path / "demo-input.png")
    names = {"latents": draw(1, 4, 8, 8)}
    exec(PYTHON[number].replace("http://127.0.0.1:8080", plain_server.url), names)
    picture = Image.open(tmp_path / "picture.png").convert("RGB")
    if "remote_encode" in PYTHON[number]:
        photograph = Image.open(PHOTOGRAPH).convert("RGB")
        assert picture.size == photograph.size
        difference = np.asarray(picture, np.float64) - np.asarray(photograph)
        assert 10 * np.log10(255**2 / np.mean(difference**2)) > 20
    else:
        assert picture.size == (64, 64)


def commands():
    """Lines that begin with the program; those that serve or name models of the hub or of the reader's disk are left out."""
    for line in "".join(blocks("sh")).splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("remote-vae ") and not re.search(r" serve |/models/|sdxl_vae|hunyuan", f"{line} "):
            yield line.replace(" --model sd-v1", "").replace("photo.png", "demo-input.png")


def test_shell(tmp_path):
    shutil.copy(PHOTOGRAPH, tmp_path / "demo-input.png")
    lines = sorted(commands(), key=lambda line: "encode" not in line)
    assert {shlex.split(line)[1] for line in lines} >= {"decode", "encode", "plan", "bench", "doctor"}
    for line in lines:
        words = [str(BINARY), *shlex.split(line)[1:]]
        run = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, f"{line}: {run.stderr}"
    assert Image.open(tmp_path / "picture.png").size == Image.open(PHOTOGRAPH).size
