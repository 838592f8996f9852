"""The page at `/` in a real browser: that it loads, works by mouse and keyboard, says what is wrong, and is readable.

With REMOTE_VAE_SCREENSHOTS set, the pictures of `docs/page.md` are written to that folder.
"""

import json
import math
import os
import re
import struct
import subprocess
from pathlib import Path

import pytest
from conftest import PHOTOGRAPH, WIDTHS, Server, done, drop, numbers

SCREENSHOTS = os.environ.get("REMOTE_VAE_SCREENSHOTS")
# Another environment with diffusers, for the Python that the page shows.
CLIENT_PYTHON = os.environ.get("REMOTE_VAE_CLIENT_PYTHON")
PHOTO = PHOTOGRAPH.read_bytes()


def screenshot(page, name, **options):
    if SCREENSHOTS:
        Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(SCREENSHOTS) / name, type="jpeg", quality=80, **options)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_round_trip_fits_every_width(server, open_page, width, scheme):
    page = open_page(server.url, width=width, scheme=scheme)
    drop(page, "photo.png", PHOTO)
    done(page, "compare")
    widest = page.evaluate("document.documentElement.scrollWidth")
    assert widest <= width, "the page scrolls sideways"
    before, after = (page.locator(name).bounding_box() for name in ("#before", "#after"))
    assert before == after, "the two pictures do not cover each other"
    # Figures of a chart stay on one line, and inside.
    assert page.evaluate(
        """() => [...document.querySelectorAll(".chart")].map((chart) => {
            const value = chart.querySelector(".value");
            const text = value.textContent;
            value.textContent = "12.34 s, longest 12.34 s";
            const [inner, outer] = [value.getBoundingClientRect(), chart.getBoundingClientRect()];
            value.textContent = text;
            return inner.height < 30 && inner.right < outer.right;
        })"""
    ) == [True] * 3
    page.mouse.move(0, 0)
    if (width, scheme) in [(1280, "light"), (768, "light"), (375, "dark")]:
        screenshot(page, f"page-{width}-{scheme}.jpg", full_page=True)


def test_the_round_trip_is_what_the_server_computes(server, open_page):
    page = open_page(server.url)
    drop(page, "photo.png", PHOTO)
    done(page, "compare")
    found = numbers(page)
    assert 26 < float(found["Likeness (PSNR)"].removesuffix(" dB")) < 40
    assert found["Picture"] == "384 × 384"
    assert found["Latents"] == "18 KiB1/24 of the pixels"
    assert found["Precision"].startswith("exactcpu/")
    assert re.match(r"\d+ ms|\d+\.\d+ s", found["Decode"])
    # The canvas beneath holds the photograph itself.
    assert page.evaluate("[before.width, before.height]") == [384, 384]


def test_latents_that_were_saved_decode_to_the_same_picture(server, open_page, tmp_path):
    page = open_page(server.url)
    drop(page, "photo.png", PHOTO)
    done(page, "compare")
    saved = {}
    for name in ("save-picture", "save-latents"):
        with page.expect_download() as download:
            page.click(f"#{name}")
        saved[name] = Path(download.value.path()).read_bytes()
    drop(page, "photo.safetensors", saved["save-latents"], "")
    done(page, "single")
    with page.expect_download() as download:
        page.click("#save-picture")
    assert Path(download.value.path()).read_bytes() == saved["save-picture"]
    assert numbers(page)["Latents"] == "1 × 4 × 48 × 48latents, float16"

    # The lines for the shell give the same file once more.
    (tmp_path / "photo.safetensors").write_bytes(saved["save-latents"])
    run_shell(page, tmp_path)
    assert (tmp_path / "picture.png").read_bytes() == saved["save-picture"]


