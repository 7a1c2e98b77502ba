"""Known weight files, fetched once from the release pages of their projects, and only when asked for by name."""

import hashlib
import os
from contextlib import suppress
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, build_opener
from uuid import uuid4

from tqdm import tqdm

from utils.io.errors import UserError

_YOLOX = "https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0"
_DFINE = "https://github.com/Peterande/storage/releases/download/dfinev1.0"
_DARKNET = "https://github.com/AlexeyAB/darknet/releases/download"
# What model_path may be called instead of naming a file, and where that is fetched from.
RELEASES = {
    **{name: f"{_YOLOX}/{name}.pth" for name in (f"yolox_{size}" for size in ("nano", "tiny", "s", "m", "l", "x"))},
    **{f"dfine_{size}": f"{_DFINE}/dfine_{size}_coco.pth" for size in ("n", "s", "m", "l", "x")},
    **{f"dfine_{size}_coco": f"{_DFINE}/dfine_{size}_coco.pth" for size in ("n", "s", "m", "l", "x")},
    **{
        f"dfine_{size}_{data}": f"{_DFINE}/dfine_{size}_{data}{'_e25' if size == 'l' else ''}.pth"
        for size in ("s", "m", "l", "x")
        for data in ("obj2coco", "obj365")
    },
    "yolov4": f"{_DARKNET}/darknet_yolo_v3_optimal/yolov4.weights",
    "yolov4.conv.137": f"{_DARKNET}/darknet_yolo_v3_optimal/yolov4.conv.137",
    "yolov4_tiny": f"{_DARKNET}/darknet_yolo_v4_pre/yolov4-tiny.weights",
    "yolov4-tiny.conv.29": f"{_DARKNET}/darknet_yolo_v4_pre/yolov4-tiny.conv.29",
}
# {name: SHA-256 in lower case} of the releases whose project publishes one; none of the above does.
CHECKSUMS = {}
# Seconds without a single byte after which the server counts as lost.
TIMEOUT = 30
# Above the largest release, some 800 MB; what is larger is something else.
MAX_BYTES = 1024**3
CHUNK_BYTES = 1024**2


def is_release(text):
    """Whether a model_path is the name of a release, and not that of a file which exists."""
    return text in RELEASES and not os.path.isfile(text)


def fetch(name, folder, verify):
    """The path of a release's file in a folder; fetched when it is not there, else left alone, without any network.

    name: a key of RELEASES. folder: made when missing. verify: called with the path of the whole, still temporary file;
    raises ValueError when that holds no usable weights. The file appears whole and verified or not at all, also on
    Ctrl-C, and when several processes fetch it at once. Raises ValueError, in one sentence: what happened, the address,
    and where to put the file by hand.
    """
    address = RELEASES[name]
    file_name = address.rpartition("/")[2]
    path = os.path.join(folder, file_name)
    if os.path.isfile(path):
        return path
    temporary = f"{path}.part{uuid4().hex[:8]}"
    try:
        os.makedirs(folder, exist_ok=True)
        checksum = _download(address, temporary, file_name)
        if checksum != CHECKSUMS.get(name, checksum):
            raise UserError(f"its SHA-256 is {checksum}, expected {CHECKSUMS[name]}")
        verify(temporary)
        os.replace(temporary, path)
    except (OSError, HTTPException, ValueError) as error:
        reason = _reason(error).replace(temporary, file_name)
        raise UserError(
            f"{name} could not be fetched from {address} ({reason}); fetch it with a browser and put it at "
            f"{os.path.abspath(path)}, or check the network and start again."
        ) from error
    finally:
        with suppress(OSError):
            os.remove(temporary)
    return path


def _download(address, path, title):
    """Write what lies at an address to a new file, under a progress bar called title. Returns its SHA-256."""
    checksum, count = hashlib.sha256(), 0
    # The file comes first, so that a folder that cannot be written to is found before anything is asked of the network.
    with open(path, "xb") as file, build_opener(_Redirects).open(address, timeout=TIMEOUT) as response:
        length = response.headers.get("Content-Length", "")
        expected = int(length) if length.isdecimal() else None
        with tqdm(total=expected, desc=title, unit="B", unit_scale=True, disable=None) as bar:
            while chunk := response.read(CHUNK_BYTES):
                count += len(chunk)
                if max(count, expected or 0) > MAX_BYTES:
                    raise UserError(f"it is larger than {MAX_BYTES} bytes, which no release is")
                file.write(chunk)
                checksum.update(chunk)
                bar.update(len(chunk))
        if expected is not None and count != expected:
            raise UserError(f"only {count} of {expected} bytes came")
        file.flush()
        os.fsync(file.fileno())
    return checksum.hexdigest()


class _Redirects(HTTPRedirectHandler):
    """Follows redirects to https, and from http to http, but never from https to anything less."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        scheme = urlsplit(newurl).scheme
        if scheme != "https" and (scheme, req.type) != ("http", "http"):
            raise URLError(f"it leads on to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _reason(error):
    """What an error says, fit to stand inside a sentence."""
    cause = error.reason if isinstance(error, URLError) and not isinstance(error, HTTPError) else error
    if isinstance(cause, TimeoutError):
        return f"nothing came for {TIMEOUT} seconds"
    return " ".join(str(cause).split()).rstrip(".") or type(cause).__name__
