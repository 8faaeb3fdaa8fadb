"""The examples in docstrings work."""

import doctest
import importlib
import pathlib

import pytest

import pnn_jax

PACKAGE = pathlib.Path(pnn_jax.__file__).parent
EXAMPLES = {
    '.'.join(path.relative_to(PACKAGE.parent).with_suffix('').parts).removesuffix('.__init__'): count
    for path in sorted(PACKAGE.rglob('*.py'))
    if (count := path.read_text().count('>>> '))
}


@pytest.mark.parametrize('module', EXAMPLES)
def test_examples_give_what_they_show(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted == EXAMPLES[module]  # none is hidden where doctest does not look
    assert result.failed == 0
