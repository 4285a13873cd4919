"""Laws of the keys: secrets are not kept, other secrets fit no key, damaged files are refused."""

import json
import stat
from pathlib import Path

import pytest

from hadamard_adapter.errors import SettingsError
from hadamard_adapter.serving.keys import find_key, make_key, read_keys


def test_a_key_is_found_by_its_secret_alone_and_the_secret_is_not_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    secrets = [make_key(file, name, [f"{name}-*"], name == "b") for name in ("a", "b")]
    keys = read_keys(file)
    assert [(key.name, key.ids, key.may_administrate) for key in keys] == [
        ("a", ("a-*",), False), ("b", ("b-*",), True),
    ]  # fmt: skip
    for secret, key in zip(secrets, keys, strict=True):
        assert find_key(keys, secret) == key and secret not in file.read_text()
        assert find_key(keys, secret[:-1]) is None and find_key(keys, key.sha256) is None
    assert find_key(keys, "") is None and find_key(keys, "ü\udcff") is None
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert keys[0].may_use("a-mood") and not keys[0].may_use("A-mood") and not keys[0].may_use("xa-mood")


def test_a_name_or_no_ids_are_refused_and_the_file_stays(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    make_key(file, "a", ["*"])
    before = file.read_bytes()
    with pytest.raises(SettingsError, match="named 'a' already"):
        make_key(file, "a", ["*"])
    with pytest.raises(SettingsError, match="one pattern at least"):
        make_key(file, "b", [])
    assert file.read_bytes() == before


GOOD = {"name": "a", "sha256": "0" * 64, "ids": ["*"]}


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{}", '{"keys": 3}', '{"keys": [3]}', '{"keys": []}',
        *(json.dumps({"keys": [GOOD | change]}) for change in (
            {"sha256": "00"}, {"sha256": "x" * 64}, {"ids": "*"}, {"ids": [3]}, {"may_administrate": "no"},
        )),
    ],
)  # fmt: skip
def test_damaged_files_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "keys.json").write_text(content)
    with pytest.raises(SettingsError, match="serve-key"):
        read_keys(tmp_path / "keys.json")
    with pytest.raises(SettingsError, match="No such file"):
        read_keys(tmp_path / "none.json")
