"""Draw the sample data set: fish, leaves and mushrooms among things that resemble them, in VOC layout.

python tools/make_sample.py [--save_dir=VOCdevkit/Sample] [--images=160] [--seed=7]
"""

import math
import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.runtime.startup  # noqa: F401 # isort: skip

from utils.config.cli import run_script
from utils.image.opencv import cv2
from utils.io.errors import UserError
from utils.io.logger import logger
from utils.io.text import counted, shorten_list

# ----------------------------------------------------------------------------------------------------------------------
#   save_dir   The VOC folder to write. What an earlier run drew there is replaced; other files are never.
#   images     How many images in all three splits.
#   seed       Chooses what is drawn. The set in the repository has 7.
# ----------------------------------------------------------------------------------------------------------------------
save_dir = "VOCdevkit/Sample"
images = 160
seed = 7

CLASSES = ("fish", "leaf", "mushroom")  # model_data/sample_classes.txt lists the same names
IMAGE_SIZE = 320  # px, square
VAL_SHARE = 0.25  # of the images; 160 give 110 train, 40 val and 10 test
TEST_SHARE = 0.0625

# How hard the set is. The comment ends with the direction that makes it harder.
OBJECTS = (4, 7)  # labelled objects in an image, fewest and most: more
DISTRACTORS = (1, 2)  # unlabelled things that resemble them: more
TURN = 0.6  # radians by which an item leans out of the horizontal, at most: more
OBJECT_LENGTH = (46, 200)  # px along the object's own axis, log-uniform: smaller
SIDE_RANGE = (12, 200)  # px, what a side of a box may measure
OVERLAP_CHANCE = 0.16  # that an item is laid on an earlier object; about a third of the objects then touch: more
MIN_VISIBLE = 0.75  # share of an object neither covered nor outside the image: lower
MIN_CONTRAST = 110  # RGB distance between an item and what lies under it: lower
SEE_THROUGH_CHANCE = 0.03  # that an item with no object below lets the ground shine through: more
OUTLINE_CHANCE = 0.03  # that a large item is hardly more than its outline: more
HUES = {"fish": (106, 130), "leaf": (42, 75), "mushroom": (0, 12)}  # OpenCV's 0..179; distractors take any: wider
GROUND_SATURATION = 40  # of the background, at most 255: more
NOISE_SIGMA = (0, 6)  # grey levels: more
BLUR_SIGMA = (0.01, 0.9)  # px: more
LIGHT_FALLOFF = 0.35  # share of the light lost across the image, at most: more
COLOUR_CAST = 0.1  # how far each channel may be off: more
EMPTY_EVERY = 20  # one image in so many holds distractors only

JPEG_QUALITY = 76  # keeps the set under 3 MB
PLACE_ATTEMPTS = 60  # an item that finds no fair place by then is left out

# A folder with this file was drawn here, and may be drawn anew.
MARKER, MARKER_TEXT = "drawn_sample.txt", "tools/make_sample.py drew this folder, and replaces it when it runs again.\n"
DRAWN = re.compile(
    rf"{re.escape(MARKER)}|JPEGImages/\d{{6,}}\.jpg|Annotations/\d{{6,}}\.xml"
    r"|ImageSets/Main/(train|val|trainval|test)\.txt"
)

ANNOTATION = """<annotation>
  <folder>JPEGImages</folder>
  <filename>{stem}.jpg</filename>
  <size><width>{size}</width><height>{size}</height><depth>3</depth></size>
{objects}</annotation>
"""
OBJECT = """  <object>
    <name>{}</name>
    <difficult>0</difficult>
    <bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>
  </object>
"""


# ---- Shapes: lists of (role, points), points (N, 2) in units of the item's length, centred on the origin.
# A "body" adds to the silhouette, a "hole" cuts it; "line", "dark" and "light" decorate what is left.


def ellipse(centre_x, centre_y, radius_x, radius_y, start=0.0, end=2 * math.pi):
    """Points (48, 2) along an ellipse from angle start to end, in radians."""
    angles = np.linspace(start, end, 48)
    return np.stack([centre_x + radius_x * np.cos(angles), centre_y + radius_y * np.sin(angles)], axis=1)


