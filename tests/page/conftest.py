"""What the tests of the page share: the built program as a server, and a headless Chromium of the system.

The program is found through REMOTE_VAE_BINARY, or else in target/release; the browser through REMOTE_VAE_CHROMIUM, or else
as `chromium` on the path. Without a browser the tests are skipped.
"""

import base64
import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("REMOTE_VAE_BINARY", ROOT / "target" / "release" / "remote-vae"))
CHROMIUM = os.environ.get("REMOTE_VAE_CHROMIUM") or shutil.which("chromium")
PHOTOGRAPH = ROOT / "crates" / "cli" / "assets" / "demo.png"
WIDTHS = (375, 768, 1280)
FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Server:
    """The program, serving its embedded model on the loopback interface."""

    def __init__(self, *arguments, port=0):
        self.arguments, self.port = arguments, port

    def __enter__(self):
        if not BINARY.is_file():
            pytest.fail(f"{BINARY} is missing: build it with `cargo build --release -p remote-vae`", pytrace=False)
        command = [BINARY, "serve", "--host", "127.0.0.1", "--port", str(self.port), *self.arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        watchdog = threading.Timer(120, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline()
        watchdog.cancel()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert found, f"the server did not start: {line!r}"
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}/"
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="session")
def server():
    with Server() as running:
        yield running


@pytest.fixture(scope="session")
def browser():
    if not CHROMIUM:
        pytest.skip("no chromium on this machine: the page is not tested")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def open_page(browser):
    """A function that opens the page of a server; at the end, that no page has complained is asserted."""
    contexts, complaints = [], []

    def open_one(url, width=1280, height=900, scheme="light", expected=()):
        """`expected` are beginnings of complaints that the test provokes."""
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()

        def complain(text):
            if not text.startswith(tuple(expected) or ("\0",)):
                complaints.append(text)

        page.on("console", lambda message: message.type in ("error", "warning") and complain(message.text))
        page.on("pageerror", lambda error: complain(f"uncaught: {error}"))
        page.goto(url)
        page.locator("#state", has_text="ready").wait_for()
        page.locator("#model option").first.wait_for(state="attached")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert complaints == []


def drop(page, name, content, kind="image/png"):
    """Drops a file onto the page, as a hand with a mouse does."""
    data = page.evaluate_handle(
        """([name, kind, text]) => {
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type: kind }));
            return transfer;
        }""",
        [name, kind, base64.b64encode(content).decode()],
    )
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event("#drop", event, {"dataTransfer": data})


def numbers(page):
    """The figures below the result, by name."""
    return dict(
        page.evaluate(
            """() => Array.from(document.querySelectorAll("#numbers > div"),
                (pair) => [pair.querySelector("dt").textContent, pair.querySelector("dd").textContent])"""
        )
    )


def done(page, mode):
    """Waits until a result is shown."""
    page.locator(f"#stage[data-mode={mode}]").wait_for()
    page.locator("#progress", has_text="Done.").wait_for()
