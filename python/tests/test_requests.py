"""What travels and what happens when it goes wrong, against a server of a few lines."""

import http.server
import io
import threading
import time
import urllib.parse

import numpy as np
import pytest
from PIL import Image

from remote_vae import DecodeQueue, ServerRefused, ServerUnreachable, remote_decode

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
    with pytest.raises(ServerUnreachable, match="took too long"):
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
    ],
)
def test_wrong_arguments_are_not_sent(scripted, error, latents, options):
    with pytest.raises(error):
        remote_decode(scripted.url, latents, **options)
    assert scripted.asked == []


def test_an_endpoint_without_scheme():
    with pytest.raises(ValueError, match="Got 'localhost:8000'"):
        remote_decode("localhost:8000", LATENTS)


def test_the_queue_is_bounded_and_drops_what_has_not_begun(scripted):
    scripted.answers, scripted.delay = [picture()] * 9, 0.2
    with pytest.raises(KeyboardInterrupt):
        with DecodeQueue(scripted.url, size=3, parallel=1) as queue:
            start = time.monotonic()
            futures = [queue.put(LATENTS) for _ in range(4)]
            assert time.monotonic() - start >= 0.15, "the fourth had to wait for room"
            raise KeyboardInterrupt
    assert futures[0].result().size == (16, 16)
    assert futures[-1].cancelled() and len(scripted.asked) <= 3
