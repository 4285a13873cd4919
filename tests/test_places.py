"""Places to write: refused before any work, in one line that says why."""

import os
from pathlib import Path

import pytest

from hadamard_adapter.cli.options import refuse_no_file
from hadamard_adapter.errors import SettingsError
from hadamard_adapter.tuning.places import refuse_no_place
from tuning_help import unprivileged


def test_a_new_folder_below_others_that_are_not_there_has_a_place(tmp_path: Path) -> None:
    refuse_no_place("output", tmp_path / "new" / "newer" / "out")
    refuse_no_place("output", tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="no mount point that every machine of this kind has")
def test_a_mount_point_is_no_place_since_nothing_can_take_its_name() -> None:
    with pytest.raises(SettingsError, match=r"output '/proc' is a mount point.*inside it"):
        refuse_no_place("output", Path("/proc"))


def test_a_link_to_nothing_is_no_place_and_one_to_a_folder_is(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "there")
    with pytest.raises(SettingsError, match=r"output .*out' is a link to .*there', which is not there; make"):
        refuse_no_place("output", tmp_path / "out")
    (tmp_path / "there").mkdir()
    refuse_no_place("output", tmp_path / "out")


def test_a_folder_that_must_not_be_written_to_is_no_place(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    with unprivileged(closed):
        with pytest.raises(
            SettingsError, match=r"output .*out': folder '.*closed' cannot be written to; allow"
        ):
            refuse_no_place("output", closed / "new" / "out")
        with pytest.raises(SettingsError, match=r"output .*closed' cannot be written to, so it can neither"):
            refuse_no_place("output", closed)
        with pytest.raises(SettingsError, match=r"--plot .*closed' cannot be written to; allow it"):
            refuse_no_file("--plot", str(closed / "a.png"))
