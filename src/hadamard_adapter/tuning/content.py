"""What a base model's path or name holds right now: the same path may hold other weights tomorrow."""

import hashlib
from pathlib import Path

from transformers.utils.hub import cached_file, extract_commit_hash

from hadamard_adapter.files import file_sha256

__all__ = ["base_content"]

SHORT = 1 << 28
"""Of files that are longer, in bytes, a sample is `N_SAMPLES` blocks of `BLOCK`."""
N_SAMPLES, BLOCK = 64, 1 << 20
READ = (
    *("*.json", "*.safetensors", "*.model", "vocab.txt", "merges.txt"),
    *("bpe.codes", "dict.txt", "*.py"),
)
"""What a run reads from a folder: config, weights, tokenizer, the model's own code."""


def base_content(model: str, is_sample: bool = False) -> str | None:
    """Tell the content of a base model apart from what the same path or name held before.

    Args:
        model: a folder, or a name on the hub.
        is_sample: whether parts of long files will do. Whole ones take a second a gigabyte or two.

    Returns:
        A folder's sha256 over names, sizes and contents of the files that a run reads; the commit of a name
        on the hub; None where neither is known.

    Example:
        >>> base_content("no/such/model") is None  # doctest: +SKIP
        True
    """
    folder = Path(model)
    if not folder.is_dir():
        return _commit(model)
    digest = hashlib.sha256()
    for path in sorted({path for pattern in READ for path in folder.glob(pattern) if path.is_file()}):
        digest.update(f"{path.name}\0{path.stat().st_size}\0{_hash(path, is_sample)}\n".encode())
    return digest.hexdigest()


def _hash(path: Path, is_sample: bool) -> str:
    size = path.stat().st_size
    if size <= SHORT or not is_sample:
        return file_sha256(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for index in range(N_SAMPLES):
            file.seek((size - BLOCK) * index // (N_SAMPLES - 1))
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


def _commit(name: str) -> str | None:
    try:
        found = cached_file(name, "config.json", _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):  # no such name, or no network: loading will say so
        return None
    return extract_commit_hash(found, None)
