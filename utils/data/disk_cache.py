"""Decoded images in one file, which all processes of a training and all later ones map into memory.

The file holds a header (MAGIC, and a hash of what the pixels follow from), the pixels of one image behind those of the
other, and a byte for each image.
"""

import hashlib
import os
import platform
import shutil
import stat
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL

from utils.data.annotations import Annotations
from utils.data.image_cache import RESERVED_BYTES, DecodedImages
from utils.data.sources import paths_of
from utils.image.opencv import cv2
from utils.io.files import remove_temporaries, replace_file
from utils.io.text import amount

# Its number rises when the file, or the way from an image file to these pixels, becomes another.
MAGIC = b"decoded images, version 1\n"
DIGEST_BYTES = hashlib.sha256().digest_size
HEADER_BYTES = len(MAGIC) + DIGEST_BYTES
WHOLE, TRUNCATED, UNREADABLE = range(3)
ANYONE_WRITES = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
# Seconds after which an unfinished file belongs to no other training that is just writing it.
_STALE = 3600


class DiskCache(DecodedImages):
    """DecodedImages in a file. Built without one; open() maps what lies there, write() makes it anew.

    Annotations and scales as in DecodedImages.
    """

    def __init__(self, annotations: Annotations, scales: np.ndarray):
        super().__init__(annotations, scales)
        self.path = None
        self.header = MAGIC + _digest(annotations, self.sizes_hw)
        self.file_bytes = HEADER_BYTES + int(self.offsets[-1]) + len(annotations)

    def open(self, path: Path) -> bool:
        """Map the file of that path. Returns whether it is there, whole, and of these images; an image that it lacks
        and that can be read by now makes it one that is not."""
        mapped = self._mapped(path)
        if mapped is None:
            return False
        states = mapped[self.file_bytes - len(self.annotations) :]
        self.unreadable, self.truncated = {}, set(np.flatnonzero(states == TRUNCATED).tolist())
        for index in np.flatnonzero(states == UNREADABLE).tolist():
            if self.decode_or_note(index) is not None:
                return False
        self.path, self.block = path, mapped[HEADER_BYTES:]
        return True

    def write(self, path: Path, description: str | None = "decoding to disk") -> bool:
        """Decode all images into that file, with a progress bar (None: without), and open it. OSError names it.

        Returns False where another training has put other images in its place meanwhile.
        """
        self.unreadable, self.truncated = {}, set()
        replace_file(path, lambda temporary: self._write(temporary, description))
        return self.open(path)

    def _write(self, path: Path, description: str | None) -> None:
        lock = threading.Lock()
        with open(path, "wb") as file:
            file.write(self.header)
            file.truncate(self.file_bytes)

            # Not through a map: a full disk would end the process there, where here it is an OSError.
            def store(index: int, image_rgb: np.ndarray) -> None:
                with lock:
                    file.seek(HEADER_BYTES + int(self.offsets[index]))
                    file.write(np.ascontiguousarray(image_rgb))

            self.decode_all(store, description)
            states = np.full(len(self.annotations), WHOLE, np.uint8)
            states[list(self.truncated)] = TRUNCATED
            states[list(self.unreadable)] = UNREADABLE
            file.seek(self.file_bytes - len(states))
            file.write(states)

    def _mapped(self, path: Path) -> np.ndarray | None:
        """The bytes of the file, where it has the header and the size that it should, else None."""
        try:
            with open(path, "rb") as file:
                is_whole = os.fstat(file.fileno()).st_size == self.file_bytes
                if is_whole and file.read(HEADER_BYTES) == self.header:
                    return np.memmap(file, np.uint8, "r", shape=(self.file_bytes,))
        except (OSError, ValueError):
            pass
        return None

    def __call__(self, index: int) -> np.ndarray:
        if self.block is None and index not in self.unreadable:
            return self.decode_scaled(index)  # a worker, for which the file has gone
        return super().__call__(index)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"block": None}

    def __setstate__(self, state: dict) -> None:
        """In a worker that was spawned: the file is mapped again."""
        self.__dict__.update(state)
        mapped = self._mapped(self.path) if self.path else None
        self.block = None if mapped is None else mapped[HEADER_BYTES:]


def _digest(annotations: Annotations, sizes_hw: np.ndarray) -> bytes:
    """A hash of the files (paths, bytes, times of their last change), of their sizes here, and of what decodes them."""
    digest = hashlib.sha256(f"{cv2.__version__} {PIL.__version__} {platform.machine()}\n".encode())
    for index, size_hw in enumerate(sizes_hw.tolist()):
        path = os.path.abspath(annotations.path(index))
        try:
            status = os.stat(path)
            about = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            about = "none"
        digest.update(f"{about} {annotations.source(index)} {size_hw} {path}\n".encode(errors="backslashreplace"))
    return digest.digest()


def cache_paths(annotation_path: str | Sequence[str], save_dir: str, shape: tuple[int, int]) -> list[Path]:
    """Where the file for the images of an annotation and (height, width) may lie, in order of preference: beside the
    annotation, and in save_dir, where its name tells apart annotations of one name. Of several sources beside the
    first, by a name that tells apart what else was joined with it."""
    sources = [Path(path).absolute() for path in paths_of(annotation_path)]
    name = f"{sources[0].stem}_{shape[0]}x{shape[1]}.cache"
    mark = hashlib.sha256(b"\n".join(map(os.fsencode, sources))).hexdigest()[:8]
    joined = name if len(sources) == 1 else f"{mark}_{name}"
    return [sources[0].with_name(joined), Path(save_dir).absolute() / f"{mark}_{name}"]


def choose_path(paths: Sequence[Path], needed: int, images: int) -> tuple[Path | None, str]:
    """The first of the paths where a file of so many bytes can be written, else None; and a sentence for people.

    Removes what a killed training left unfinished there.
    """
    size, refusals = f"{images} images take {amount(needed)}", []
    for path in paths:
        if reason := _why_read_only(path.parent):
            refusals.append(f"{path.parent} cannot be written to ({reason})")
            continue
        remove_temporaries(path.parent, _STALE, path.name)
        spare = max(shutil.disk_usage(path.parent).free - RESERVED_BYTES, 0)
        if needed <= spare:
            return path, f"cache 'disk': {size} in {path}, which is made now"
        refusals.append(f"{path.parent} has {amount(spare)} to spare")
    return None, (
        f"cache 'disk': {size}, but {' and '.join(refusals)}: images are decoded in each epoch instead. Make room, or "
        "take a smaller input_shape."
    )


def _why_read_only(folder: Path) -> str:
    """Why no file can be made in a folder, which is made where it is missing; '' where one can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The administrator, who is the user in many containers, could write all the same.
        if not folder.stat().st_mode & ANYONE_WRITES:
            return "it is marked as read-only"
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)
