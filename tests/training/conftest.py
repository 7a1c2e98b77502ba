from functools import partial

import pytest

from tests.training.tiny_settings import make_settings


@pytest.fixture
def data_settings(tmp_path):
    """make_settings in a folder of the test."""
    return partial(make_settings, tmp_path)