def test_a_preview_comes_before_the_picture(server, open_page):
    page = open_page(server.url)
    held = []
    is_decode = re.compile(r"/decode\?")
    page.route(is_decode, lambda route: route.continue_() if "output=preview" in route.request.url else held.append(route))
    drop(page, "photo.png", PHOTO)
    page.locator("#stage[data-mode=preview]").wait_for()
    assert page.evaluate("[after.naturalWidth, after.getBoundingClientRect().width]") == [48, 384]
    held.pop().continue_()
    done(page, "compare")
    assert page.evaluate("after.naturalWidth") == 384


def latents_file(*shape):
    """A file of float32 latents, a gentle pattern."""
    count = math.prod(shape)
    values = struct.pack(f"<{count}f", *(math.sin(0.01 * at) for at in range(count)))
    header = json.dumps({"latents": {"dtype": "F32", "shape": shape, "data_offsets": [0, len(values)]}}).encode()
    return struct.pack("<Q", len(header)) + header + values


def jobs_of(page):
    return page.evaluate("fetch('info').then((answer) => answer.json()).then((info) => info.queue.jobs)")


def test_latents_are_a_job_with_a_preview(server, open_page):
    page = open_page(server.url)
    held = []
    page.route(re.compile(r"/v1/jobs/\w+/result"), lambda route: held.append(route))
    drop(page, "gentle.safetensors", latents_file(1, 4, 24, 40), "")
    page.locator("#stage[data-mode=preview]").wait_for()
    assert page.evaluate("[after.naturalWidth, after.naturalHeight, after.width]") == [40, 24, 320]
    page.locator("#left", has_text="100 %").wait_for()
    assert page.evaluate("document.querySelector('#share').value") == 1
    held.pop().continue_()
    done(page, "single")
    assert page.evaluate("after.naturalWidth") == 320
    assert not page.locator("#work").is_visible()
    page.wait_for_function("fetch('info').then((answer) => answer.json()).then((info) => info.queue.jobs === 0)")


def test_a_job_can_be_cancelled(server, open_page):
    page = open_page(server.url)
    drop(page, "large.safetensors", latents_file(1, 4, 192, 192), "")
    page.locator("#stage[data-mode=preview]").wait_for()
    assert page.evaluate("after.naturalWidth") == 96
    page.locator("#left", has_text=re.compile(r"[1-9]\d* %, about .* left")).wait_for()
    page.click("#cancel")
    assert page.inner_text("#progress") == "Cancelled."
    assert page.get_attribute("#stage", "data-mode") == "empty"
    assert page.evaluate("document.activeElement.id") == "again"
    idle = "fetch('status').then((answer) => answer.json()).then((status) => status.running.length === 0)"
    page.wait_for_function(idle)
    assert jobs_of(page) == 0
    drop(page, "small.safetensors", latents_file(1, 4, 8, 8), "")
    done(page, "single")


def run_shell(page, folder):
    command = page.inner_text("#curl")
    subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=folder, check=True, timeout=120)


def test_the_lines_to_copy_work(server, open_page, tmp_path):
    page = open_page(server.url)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    drop(page, "it's a photo.png", PHOTO)
    done(page, "compare")
    (tmp_path / "it's a photo.png").write_bytes(PHOTO)
    run_shell(page, tmp_path)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    page.click("[data-copy=curl]")
    page.locator("#copied", has_text="Copied.").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == page.inner_text("#curl")

    python = page.text_content("#python")
    compile(python, "snippet", "exec")
    if CLIENT_PYTHON:
        (tmp_path / "picture.png").unlink()
        subprocess.run([CLIENT_PYTHON, "-c", python], cwd=tmp_path, check=True, timeout=300)
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_divider_moves_by_keyboard_and_mouse(server, open_page):
    page = open_page(server.url)
    drop(page, "photo.png", PHOTO)
    done(page, "compare")
    split = lambda: page.evaluate("compare.style.getPropertyValue('--split')")  # noqa: E731
    clip = lambda: page.evaluate("getComputedStyle(before).clipPath")  # noqa: E731
    assert split() == "50%"
    page.focus("#split")
    first = clip()
    page.keyboard.press("ArrowLeft")
    assert split() == "49%" and clip() != first
    page.keyboard.press("End")
    assert split() == "100%"
    assert page.get_attribute("#split", "aria-valuetext") == "original on the left 100 %"
    box = page.locator("#compare").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)
    assert abs(float(split().removesuffix("%")) - 25) < 4


