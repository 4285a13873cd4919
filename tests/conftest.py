"""Fixtures that need more than a line: the real MiniLM, as an unpacked folder."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the real all-MiniLM-L6-v2, which `bash scripts/fetch.sh` fetches and unpacks."""
    folder = Path(os.environ.get("HADAMARD_DOWNLOADS", ROOT / "downloads")) / "model"
    if not (folder / "model.safetensors").is_file():
        pytest.fail(f"expected the model all-MiniLM-L6-v2 in {str(folder)!r}; run: bash scripts/fetch.sh")
    return folder
