"""What all figures drawn by matplotlib share: colours, plain axes, names of any script, and the way to an image.

matplotlib is imported only where something is drawn, because it takes a second. No pyplot: nothing global, no screen.
"""

import numpy as np

from utils.image.draw import shortened, text_image

TRAIN, VAL, GREY, DARK = "#0072ce", "#f07800", "#999999", "#222222"
_NAME_SIZE = 13


def new_figure(width, height):
    """An empty figure of so many pixels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 100, height / 100), dpi=100)


def style_axes(axes, **properties):
    """Axes with a faint grid, without a frame at top and right, and with these properties set. Returns them."""
    axes.set(**properties)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def legend_above(axes, columns=4):
    """The legend above the axes, where it covers nothing."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, frameon=False, fontsize=9)


def rendered(figure):
    """The figure as (H, W, 3) uint8 RGB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def name_box(name, width, number=""):
    """A name, shortened so that it and the number behind it take so many pixels, as a box for matplotlib to place."""
    from matplotlib.offsetbox import OffsetImage

    end = f" {number}" if number else ""
    text = shortened(name, width, _NAME_SIZE, end) + end
    return OffsetImage(text_image(text, _NAME_SIZE), zoom=1, dpi_cor=False, interpolation="nearest")


def names_on_left(axes, names, width):
    """Write names beside the places 0, 1, ... of the y axis, each at most so many pixels wide."""
    from matplotlib.offsetbox import AnnotationBbox

    axes.set_yticks([])
    beside = {"xycoords": axes.get_yaxis_transform(), "xybox": (-6, 0), "boxcoords": "offset points", "pad": 0}
    for place, name in enumerate(names):
        box = name_box(name, width)
        axes.add_artist(AnnotationBbox(box, (0, place), box_alignment=(1, 0.5), frameon=False, **beside))