def rectangle(x1, y1, x2, y2):
    """The corners (4, 2) of a rectangle."""
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])


def fish(rng):
    half_height, tail = rng.uniform(0.17, 0.24), rng.uniform(0.15, 0.22)
    along = np.linspace(0, math.pi, 24)
    back = np.stack([-0.14 - 0.36 * np.cos(along), -half_height * np.sin(along) ** 0.8], axis=1)
    return [
        ("body", np.concatenate([back, back[::-1] * [1, -1]])),
        ("body", np.array([[0.12, 0], [0.5, -tail], [0.4, 0], [0.5, tail]])),
        ("body", np.array([[-0.25, -0.8], [-0.02, -1.5], [0.06, -0.5]]) * [1, half_height]),
        ("line", ellipse(-0.36, 0, 0.12, 0.8 * half_height, -0.9, 0.9)),
        ("light", ellipse(-0.36, -0.25 * half_height, 0.045, 0.045)),
        ("dark", ellipse(-0.36, -0.25 * half_height, 0.024, 0.024)),
    ]


def leaf(rng):
    along = np.linspace(0, 1, 24)
    edge = np.stack([0.78 * along - 0.28, rng.uniform(0.19, 0.27) * np.sin(math.pi * along**0.75)], axis=1)
    veins = np.linspace(-0.18, 0.22, rng.integers(3, 5))
    tips = 0.75 * np.interp(veins + 0.14, edge[:, 0], edge[:, 1])
    return [
        ("body", np.concatenate([edge, edge[::-1] * [1, -1]])),
        ("body", np.array([[-0.5, -0.03], [-0.2, -0.02], [-0.2, 0.02], [-0.5, 0.03]])),
        ("line", np.array([[-0.3, 0], [0.45, 0]])),
        *[("line", np.array([[x + 0.14, -y], [x, 0], [x + 0.14, y]])) for x, y in zip(veins, tips, strict=True)],
    ]


def mushroom(rng):
    height, stem = rng.uniform(0.3, 0.42), rng.uniform(0.12, 0.17)
    spots = [(-0.26, 0.3), (0.02, 0.62), (0.27, 0.28)]
    return [
        ("body", np.array([[-stem, 0], [stem, 0], [1.25 * stem, 0.44], [-1.25 * stem, 0.44]])),
        ("body", ellipse(0, 0.02, 0.5, height, math.pi)),
        ("line", np.array([[-0.48, 0.02], [0.48, 0.02]])),
        *[("light", ellipse(x, -y * height, 0.07, 0.05)) for x, y in spots],
    ]


