"""The package starts fast and registers its method all the same, whatever is imported first."""

import subprocess
import sys

import pytest

START = """
import sys, contextlib, io
from hadamard_adapter.cli.main import run
with contextlib.redirect_stdout(io.StringIO()):
    assert run(["--help"]) == run(["--version"]) == run(["tune", "--help"]) == 0
print({"torch", "transformers", "peft", "numpy", "pandas", "matplotlib"} & set(sys.modules))
"""
REGISTERED = "; print(peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType('HADAMARD')].__name__)"


def python(code: str) -> str:
    """What a fresh Python prints."""
    return subprocess.check_output([sys.executable, "-c", code], text=True).strip()


def test_help_imports_no_heavy_library() -> None:
    assert python(START) == "set()"


@pytest.mark.parametrize(
    "imports",
    [
        "import hadamard_adapter; import peft",
        "import peft; import hadamard_adapter",
        "import hadamard_adapter; from peft.utils import PeftType; import peft",
        "from hadamard_adapter.adapter.layers import HadamardLayer; import peft",
        "from hadamard_adapter import HadamardConfig; import peft",
        "import hadamard_adapter; from importlib.util import find_spec; find_spec('peft'); import peft",
        "import hadamard_adapter, importlib.util as u; u.find_spec('peft.utils'); import peft",
    ],
)
def test_the_method_is_registered_in_whatever_order_things_are_imported(imports: str) -> None:
    assert python(imports + REGISTERED) == "HadamardConfig"
