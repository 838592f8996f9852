"""What a batch saves over the same requests one after the other: the engine's time that `remote-vae serve` tells.

    python3 peers/batching.py http://127.0.0.1:8080 64 128 256

For each side of a picture in pixels, requests of one latent and of four take turns; medians over all turns.
"""

import json
import os
import re
import statistics
import sys
import urllib.request

BATCH = 4
TURNS = {64: 60, 128: 30}


def engine_ms(url: str, shape: list[int]) -> float:
    """The engine's time for a decode of random latents."""
    count = shape[0] * shape[1] * shape[2] * shape[3]
    query = "&".join(["output_type=pt", "dtype=uint8", *(f"shape={side}" for side in shape)])
    request = urllib.request.Request(f"{url}/?{query}", data=os.urandom(count))
    with urllib.request.urlopen(request) as answer:
        answer.read()
        return float(re.search(r"engine;dur=([\d.]+)", answer.headers["server-timing"])[1])


def main(url: str, *sides: str) -> None:
    with urllib.request.urlopen(f"{url}/info") as answer:
        model = json.load(answer)["models"][0]["description"]
    for side in map(int, sides):
        latents = [model["latent_channels"], *[side // model["spatial_factor"]] * 2]
        single, batched = [], []
        for _ in range(2 + TURNS.get(side, 12)):
            single.append(sum(engine_ms(url, [1, *latents]) for _ in range(BATCH)))
            batched.append(engine_ms(url, [BATCH, *latents]))
        # The first two warm up.
        one, four = statistics.median(single[2:]), statistics.median(batched[2:])
        print(f"{side}x{side}: {BATCH} requests {one:.1f} ms, one of {BATCH} {four:.1f} ms, {1 - four / one:.1%} less")


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), *sys.argv[2:])
