"""Registration with PEFT without importing it: at once where PEFT is loaded, else right after it is.

PEFT brings PyTorch and transformers, seconds that `hadamard --help` should not take. So `import
hadamard_adapter` leaves a note with Python's import system, which is read when somebody imports PEFT.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["register_after_peft"]

_METHOD = "hadamard_adapter.adapter"  # importing it registers


def register_after_peft() -> None:
    """Import the method now if PEFT is loaded, else as soon as it has been; idempotent.

    Example:
        >>> register_after_peft()
        >>> from peft.utils import PeftType
        >>> PeftType("HADAMARD").name
        'HADAMARD'
    """
    if "peft" in sys.modules:
        importlib.import_module(_METHOD)
    elif not any(isinstance(finder, _PeftFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PeftFinder())


class _PeftFinder(importlib.abc.MetaPathFinder):
    """Finds PEFT as everybody else would, and has the method imported behind it.

    It stays until PEFT is really imported: many only ask whether PEFT is there.
    """

    is_asking = False

    def find_spec(
        self, fullname: str, path: Iterable[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "peft" or self.is_asking:
            return None
        self.is_asking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.is_asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader, self)
        return spec


class _ThenRegister(importlib.abc.Loader):
    """A loader that does what PEFT's does and registers the method afterwards."""

    def __init__(self, loader: importlib.abc.Loader, finder: _PeftFinder) -> None:
        self.loader, self.finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader  # nobody else need know
        self.loader.exec_module(module)
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
        importlib.import_module(_METHOD)
