"""Whether a server's memory is what it planned: mixed requests to its models, then `memory` of its `/info`.

    python3 peers/server_memory.py http://127.0.0.1:8080 768 20

Decodes and encodes of at most that side in pixels, in all forms and both precisions, up to three at a time; the last one is the largest
and runs alone. The server is to be a fresh one: a peak is since its start.
"""

import json
import os
import random
import sys
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor

FORMS = [
    "output_type=pil&image_format=png",
    "output_type=pil&image_format=jpg",
    "output_type=pil&image_format=webp",
    "output_type=pt",
    "output_type=pt&partial_postprocess=true",
    "encode",
]
MIB = 1 << 20


def get(url: str) -> dict:
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)


def ask(url: str, model: dict, form: str, precision: str, sides: list[int]) -> None:
    """One decode, or encode, of random numbers."""
    factor = model["description"]["spatial_factor"]
    path, channels = ("encode", 3) if form == "encode" else ("decode", model["description"]["latent_channels"])
    if path == "decode":
        sides = [side // factor for side in sides]
    shape = "&".join(f"shape={side}" for side in [1, channels, *sides])
    name = urllib.parse.quote(model["name"])
    query = f"{shape}&dtype=uint8&precision={precision}&{'' if path == 'encode' else form}"
    body = os.urandom(channels * sides[0] * sides[1])
    with urllib.request.urlopen(urllib.request.Request(f"{url}/{name}/{path}?{query}", data=body)) as answer:
        answer.read()


def main(url: str, side: int, count: int) -> None:
    models = get(f"{url}/info")["models"]
    chance = random.Random(1)
    requests = []
    for number in range(count - 1):
        sides = [chance.randrange(side // 4, side, 8) // 8 * 8 for _ in range(2)]
        requests.append((models[number % len(models)], chance.choice(FORMS), chance.choice(["exact", "fast"]), sides))
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(ask, url, *request) for request in requests]:
            done.result()
    ask(url, models[-1], FORMS[0], "exact", [side, side])
    memory = get(f"{url}/info")["memory"]
    planned, held = memory["planned_peak_bytes"], memory["resident_peak_bytes"]
    print(f"{count} requests: planned {planned / MIB:.0f} MiB, held {held / MIB:.0f} MiB, {held / planned - 1:+.1%}")


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), int(sys.argv[2]), int(sys.argv[3]))
