"""A rank does not import what DeepSpeed would import for nothing."""

import subprocess
import sys

import pytest

from xlr.zero.hiding import hidden


def test_a_hidden_package_is_as_if_it_were_not_installed() -> None:
    with hidden("tomllib_of_nobody"), pytest.raises(ImportError):
        __import__("tomllib_of_nobody")
    assert "tomllib_of_nobody" not in sys.modules


def test_a_package_that_is_imported_already_stays() -> None:
    with hidden("subprocess"):
        assert __import__("subprocess") is subprocess
    assert sys.modules["subprocess"] is subprocess


@pytest.mark.parametrize("module", ["engine", "universal"])
def test_ranks_and_converters_do_not_import_mlflow_but_may_later(module: str) -> None:
    code = f"import sys, xlr.zero.{module}; assert 'mlflow' not in sys.modules; import mlflow"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