def distractor(rng):
    """One unlabelled shape: like a part of the objects, never like a whole one."""
    width, corners, gap = rng.uniform(0.12, 0.2), rng.integers(3, 7), rng.uniform(3.4, 5.2)
    disc, inner = ellipse(0, 0, 0.5, 0.5), ellipse(0, 0, 0.5 - width, 0.5 - width)
    broken_ring = [ellipse(0, 0, 0.5, 0.5, 0, gap), ellipse(0, 0, 0.5 - width, 0.5 - width, gap, 0)]
    bow_tie = np.array([[-0.5, -0.3], [0, -0.05], [0.5, -0.3], [0.5, 0.3], [0, 0.05], [-0.5, 0.3]])
    comb = [rectangle(-0.5, -0.07, 0.5, 0.05), *[rectangle(x, 0, x + 0.08, 0.24) for x in (-0.5, -0.21, 0.1, 0.42)]]
    wave = np.stack([np.linspace(-0.5, 0.5, 6), [0.16, -0.16] * 3], axis=1)
    kinds = [
        [("body", ellipse(0, 0, 0.5, rng.uniform(0.22, 0.5)))],
        [("body", disc), ("hole", inner)],
        [("body", disc), ("hole", ellipse(0.2, 0, 0.42, 0.42))],  # a crescent
        [("body", np.concatenate(broken_ring))],
        [("body", disc[np.arange(corners) * 47 // corners])],  # a polygon
        [("body", bow_tie)],
        [("body", part) for part in comb],
        [("body", np.concatenate([wave, wave[::-1] + np.array([0, width])]))],
    ]
    return kinds[rng.integers(len(kinds))]


SHAPES = {"fish": fish, "leaf": leaf, "mushroom": mushroom, "distractor": distractor}


# ---- Painting


def random_colour(rng, hues, saturation, value):
    """An RGB colour (3,), float32. Ranges with the end left out: hues of 0..180, others of 0..256."""
    hue_saturation_value = [rng.integers(*hues), rng.integers(*saturation), rng.integers(*value)]
    return cv2.cvtColor(np.uint8([[hue_saturation_value]]), cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)


def texture(rng, size, first, second):
    """A (size, size, 3) float32 picture in two colours: plain, shaded, striped or spotted."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    angle, waves = rng.uniform(0, math.pi), rng.uniform(3, 7) * 2 * math.pi
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    kinds = [0 * u, u + 0.5, 0.5 + 2 * np.sin(u * waves), 4 * np.sin(u * waves) * np.sin(v * waves) - 1.5]
    mix = np.clip(kinds[rng.integers(len(kinds))], 0, 1)[..., None]
    return (first + (second - first) * mix).astype(np.float32)


def background(rng):
    """A (IMAGE_SIZE, IMAGE_SIZE, 3) float32 ground: a soft texture under cloudy patches."""
    first, second = (random_colour(rng, (0, 180), (0, GROUND_SATURATION), (60, 256)) for _ in range(2))
    ground = texture(rng, IMAGE_SIZE, first, 0.7 * first + 0.3 * second)
    cells = int(rng.integers(3, 12))
    clouds = rng.normal(0, rng.uniform(4, 12), (cells, cells, 3)).astype(np.float32)
    return ground + cv2.resize(clouds, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_CUBIC)


def colour_item(rng, size, hues, ground_colour):
    """Colours (S, S, 3) float32 that stand out from ground_colour (RGB, (3,)), and a line colour (3,) for them."""
    colour = ground_colour
    while np.linalg.norm(colour - ground_colour) < MIN_CONTRAST:
        colour = random_colour(rng, hues, (150, 256), (110, 256))
    darker, lighter = 0.45 * colour, 0.55 * colour + 0.45 * 255
    second = 0.5 * colour + 0.5 * (darker if rng.random() < 0.5 else lighter)
    return texture(rng, size, colour, second), darker if colour.mean() > 90 else lighter


def draw_item(rng, name, length, turn, ground_colour):
    """Draw one item on a square patch of its own.

    name: a class or "distractor"; length: px; turn: radians; ground_colour: RGB (3,), which the item keeps clear of.
    Returns colours (S, S, 3), opacity (S, S) and silhouette (S, S), float32, the latter two in [0, 1].
    """
    size, stroke = math.ceil(1.2 * length) + 6, max(1, round(length / 45))
    rotation = length * np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    rotation[1] *= rng.choice([-1, 1])  # mirrored or not
    parts = SHAPES[name](rng)
    # cv2 takes points in 1/16 px when told to shift them by 4 bits.
    pixels = [(role, [np.rint((points @ rotation + size / 2) * 16).astype(np.int32)]) for role, points in parts]
    silhouette = np.zeros((size, size), np.uint8)
    for role, points in pixels:
        if role in ("body", "hole"):
            cv2.fillPoly(silhouette, points, 255 * (role == "body"), cv2.LINE_AA, 4)
    colours, line_colour = colour_item(rng, size, HUES.get(name, (0, 180)), ground_colour)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * stroke + 1, 2 * stroke + 1))
    # marks: what stays opaque where the item is hardly more than its outline.
    marks = silhouette - cv2.erode(silhouette, kernel)
    outline_only = length > 60 and rng.random() < OUTLINE_CHANCE
    if outline_only or rng.random() < 0.6:
        colours += (line_colour - colours) * (marks[..., None] / 255)
    colours = colours.astype(np.uint8)  # cv2 smooths lines on 8 bits only
    for role, points in pixels:
        if role == "line":
            cv2.polylines(colours, points, False, line_colour.tolist(), stroke, cv2.LINE_AA, 4)
            cv2.polylines(marks, points, False, 255, stroke, cv2.LINE_AA, 4)
        elif role in ("dark", "light"):
            cv2.fillPoly(colours, points, (20, 20, 20) if role == "dark" else (245, 245, 245), cv2.LINE_AA, 4)
            cv2.fillPoly(marks, points, 255, cv2.LINE_AA, 4)
    silhouette = silhouette.astype(np.float32) / 255
    opacity = silhouette * np.maximum(marks.astype(np.float32) / 255, 0.25 if outline_only else 1)
    return colours.astype(np.float32), opacity, silhouette


# ---- Composing


def box_of(mask):
    """The box [x1, y1, x2, y2] of a boolean mask's pixels, as edges: x2 and y2 lie one past the last pixel."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return [x, y, x + width, y + height]


def is_fair(mask, full_area):
    """Whether enough of an object shows, in a box whose sides are in SIDE_RANGE."""
    x1, y1, x2, y2 = box_of(mask)
    sides_fit = SIDE_RANGE[0] <= min(x2 - x1, y2 - y1) and max(x2 - x1, y2 - y1) <= SIDE_RANGE[1]
    return sides_fit and mask.sum() >= MIN_VISIBLE * full_area


def place_item(rng, image, objects, name):
    """Draw one item where it is fair to all; without such a place it is left out.

    image: (IMAGE_SIZE, IMAGE_SIZE, 3) float32, drawn into. name: a class or "distractor".
    objects: dicts of name, visible mask and full area in px; gains the item if it has a class, loses what it hides.
    """
    shortest, longest = OBJECT_LENGTH if name in CLASSES else (OBJECT_LENGTH[0], OBJECT_LENGTH[1] / 2)
    for _ in range(PLACE_ATTEMPTS):
        length = math.exp(rng.uniform(math.log(shortest), math.log(longest)))
        turn = rng.uniform(-TURN, TURN) + math.pi * rng.integers(2)
        centre = rng.uniform(0.2 * length, IMAGE_SIZE - 0.2 * length, 2)
        laid_on_another = len(objects) > 0 and rng.random() < OVERLAP_CHANCE
        if laid_on_another:
            x1, y1, x2, y2 = box_of(objects[rng.integers(len(objects))]["mask"])
            centre = rng.uniform((x1, y1), (x2, y2)) + rng.uniform(-length / 2, length / 2, 2)
        column, row = np.clip(centre, 0, IMAGE_SIZE - 1).astype(int)
        ground_colour = image[max(0, row - 8) : row + 8, max(0, column - 8) : column + 8].mean(axis=(0, 1))
        patch = draw_item(rng, name, length, turn, ground_colour)
        half = len(patch[0]) // 2
        to_image = np.float32([[1, 0, column - half], [0, 1, row - half]])  # what falls outside is cut off
        colours, opacity, silhouette = (cv2.warpAffine(layer, to_image, (IMAGE_SIZE, IMAGE_SIZE)) for layer in patch)
        mask, hidden, full_area = silhouette > 0.5, opacity > 0.8, (patch[2] > 0.5).sum()
        touched = [item for item in objects if (item["mask"] & mask).any()]
        if any(item["name"] == name for item in touched):
            continue  # one leaf on another: a puzzle even for people
        if bool(touched) != laid_on_another or (name in CLASSES and not is_fair(mask, full_area)):
            continue
        if not all(is_fair(item["mask"] & ~mask, item["area"]) for item in touched):
            continue
        if not touched and rng.random() < SEE_THROUGH_CHANCE:
            opacity *= rng.uniform(0.7, 0.8)
        image += (colours - image) * opacity[..., None]
        for item in touched:
            item["mask"] &= ~hidden
        if name in CLASSES:
            objects.append({"name": name, "mask": mask, "area": full_area})
        return


def draw_image(rng, with_objects=True):
    """Draw one image: (IMAGE_SIZE, IMAGE_SIZE, 3) RGB uint8, and its [(class name, [x1, y1, x2, y2])] in px."""
    image, objects = background(rng), []
    labelled = rng.choice(CLASSES, rng.integers(OBJECTS[0], OBJECTS[1] + 1) if with_objects else 0).tolist()
    unlabelled = ["distractor"] * rng.integers(DISTRACTORS[0], DISTRACTORS[1] + 1)
    for name in rng.permutation(labelled + unlabelled).tolist():
        place_item(rng, image, objects, name)
    y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE] / IMAGE_SIZE - 0.5
    angle = rng.uniform(0, 2 * math.pi)
    light = 1.05 - rng.uniform(0, LIGHT_FALLOFF) * (0.5 + 0.7 * (x * math.cos(angle) + y * math.sin(angle)))
    image = image * light[..., None] * rng.uniform(1 - COLOUR_CAST, 1 + COLOUR_CAST, 3)
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(*BLUR_SIGMA))
    image += rng.normal(0, rng.uniform(*NOISE_SIGMA), (IMAGE_SIZE, IMAGE_SIZE, 1))
    return np.clip(image, 0, 255).astype(np.uint8), [(item["name"], box_of(item["mask"])) for item in objects]


# ---- Writing


def remove_earlier(save_dir):
    """Remove what an earlier run drew into a folder, Path. Raises ValueError for a folder that holds other files."""
    if not save_dir.exists() or (save_dir.is_dir() and not any(save_dir.iterdir())):
        return
    if not (save_dir / MARKER).is_file():
        raise UserError(
            f"save_dir is {str(save_dir)!r}, which holds files that this tool did not draw, as it has no {MARKER}; "
            "name a new or empty folder."
        )
    # Hidden files are those of systems and editors.
    files = (path for path in save_dir.rglob("*") if path.is_symlink() or not path.is_dir())
    drawn = [path for path in files if not path.name.startswith(".")]
    names = [path.relative_to(save_dir).as_posix() for path in drawn]
    if others := [name for name in names if not DRAWN.fullmatch(name)]:
        raise UserError(
            f"save_dir is {str(save_dir)!r}, which holds files that this tool did not draw: {shorten_list(others)}; "
            "move them away, or name another folder."
        )
    for path in drawn:
        path.unlink()


def make_sample(save_dir, images, seed):
    """Write a drawn data set in VOC layout: JPEGImages/, Annotations/, ImageSets/Main/{train,val,trainval,test}.txt.

    The same arguments give the same bytes on the same OpenCV and NumPy; image n does not depend on how many follow.
    Raises ValueError when images is below 4, and as remove_earlier.
    """
    if images < 4:
        raise UserError(f"images = {images}, expected at least 4: train, val and test each need one.")
    save_dir, stems = Path(save_dir), [f"{index:06d}" for index in range(1, images + 1)]
    remove_earlier(save_dir)
    # First, so that a set that was interrupted can be replaced too.
    save_dir.mkdir(parents=True, exist_ok=True)
    (save_dir / MARKER).write_text(MARKER_TEXT, encoding="utf-8", newline="\n")
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (save_dir / folder).mkdir(parents=True, exist_ok=True)
    for index, stem in enumerate(stems):
        image, labels = draw_image(np.random.default_rng([seed, index]), index % EMPTY_EVERY != EMPTY_EVERY - 1)
        jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
        (save_dir / "JPEGImages" / f"{stem}.jpg").write_bytes(jpeg.tobytes())
        objects = "".join(OBJECT.format(name, *box_xyxy) for name, box_xyxy in labels)
        annotation = ANNOTATION.format(stem=stem, size=IMAGE_SIZE, objects=objects)
        (save_dir / "Annotations" / f"{stem}.xml").write_text(annotation, encoding="utf-8", newline="\n")
    val, test = max(1, round(images * VAL_SHARE)), max(1, round(images * TEST_SHARE))
    trainval = stems[: images - test]
    splits = {"train": trainval[:-val], "val": trainval[-val:], "trainval": trainval, "test": stems[-test:]}
    for split, members in splits.items():
        text = "\n".join(members) + "\n"
        (save_dir / "ImageSets" / "Main" / f"{split}.txt").write_text(text, encoding="utf-8", newline="\n")


def main(settings):
    """Draw the set and say so."""
    make_sample(settings.save_dir, settings.images, settings.seed)
    logger.info(f"{counted(settings.images, 'image')} written to {settings.save_dir}")


if __name__ == "__main__":
    run_script(main, {"save_dir": save_dir, "images": images, "seed": seed})
