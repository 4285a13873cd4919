"""Writes docs/capacity.md, what a million adapters and 10,000 requests a second need, from measured costs.

The text is capacity_page.md, with a name in braces for each number.

Command:  python scripts/capacity_page.py           (writes the page)
          python scripts/capacity_page.py --check   (fails if the page does not say what the results say)
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE, TEXT = ROOT / "docs" / "capacity.md", ROOT / "scripts" / "capacity_page.md"
N, QPS, BUSY = 1_000_000, 10_000, 0.7
WIDTH = 384
"""Of MiniLM."""


def page() -> str:
    """The page."""
    return TEXT.read_text(encoding="utf-8").format(**numbers())


def numbers() -> dict[str, Any]:
    """Every number of the page by its name; times in ms unless the name says another unit."""
    bank, serving, beside, follow = (_read(name) for name in ("bank", "serving", "serving_avx2", "follow"))
    store = follow["3000 adapters"]
    offsets, full_head, linear_head = bank["adapter_bytes"], bank["head_bytes"], 4 * (WIDTH + 1) * 2
    linear, full = offsets + linear_head, offsets + full_head
    short, long = (bank[shape]["bare_ms"] * bank[shape]["bank/bare"] / 64 for shape in ("64x16", "64x128"))
    served_pace = serving["8 texts a request"]["texts_per_s"]
    shared = bank["shared"]
    middle, share = shared["64_texts_ms"] / 64, shared["8_texts_above_4/64_texts"]
    add, cold, look = bank["growth"]["100000 adapters"]["add_ms"], bank["cold_ms"], store["look_us"]
    of_text = {
        "short": short, "long": long, "served": 1e3 / served_pace, "middle": middle, "shared": middle * share
    }  # fmt: skip
    return {
        "n": N, "qps": QPS, "busy": BUSY, "width": WIDTH, "model": bank["model"],
        "offsets": offsets, "full_head": full_head, "linear_head": linear_head,
        "linear": linear, "full": full,
        "short_bare": bank["64x16"]["bare_ms"], "short_ratio": bank["64x16"]["bank/bare"],
        "long_bare": bank["64x128"]["bare_ms"], "long_ratio": bank["64x128"]["bank/bare"],
        "served_pace": served_pace, "server_ratio": beside["server/bank"], "share": share,
        "add": add, "adds": 1e3 / add, "cold": cold,
        "publish": store["publish_ms"], "publishes": 1e3 / store["publish_ms"], "start": store["start_ms"],
        "look": look, "look_s": N * look / 1e6, "look_n": 1.5e6 / look,
        "start_min": N * store["start_ms"] / 6e4,
        "linear_gb": N * linear / 1e9, "linear_half_gb": N * linear / 2e9,
        "full_gb": N * full / 1e9, "full_half_gb": N * full / 2e9,
        "linear_mb": linear / 1e3, "full_mb": full / 1e3, "linear_kb": linear / 1e3,
        "short_cold": (short + cold) / short, "long_cold": (long + cold) / long,
        "cold_gb": QPS * linear / 1e9,
        **of_text,
        **{f"{name}_cores": QPS * ms / 1e3 for name, ms in of_text.items()},
        **{f"{name}_planned": QPS * ms / 1e3 / BUSY for name, ms in of_text.items()},
    }  # fmt: skip


def _read(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))


def main() -> None:
    """Write the page, or compare it."""
    if "--check" not in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit("docs/capacity.md is out of date; run: python scripts/capacity_page.py")


if __name__ == "__main__":
    main()
