"""The program `remote-vae` as a server on this machine, for as long as this process wants it."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections import deque
from pathlib import Path
from typing import Literal, Sequence

from .errors import RemoteVAEError, ServerBusy
from .transport import Session

#: Names a program to use instead of the one in the package.
VARIABLE = "REMOTE_VAE_BINARY"


def program() -> str:
    """The path of the program: what REMOTE_VAE_BINARY names, what came with this package, or what is on the path.

    Raises RemoteVAEError where there is none.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return named
    name = "remote-vae.exe" if sys.platform == "win32" else "remote-vae"
    schemes = [sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user")]
    for scheme in schemes:
        path = Path(sysconfig.get_path("scripts", scheme), name)
        if path.is_file():
            return str(path)
    found = shutil.which(name)
    if found is None:
        raise RemoteVAEError(f"The program {name} was found neither in this Python nor on the path; set {VARIABLE} to it.")
    return found


class LocalServer:
    """The program, serving `model` on a free port of this machine; `url` is its address.

    `model` is what `remote-vae serve --model` takes: an alias such as `sd-v1`, a diffusers folder, a .safetensors file, or
    `owner/name` of the Hugging Face hub; by default the embedded model. `threads` bounds the processors it uses. Further
    `arguments` are those of `remote-vae serve`. It is stopped by `close`, at the end of a `with` block and at the end of
    this process, however that ends.

    Raises RemoteVAEError, with the program's own words, when it does not start.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        precision: Literal["exact", "fast"] | None = None,
        threads: int | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        command = [program(), "serve", "--host", "127.0.0.1", "--port", "0", "--stop-with-stdin"]
        for flag, value in [("--model", model), ("--precision", precision), ("--threads", threads)]:
            if value is not None:
                command += [flag, str(value)]
        # Every flag of `serve` has a variable; those that are set are meant for another server on this machine.
        others = {name for name in os.environ if name.startswith("REMOTE_VAE_") or name in ("MODEL_ID", "PORT")}
        environment = {name: value for name, value in os.environ.items() if name not in others}
        environment["REMOTE_VAE_LOG"] = os.environ.get("REMOTE_VAE_LOG", "warn")
        self._said: deque[str] = deque(maxlen=20)
        try:
            self._process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise RemoteVAEError(f"{command[0]} cannot be started: {error.strerror or error}.") from error
        atexit.register(self.close)
        listener = threading.Thread(target=self._listen, name="remote-vae-log", daemon=True)
        listener.start()
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        prefix = "listening on "
        if not line.startswith(prefix):
            self.close()
            listener.join(5)
            said = " ".join(" ".join(self._said).removeprefix("error: ").split())
            raise RemoteVAEError(f"remote-vae did not start: {said or 'it said nothing'}")
        #: The server's address.
        self.url: str = line.removeprefix(prefix)
        try:
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stops the server: what it computes is given up after two seconds."""
        atexit.unregister(self.close)
        if self._process.stdin is not None:
            self._process.stdin.close()
        for end in (None, self._process.terminate, self._process.kill):
            if end is not None:
                end()
            try:
                self._process.wait(2)
                break
            except subprocess.TimeoutExpired:
                continue
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> LocalServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listen(self) -> None:
        """Passes on what the program says, and keeps the end of it."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._said.append(line.strip())
            if not line.startswith("error: "):
                sys.stderr.write(line)

    def _wait_until_ready(self) -> None:
        session = Session(timeout=60.0, retries=0)
        while True:
            try:
                session.get(self.url, "/readyz")
                return
            except ServerBusy:
                time.sleep(0.02)
