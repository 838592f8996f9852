"""What travels and what happens when it goes wrong, against a server of a few lines."""

import asyncio
import contextlib
import http.server
import io
import re
import signal
import socketserver
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from remote_vae import (
    AsyncDecodeQueue,
    DecodeQueue,
    KeyRejected,
    ModelNotFound,
    RemoteVAEError,
    RequestRejected,
    ServerBusy,
    ServerRefused,
    ServerTimeout,
    ServerUnreachable,
    Session,
    remote_decode,
    remote_encode,
)
from remote_vae.tensors import png
from remote_vae.transport import _other_scheme, split

LATENTS = np.zeros((1, 4, 2, 2), np.float16)


@pytest.fixture
def scripted():
    """Gives the next of `answers` (status, headers, body) to each request and keeps what was asked."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.asked.append((self.path, dict(self.headers), body, self.client_address))
            status, headers, answer = server.answers.pop(0)
            time.sleep(server.delay)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(answer))}.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):  # the client may have given up
                self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.answers, server.delay = [], [], 0.0
    server.url = f"http://127.0.0.1:{server.server_port}/model?session=1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def picture():
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (1, 2, 3)).save(file, "PNG")
    return 200, {}, file.getvalue()


def test_options_of_a_clip_travel_when_they_are_given(scripted):
    scripted.answers = [(200, {}, b"a file"), (200, {}, b"a file")]
    clip = np.zeros((1, 4, 3, 2, 2), np.float16)
    options = {"output_type": "mp4", "do_scaling": None}
    assert remote_decode(scripted.url, clip, **options, fps=24, crf=18, windows=False, tiling=True) == b"a file"
    remote_decode(scripted.url, clip, **options)
    with_options, without = (path for path, *_ in scripted.asked)
    assert with_options == without + "&fps=24&crf=18&windows=off&tiling=on"


def test_sizes_of_tiles_travel_by_diffusers_names(scripted):
    scripted.answers = [(200, {"shape": "[1,4,2,2]", "dtype": "float16"}, bytes(32))] * 2
    picture = np.zeros((1, 3, 16, 16), np.float32)
    sizes = {"tile_sample_min_size": 64, "tile_latent_min_size": 8, "tile_overlap_factor": 0.25}
    remote_encode(scripted.url, picture, tiling=True, **sizes)
    remote_encode(scripted.url, picture)
    with_options, without = (path for path, *_ in scripted.asked)
    tiles = "tile_sample_min_size=64&tile_latent_min_size=8&tile_overlap_factor=0.25"
    assert with_options == f"{without}&tiling=on&{tiles}"


def test_parameters_travel_as_the_protocol_says(scripted):
    scripted.answers = [picture(), picture()]
    latents = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    remote_decode(
        scripted.url, latents, scaling_factor=0.3611, shift_factor=0.1159, height=32, width=16, api_key="k"
    )
    remote_decode(scripted.url, LATENTS)
    path, headers, body, _ = scripted.asked[0]
    assert path == (
        "/model?session=1&image_format=jpg&output_type=pil&partial_postprocess=False&shape=1&shape=4&shape=4"
        "&dtype=float32&scaling_factor=0.3611&shift_factor=0.1159&height=32&width=16"
    )
    assert body == latents.tobytes()
    assert headers["Accept"] == "image/jpeg" and headers["Content-Type"] == "tensor/binary"
    assert headers["Authorization"] == "Bearer k"
    assert ("do_scaling", "True") in urllib.parse.parse_qsl(scripted.asked[1][0])
    assert scripted.asked[0][3] == scripted.asked[1][3], "the connection was not kept"


def test_a_video_is_its_bytes_whatever_is_to_be_returned(scripted):
    scripted.answers = [(200, {"Content-Type": "text/plain"}, b"\0\0\0\x18ftypisom")]
    assert remote_decode(scripted.url, LATENTS, output_type="mp4") == b"\0\0\0\x18ftypisom"


def test_a_busy_server_is_asked_again_when_it_says(scripted):
    scripted.answers = [(503, {"Retry-After": "0.2"}, b'{"error":"full"}'), picture()]
    start = time.monotonic()
    remote_decode(scripted.url, LATENTS)
    assert 0.2 <= time.monotonic() - start < 5 and len(scripted.asked) == 2
    scripted.answers = [(503, {"Retry-After": "0"}, b'{"error":"full"}')] * 2
    with pytest.raises(ServerRefused, match="answered 503: full"):
        remote_decode(scripted.url, LATENTS, retries=1)
    scripted.answers = [(400, {}, b"<html>not JSON")]
    with pytest.raises(ServerRefused, match="answered 400: Bad Request"):
        remote_decode(scripted.url, LATENTS)
    assert len(scripted.asked) == 5


def test_silence_and_absence(scripted):
    scripted.answers, scripted.delay = [picture()], 1.0
    with pytest.raises(ServerTimeout, match="took too long"):
        remote_decode(scripted.url, LATENTS, timeout=0.1)
    with pytest.raises(ServerUnreachable, match="No answer from http://127.0.0.1:9/: .*refused"):
        remote_decode("http://127.0.0.1:9/", LATENTS, retries=0)


@pytest.mark.parametrize(
    ("error", "latents", "options"),
    [
        (ValueError, np.zeros((1, 4, 4), np.float16), {}),
        (ValueError, LATENTS, {"output_type": "gif"}),
        (ValueError, LATENTS, {"image_format": "bmp"}),
        (ValueError, LATENTS, {"input_tensor_type": "base64"}),
        (ValueError, LATENTS, {"output_type": "pt"}),
        (TypeError, LATENTS.astype(np.float64), {}),
        (TypeError, [1.0], {}),
        (ValueError, LATENTS[:0], {}),
    ],
)
def test_wrong_arguments_are_not_sent(scripted, error, latents, options):
    with pytest.raises(error):
        remote_decode(scripted.url, latents, **options)
    assert scripted.asked == []


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 64, 64), r"Got shape \[4, 64, 64\]: packed latents .* need `height` and `width` .* a batch axis"),
        ((64, 64), r"Expected latents \[batch, channels, height, width\], or of a clip .* Got shape \[64, 64\]\.$"),
    ],
)
def test_shapes_that_are_none_of_latents_are_named(scripted, shape, expected):
    with pytest.raises(ValueError, match=expected):
        remote_decode(scripted.url, np.zeros(shape, np.float16))


@pytest.mark.parametrize(
    ("image", "error", "expected"),
    [
        (np.zeros((1, 4, 8, 8)), ValueError, r"Got shape \[1, 4, 8, 8\]: if these are latents, `remote_decode` makes"),
        (np.zeros((1, 16, 5, 8, 8)), ValueError, r"Got shape \[1, 16, 5, 8, 8\]: if these are latents"),
        (np.zeros((64, 48, 3), np.uint8), ValueError, r"Got shape \[64, 48, 3\]: .*`PIL.Image.fromarray`"),
        (np.zeros((1, 64, 48, 3)), ValueError, r"`PIL.Image.fromarray`"),
        (np.zeros((4, 64, 48)), ValueError, r"Got shape \[4, 64, 48\]\.$"),
        (np.zeros((64, 48)), ValueError, r"Got shape \[64, 48\]\.$"),
        ("photo.png", TypeError, r"Got str 'photo.png'; open it first: `PIL.Image.open\(path\)`"),
        (Path("photo.png"), TypeError, "Got PosixPath; open it first"),
        (None, TypeError, r"Got None\.$"),
        ([], TypeError, r"Got an empty list\.$"),
        (["photo.png"], TypeError, r"Got a list of str\.$"),
    ],
)
def test_what_an_encode_takes_is_said(scripted, image, error, expected):
    takes = "Expected a PIL picture, a list of PIL pictures, or a torch tensor or numpy array"
    with pytest.raises(error, match=takes) as caught:
        remote_encode(scripted.url, image)
    assert re.search(expected, str(caught.value)), caught.value
    assert scripted.asked == []


def test_pictures_of_every_mode_are_sent(scripted):
    modes = ["1", "L", "LA", "La", "P", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "LAB", "F", "I", "I;16", "I;16B"]
    scripted.answers = [(200, {"shape": "[1,4,2,2]", "dtype": "float16"}, bytes(32))] * len(modes)
    for mode in modes:
        remote_encode(scripted.url, Image.new(mode, (16, 16)))
    assert all(body.startswith(b"\x89PNG") for _, _, body, _ in scripted.asked)
    # Values beyond 16 bits are the nearest that they hold.
    for value, sent in [(70000, 65535), (-5, 0), (300, 300)]:
        assert Image.open(io.BytesIO(png(Image.new("I", (1, 1), value)))).getpixel((0, 0)) == sent


def test_a_picture_without_batch_axis_is_encoded(scripted):
    scripted.answers = [(200, {"shape": "[1,4,2,2]", "dtype": "float16"}, bytes(32))]
    pixels = np.arange(3 * 16 * 24, dtype=np.float32).reshape(3, 16, 24) / 1152
    assert remote_encode(scripted.url, pixels).shape == (1, 4, 2, 2)
    path, _, body, _ = scripted.asked[0]
    assert path.endswith("&shape=3&shape=16&shape=24&dtype=float32") and body == pixels.tobytes()


@pytest.mark.parametrize(
    ("latents", "expected"),
    [(None, "Got None"), ("a.safetensors", "Got str 'a.safetensors'"), ([1.0], "Got a list of float"), (Image.new("L", (8, 8)), "a PIL picture")],
)
def test_what_a_decode_takes_is_said(scripted, latents, expected):
    with pytest.raises(TypeError, match=f"Expected latents as a torch tensor or a numpy array. {expected.replace('a PIL', '.*PIL')}"):
        remote_decode(scripted.url, latents)


def test_https_asked_of_a_server_without_it(scripted):
    url = scripted.url.replace("http:", "https:").replace("//", "//me:secret@")
    right = scripted.url.partition("?")[0]
    with pytest.raises(ServerUnreachable) as caught:
        remote_decode(url, LATENTS)
    text = f"No answer from {right.replace('http:', 'https:')}: the server speaks http, not https; use {right}."
    assert str(caught.value) == text and scripted.asked == []

    async def decode():
        async with AsyncDecodeQueue(url) as queue:
            await queue.decode(LATENTS)

    with pytest.raises(ServerUnreachable, match="speaks http, not https"):
        asyncio.run(decode())


@pytest.fixture
def encrypted():
    """A server of HTTPS on a port of its own."""
    certificates = Path(__file__).resolve().parents[2] / "crates" / "server" / "tests" / "tls"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "certificate.pem", certificates / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_http_asked_of_a_server_of_https(encrypted):
    with pytest.raises(ServerUnreachable, match=f"the server speaks https, not http; use https://{encrypted}/x.$"):
        remote_decode(f"http://{encrypted}/x", LATENTS)
    with pytest.raises(ServerUnreachable, match=r"certificate is not trusted \(.*\); set SSL_CERT_FILE"):
        remote_decode(f"https://{encrypted}/x", LATENTS, retries=0)


@pytest.fixture
def behind_a_proxy():
    """A port that answers plain HTTP by 400, as nginx and Go do where they speak HTTPS, and breaks TLS off in the handshake."""
    seen = {"tls": 0, "plain": 0}

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            begin = self.request.recv(1 << 16)
            if begin.startswith(b"\x16"):
                seen["tls"] += 1
            elif begin:
                seen["plain"] += 1
                self.request.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.handle_error, server.seen = True, lambda *_: None, seen
    server.host = f"127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_broken_connection_of_https_is_tried_again(behind_a_proxy):
    with pytest.raises(ServerUnreachable) as caught:
        remote_decode(f"https://{behind_a_proxy.host}/", LATENTS, retries=1)
    assert "speaks" not in str(caught.value) and behind_a_proxy.seen == {"tls": 2, "plain": 0}


def test_an_answer_of_400_to_plain_http_says_nothing(behind_a_proxy, scripted):
    error = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER]")
    error.reason = "WRONG_VERSION_NUMBER"
    assert _other_scheme(split(f"https://{behind_a_proxy.host}/"), error, 1.0) is None
    assert behind_a_proxy.seen == {"tls": 0, "plain": 1}
    found = _other_scheme(split(scripted.url.replace("http:", "https:")), error, 1.0)
    assert found is not None and found.geturl() == scripted.url


def test_an_endpoint_without_scheme():
    with pytest.raises(ValueError, match="Got 'localhost:8000'"):
        remote_decode("localhost:8000", LATENTS)


def test_the_queue_is_bounded_and_drops_what_has_not_begun(scripted):
    scripted.answers, scripted.delay = [picture()] * 9, 0.2
    with pytest.raises(KeyboardInterrupt):
        with DecodeQueue(scripted.url, size=3, parallel=1) as queue:
            start = time.monotonic()
            futures = [queue.submit(LATENTS) for _ in range(4)]
            assert time.monotonic() - start >= 0.15, "the fourth had to wait for room"
            raise KeyboardInterrupt
    assert futures[0].result().size == (16, 16)
    assert futures[-1].cancelled() and len(scripted.asked) <= 3


def test_ctrl_c_does_not_wait_for_a_slow_server(scripted):
    scripted.answers, scripted.delay = [picture()] * 2, 3.0
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        with DecodeQueue(scripted.url, parallel=1) as queue:
            future = queue.submit(LATENTS)
            while not scripted.asked:
                time.sleep(0.01)
            raise KeyboardInterrupt
    assert time.monotonic() - start < 2
    with pytest.raises(ServerUnreachable, match="given up"):
        future.result()


@pytest.mark.parametrize("waits_in", ["queue.put(latents)", "list(queue)"])
def test_a_signal_ends_a_program_that_waits_for_the_queue(scripted, waits_in):
    scripted.answers, scripted.delay = [picture()] * 9, 60.0
    lines = f"""
