"""What holds for all tests: annotations and shapes are checked; the real MiniLM, as an unpacked folder."""

import os
import signal
from pathlib import Path

import jaxtyping
import pytest

# No test asks a hub; the libraries look at this when they are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A shell that starts the tests in the background has them ignore Ctrl-C, which some of them send.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Every annotated function of the package checks what it takes and gives; an int will do as a float, as for
# pyright. Processes that a test starts import the package without this.
jaxtyping.install_import_hook(
    "hadamard_adapter", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Annotations are not checked, for a test that hands over what they forbid."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the real all-MiniLM-L6-v2, which `bash scripts/fetch.sh` fetches and unpacks."""
    folder = Path(os.environ.get("HADAMARD_DOWNLOADS", ROOT / "downloads")) / "model"
    if not (folder / "model.safetensors").is_file():
        pytest.fail(f"expected the model all-MiniLM-L6-v2 in {str(folder)!r}; run: bash scripts/fetch.sh")
    return folder