def test_everything_is_reached_by_keyboard_and_shows_it(server, open_page):
    page = open_page(server.url)
    drop(page, "photo.png", PHOTO)
    done(page, "compare")
    page.evaluate("document.activeElement.blur()")
    page.mouse.click(1, 1)
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                """() => {
                const at = document.activeElement;
                // Of what is laid over something else, that shows the focus.
                const shown = at.id === "file" ? at.parentElement : at;
                const style = getComputedStyle(at.id === "split" ? document.querySelector(".handle") : shown,
                    at.id === "split" ? "::after" : null);
                return [at.id || at.textContent, style.outlineStyle !== "none" && style.outlineWidth !== "0px"];
            }"""
            )
        )
    names = [name for name, _ in reached]
    wanted = ["Skip to the playground", "file", "model", "precision", "side", "scaling", "again", "split"]
    wanted += ["save-picture", "save-latents", "Copy", "/info", "/metrics", "/status"]
    places = [names.index(name) for name in wanted]
    assert places == sorted(places)
    assert all(visible for name, visible in reached[: names.index("/status")]), reached


def test_a_file_can_be_chosen_instead_of_dropped(server, open_page):
    page = open_page(server.url)
    page.set_input_files("#file", PHOTOGRAPH)
    done(page, "compare")
    page.select_option("#side", "256")
    page.click("#again")
    page.locator("#numbers", has_text="256 × 256").wait_for()


def test_what_is_wrong_is_said(server, open_page):
    page = open_page(server.url, expected=["Failed to load resource: the server responded with a status of 400"])
    problem = page.locator("#problem")
    drop(page, "notes.safetensors", b"just some text, not tensors", "")
    problem.wait_for()
    assert problem.inner_text() == "This is no safetensors file."
    drop(page, "broken.png", b"\x89PNG but no more")
    page.locator("#problem", has_text="cannot read “broken.png”").wait_for()
    header = b'{"latents":{"dtype":"F32","shape":[1,5,1,1],"data_offsets":[0,20]}}'
    drop(page, "five.safetensors", struct.pack("<Q", len(header)) + header + bytes(20), "")
    page.locator("#problem", has_text="expected latents of shape [batch, 4, height, width]").wait_for()
    assert page.get_attribute("#problem", "role") == "alert"
    # And the next file works.
    drop(page, "photo.png", PHOTO)
    done(page, "compare")
    assert not problem.is_visible()


def test_a_key_is_asked_for_and_kept_nowhere(open_page):
    with Server("--api-key", "a-secret") as server:
        page = open_page(server.url, expected=["Failed to load resource: the server responded with a status of 401"])
        drop(page, "photo.png", PHOTO)
        page.locator("#problem", has_text="Expected a valid key").wait_for()
        assert page.evaluate("document.activeElement.id") == "key"
        page.keyboard.type("a-secret")
        page.keyboard.press("Enter")
        done(page, "compare")
        kept = "[localStorage.length, sessionStorage.length, document.cookie, location.href.includes('secret')]"
        assert page.evaluate(kept) == [0, 0, "", False]
        assert "a-secret" not in page.text_content("#curl") + page.text_content("#python")
        page.reload()
        page.locator("#state", has_text="ready").wait_for()
        assert page.input_value("#key") == ""


