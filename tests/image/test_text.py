import numpy as np
import pytest

from utils.image.draw import shortened, text_image, text_width
from utils.visualize.figures import name_box


@pytest.mark.parametrize("name", ["红细胞", "dog", "a very long name of a class that nobody has room for"])
def test_names_are_drawn_and_cut(name):
    """Prevents question marks or boxes in the place of Chinese, and names that run out of the picture: the number
    behind the name stays."""
    picture = name_box(name, 150, "0.87").get_data()
    assert picture.shape[2] == 4 and 40 < picture.shape[1] <= 155
    ink = picture[..., 3] > 128
    assert ink.any() and not ink[:, -1].any() and not ink[0].any() and not ink[-1].any()
    other = name_box(name[::-1], 150, "0.87").get_data()
    assert picture.shape != other.shape or (picture != other).any()


def test_what_is_too_long_loses_its_middle():
    """Prevents two names that differ only at their end, as `left door` and `left door handle`, from looking alike."""
    text = shortened("left front door handle", 100, 13)
    assert text.startswith("left") and text.endswith("dle") and "…" in text and text_width(text, 13) <= 100
    assert shortened("dog", 100, 13) == "dog" and shortened("", 100, 13) == ""
    assert shortened("long", 1, 13) == "l…g"  # nothing is as narrow as that


def test_an_empty_name_has_an_image():
    """Prevents an image of width 0, which OpenCV refuses."""
    image = text_image("", 13)
    assert image.shape == (19, 3, 4) and (image[..., 3] == 0).all()
    assert np.unique(text_image("dog", 13, (230, 57, 70))[..., :3].reshape(-1, 3), axis=0).tolist() == [[230, 57, 70]]
