"""Which code computed a result: the package's version, a digest of its sources and, in a checkout, the commit."""

import functools
import hashlib
import subprocess
from pathlib import Path
from typing import TypedDict

from pnn_jax import __version__

PACKAGE = Path(__file__).resolve().parent.parent  # pnn_jax/
# In a wheel, the configs are inside the package: a folder `configs` next to it would belong to every other project too.
CONFIGS = PACKAGE / 'configs' if (PACKAGE / 'configs').is_dir() else PACKAGE.parent / 'configs'


class Provenance(TypedDict):
    """What `result.json` holds under 'code'.

    Attributes:
        version: of the package.
        sha256: `code_digest()`.
        commit: of the checkout, or None outside of one.
        clean: whether the files of the digest are as committed; None outside of a checkout.
    """

    version: str
    sha256: str
    commit: str | None
    clean: bool | None


def code_digest() -> str:
    """sha256 (hex) over the names and contents of every Python file of `pnn_jax/` and `configs/`.

    Documentation, tests and experiments are not part of it: a commit that touches only those computes the same. The
    digest of a wheel is that of the checkout that it was built from: configs are named `configs/...` in both.
    """
    digest = hashlib.sha256()
    for folder in (PACKAGE, CONFIGS):
        for file in sorted(folder.rglob('*.py')):
            if folder == PACKAGE and file.is_relative_to(CONFIGS):
                continue
            name = file.relative_to(folder.parent).as_posix()
            content = file.read_bytes()
            digest.update(f'{name} {len(content)}\n'.encode() + content)
    return digest.hexdigest()


@functools.cache
def provenance() -> Provenance:
    """The provenance of this process, read once: what is imported does not change when files do."""
    commit = _git('rev-parse', 'HEAD')
    changes = _git('status', '--porcelain', '--', str(PACKAGE), str(CONFIGS)) if commit else None
    return {
        'version': __version__,
        'sha256': code_digest(),
        'commit': commit,
        'clean': None if changes is None else not changes,
    }


def _git(*arguments: str) -> str | None:
    """What git prints, or None: it is not installed, or the package is not part of a checkout of this project."""
    if not (PACKAGE.parent / '.git').exists():
        return None
    command = ['git', '-C', str(PACKAGE.parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