def test_the_status_follows_the_server(open_page):
    lost = ["Failed to load resource: net::ERR_CONNECTION_REFUSED"]
    with Server() as server:
        page = open_page(server.url, expected=lost)
        answered = page.locator("#now div", has_text="Answered").locator("dd")
        assert answered.inner_text().split("\n") == ["0", "in the last minute"]
        drop(page, "photo.png", PHOTO)
        done(page, "compare")
        page.wait_for_function("text => document.querySelector('#now').textContent.includes(text)", arg="Answered2in the last minute")
        # The charts show whole intervals, so what was just done appears with the next.
        page.wait_for_function(
            "() => [...document.querySelectorAll('.chart svg')].every((one) => !one.getAttribute('aria-label').includes('none yet'))"
        )
        charts = page.locator(".chart svg").evaluate_all("all => all.map((one) => one.getAttribute('aria-label'))")
        assert [label.split(" over ")[0] for label in charts] == ["Megapixels per second", "Latency, mean", "Memory"]
        assert re.search(r"\d\.\d\d\.", charts[0]) and "none yet" not in charts[1] and "MiB" in charts[2]
        server.stop()
        page.locator("#state[data-state=unreachable]").wait_for()
        assert "may be old" in page.inner_text("#stale")
        with Server(port=server.port):
            page.locator("#state[data-state=ready]").wait_for()
            assert not page.locator("#stale").is_visible()


def test_the_running_job_has_a_bar(server, open_page):
    page = open_page(server.url)
    assert page.locator("#now div").first.inner_text() == "Now\nidle"

    def at_work(route):
        status = route.fetch().json()
        assert status["running"] == []
        route.fulfill(json=status | {"running": [{"elapsed_seconds": 1.5, "progress": 0.43}]})

    page.route("**/status", at_work)
    page.locator("#now", has_text="43 %after 1.50 s").wait_for()
    assert page.evaluate("document.querySelector('#now progress').value") == 0.43


def test_nothing_but_its_own_files_runs(server, open_page):
    page = open_page(server.url, expected=["Executing inline script violates", "Applying inline style violates"])
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.intruder = true";
            document.body.append(script);
        }"""
    )
    assert page.evaluate("window.intruder") is None
    hosts = page.evaluate("performance.getEntriesByType('resource').map((one) => new URL(one.name).origin)")
    assert set(hosts) == {server.url.rstrip("/")}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_can_be_read(server, open_page, scheme):
    page = open_page(server.url, scheme=scheme)
    drop(page, "photo.png", PHOTO)
    done(page, "compare")
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    named = {"button", "combobox", "slider", "link", "image", "spinbutton", "textbox", "progressbar", "region"}
    nodes = [node for node in tree if not node["ignored"] and node["role"]["value"] in named]
    roles = {node["role"]["value"] for node in nodes}
    assert {"button", "combobox", "slider", "link", "image", "region"} <= roles
    nameless = [node["role"]["value"] for node in nodes if not node.get("name", {}).get("value", "").strip()]
    assert nameless == []
    assert page.get_attribute("html", "lang") == "en"
    headings = page.locator("h1, h2, h3").evaluate_all("all => all.map((one) => Number(one.tagName[1]))")
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(headings, headings[1:], strict=False))
    assert page.evaluate(UNREADABLE) == []


# Texts whose contrast with what lies behind them is below 4.5, the least that WCAG 2.2 allows for normal sizes.
UNREADABLE = """() => {
    const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => channels(colour).slice(0, 3).reduce((sum, value, at) => {
        const part = value / 255;
        return sum + [0.2126, 0.7152, 0.0722][at] * (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    }, 0);
    const behind = (node) => {
        for (let at = node; at; at = at.parentElement) {
            const colour = getComputedStyle(at).backgroundColor;
            if ((channels(colour)[3] ?? 1) > 0.5) return colour;
        }
        return "rgb(255, 255, 255)";
    };
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found = [];
    while (texts.nextNode()) {
        const node = texts.currentNode.parentElement;
        if (!texts.currentNode.textContent.trim() || !node.checkVisibility()) continue;
        const [a, b] = [light(getComputedStyle(node).color), light(behind(node))].sort((x, y) => y - x);
        const contrast = (a + 0.05) / (b + 0.05);
        if (contrast < 4.5) found.push([texts.currentNode.textContent.trim(), contrast]);
    }
    return found;
}"""