import signal
import numpy as np
from remote_vae import DecodeQueue
# As a terminal starts a program; one that a script starts in the background has none.
signal.signal(signal.SIGINT, signal.default_int_handler)
latents = np.zeros((1, 4, 2, 2), np.float16)
with DecodeQueue({scripted.url!r}, size=2) as queue:
    queue.put(latents)
    queue.put(latents)
    {waits_in}
"""
    program = subprocess.Popen([sys.executable, "-c", lines], stderr=subprocess.PIPE, text=True)
    while len(scripted.asked) < 2:
        time.sleep(0.01)
    time.sleep(0.3)
    program.send_signal(signal.SIGINT)
    _, said = program.communicate(timeout=20)
    assert program.returncode == -signal.SIGINT and said.strip().endswith("KeyboardInterrupt"), said


def test_ctrl_c_does_not_wait_for_a_retry(scripted):
    scripted.answers = [(503, {"Retry-After": "30"}, b'{"error":"full"}')]
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        with DecodeQueue(scripted.url) as queue:
            queue.put(LATENTS)
            while not scripted.asked:
                time.sleep(0.01)
            raise KeyboardInterrupt
    assert time.monotonic() - start < 5


def test_results_come_by_iterating_and_by_callbacks(scripted):
    refused = (400, {}, b'{"error":"wrong shape"}')
    scripted.answers = [picture(), refused, picture(), picture()]
    seen = []
    with DecodeQueue(scripted.url, parallel=1) as queue:
        for _ in range(3):
            queue.put(LATENTS)
        queue.put(LATENTS, seen.append)
        assert next(queue).size == (16, 16)
        with pytest.raises(RequestRejected, match="wrong shape"):
            next(queue)
        assert [each.size for each in queue] == [(16, 16)]
    assert [each.size for each in seen] == [(16, 16)]


def test_an_error_that_nobody_took_is_raised_at_the_end(scripted):
    scripted.answers = [(400, {}, b'{"error":"wrong shape"}')] * 2 + [picture()]
    for put in (lambda queue: queue.put(LATENTS), lambda queue: queue.put(LATENTS, print)):
        with pytest.raises(RequestRejected, match="wrong shape"):
            with DecodeQueue(scripted.url) as queue:
                put(queue)
    with pytest.raises(ZeroDivisionError):
        with DecodeQueue(scripted.url) as queue:
            queue.put(LATENTS, lambda _: 1 / 0)


def test_asyncio_keeps_its_loop_free(scripted):
    scripted.answers, scripted.delay = [picture()] * 6, 0.1

    async def main():
        async with AsyncDecodeQueue(scripted.url, size=2, parallel=2) as queue:
            ticks = 0

            async def tick():
                nonlocal ticks
                while True:
                    await asyncio.sleep(0.01)
                    ticks += 1

            ticking = asyncio.ensure_future(tick())
            assert (await queue.decode(LATENTS)).size == (16, 16)
            pictures = [picture async for picture in queue.map([LATENTS] * 4)]
            ticking.cancel()
            dropped = asyncio.ensure_future(queue.decode(LATENTS))
            await asyncio.sleep(0.02)
            dropped.cancel()
            return len(pictures), ticks

    pictures, ticks = asyncio.run(main())
    assert pictures == 4 and ticks >= 10


def test_a_cancelled_decode_keeps_its_room_and_the_loop_stays_free(scripted):
    scripted.answers, scripted.delay = [picture()] * 3, 0.5

    async def main():
        async with AsyncDecodeQueue(scripted.url, size=1, parallel=1) as queue:
            begun = asyncio.ensure_future(queue.decode(LATENTS))
            while not scripted.asked:
                await asyncio.sleep(0.01)
            begun.cancel()
            longest, last = 0.0, time.monotonic()
            second = asyncio.ensure_future(queue.decode(LATENTS))
            while not second.done():
                await asyncio.sleep(0.01)
                longest, last = max(longest, time.monotonic() - last), time.monotonic()
            return second.result().size, longest

    size, longest = asyncio.run(main())
    assert size == (16, 16) and longest < 0.4, longest


def test_results_that_nobody_takes_are_bounded(scripted):
    scripted.answers = [picture()] * 3
    with DecodeQueue(scripted.url, unread=2) as queue:
        queue.put(LATENTS)
        queue.put(LATENTS)
        with pytest.raises(RemoteVAEError, match="2 results wait"):
            queue.put(LATENTS)
        assert next(queue).size == (16, 16)
        queue.put(LATENTS)
        assert len(list(queue)) == 2


def test_progress_counts_the_bytes_of_both_ways(scripted):
    latents = np.zeros((1, 4, 300, 300), np.float32)
    scripted.answers = [picture()]
    told = []
    remote_decode(scripted.url, latents, progress=told.append)
    stages = [each.stage for each in told]
    assert sorted(set(stages), key=stages.index) == ["sending", "computing", "receiving"]
    sent = [each for each in told if each.stage == "sending"]
    assert len(sent) == 6 and {each.total for each in sent} == {latents.nbytes}
    assert scripted.asked[0][2] == latents.tobytes()
    assert told[-1].done == told[-1].total == len(picture()[2])
    assert [each.seconds for each in told] == sorted(each.seconds for each in told)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, RequestRejected), (401, KeyRejected), (404, ModelNotFound), (413, RequestRejected), (429, ServerBusy)],
)
def test_each_status_has_its_error(scripted, status, kind):
    scripted.answers = [(status, {"Retry-After": "7"}, b'{"error":"one\\ntwo"}')]
    with pytest.raises(kind, match=f"answered {status}: one two") as caught:
        remote_decode(scripted.url.replace("//", "//me:secret@"), LATENTS, retries=0)
    assert caught.value.status == status and caught.value.retry_after == 7
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_answers_of_something_else(scripted):
    scripted.answers = [(200, {"Content-Type": "text/html"}, b"<html>")] * 3 + [(302, {"Location": "https://x/"}, b"")]
    for options in ({}, {"output_type": "pt", "return_type": "pt"}):
        with pytest.raises(RemoteVAEError, match="Got content type 'text/html'.*Remote VAE endpoint"):
            remote_decode(scripted.url, LATENTS, **options)
    with pytest.raises(RemoteVAEError, match="it has moved; use https://x/ instead"):
        scripted.answers.pop(0)
        remote_decode(scripted.url, LATENTS)


def test_a_kept_connection_that_was_closed_is_made_anew(scripted):
    scripted.answers = [(200, {"Connection": "close", **picture()[1]}, picture()[2]), picture()]
    for _ in range(2):
        assert remote_decode(scripted.url, LATENTS, retries=0).size == (16, 16)


def test_sessions_check_their_limits():
    for wrong in ({"retries": -1}, {"timeout": 0}, {"api_key": "a\nb"}):
        with pytest.raises(ValueError, match="Expected"):
            Session(**wrong)
    assert "secret" not in repr(Session(api_key="secret"))
