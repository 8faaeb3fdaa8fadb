"""matplotlib without a display, and plots as files."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib

from experiments.command import write_file
from pnn_jax.errors import InputError

matplotlib.use('Agg')  # before pyplot is imported, because pyplot looks for a display
import matplotlib.pyplot as plt

__all__ = ['check_plot', 'plt', 'save_plot', 'to_bytes']


def check_plot(path: Path, field: str) -> None:
    """Checks the name of a plot before anything is computed.

    Raises:
        InputError: its folder does not exist, or matplotlib does not know the format.
    """
    formats = plt.figure().canvas.get_supported_filetypes()
    plt.close()
    if path.suffix[1:].lower() not in formats:
        raise InputError(f'{field}={path}: the name must end in one of {", ".join("." + name for name in formats)}')
    if not path.parent.is_dir():
        raise InputError(f'{field}={path}: its folder does not exist')


def to_bytes(figure: plt.Figure, file_format: str = 'png', dpi: int = 110) -> bytes:
    """The content of an image file. The figure is closed. The same figure gives the same bytes."""
    buffer = io.BytesIO()
    metadata = {'Software': None} if file_format == 'png' else None  # matplotlib's version would change the bytes
    figure.savefig(buffer, dpi=dpi, format=file_format, metadata=metadata)
    plt.close(figure)
    return buffer.getvalue()


def save_plot(figure: plt.Figure, path: Path) -> None:
    """Writes a figure in the format that the name says.

    Raises:
        RunError: it cannot be written.
    """
    write_file(path, to_bytes(figure, path.suffix[1:].lower(), dpi=120))
