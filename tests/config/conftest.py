from pathlib import Path

import pytest

import train
from utils.config.constants import read_constants

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def constants(monkeypatch):
    """train.py's own constants, with the paths in them valid."""
    monkeypatch.chdir(ROOT)
    return read_constants(vars(train))
