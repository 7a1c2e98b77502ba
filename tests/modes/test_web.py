"""The page of mode 'web': from an uploaded picture to what it shows, and the server behind it."""

import base64
import contextlib
import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from tests.modes.test_images import Fake
from utils.image.codec import encode_image
from utils.image.opencv import cv2
from utils.modes.web import upload
from utils.modes.web.server import MOST_BYTES, MOST_WAITING, open_server, serve
from utils.modes.web.upload import detect_upload, options_of

ANNOTATION = """<annotation>
  <folder />
  <filename>street.jpg</filename>
  <size>
    <width>40</width>
    <height>20</height>
    <depth>3</depth>
  </size>
</annotation>
"""


def settings(**changes):
    values = {"confidence": None, "nms_iou": 0.5, "max_boxes": 300, "max_megapixels": 200, "crop": False}
    return SimpleNamespace(**values | {"web_host": "127.0.0.1", "web_port": 0} | changes)


def picture(ending=".png", size_hw=(20, 40)):
    return encode_image(f"a{ending}", np.full((*size_hw, 3), 128, np.uint8)).tobytes()


def decoded(files, path):
    data = np.frombuffer(base64.b64decode(files[path]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)


def text(files, path):
    return base64.b64decode(files[path]).decode()


@contextmanager
def serving(detector, **changes):
    """A server with a detector, on a free port."""
    with open_server(detector, settings(**changes)) as opened:
        thread = threading.Thread(target=opened.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield opened
        finally:
            opened.shutdown()
            thread.join()


@pytest.fixture
def server():
    """A server with a detector that finds two objects."""
    with serving(Fake()) as opened:
        yield opened


def ask(server, method, path, body=None, **headers):
    """(status, headers, body) of a request."""
    connection = http.client.HTTPConnection(*server.server_address, timeout=10)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


def error_of(server, *request, **headers):
    """(status, sentence) of a request that is refused."""
    status, _, content = ask(server, *request, **headers)
    return status, json.loads(content)["error"]


def test_a_picture_comes_back_with_boxes_table_and_files():
    """Prevents labels, crops and counts that differ from the drawn picture."""
    found = detect_upload(Fake(), settings(), picture(), "street.png", with_crops=True)
    assert found["boxes"] == [["cat", 0.9, 0, 0, 20, 20], ["a/dog", 0.6, 36, 16, 40, 20]]
    assert (found["counts"], found["note"]) == ([("cat", 1), ("a/dog", 1)], "")
    files = found["files"]
    assert list(files) == [
        *("pictures/street_boxes.png", "labels/street.txt", "Annotations/street.xml"),
        *("crops/street.png_cat_1.jpg", "crops/street.png_a_dog_2.jpg"),
    ]
    drawn = decoded(files, "pictures/street_boxes.png")
    assert drawn.shape == (20, 40, 3) and (drawn != 128).any()
    assert text(files, "labels/street.txt") == (
        "0 0.250000 0.500000 0.500000 1.000000\n1 0.950000 0.900000 0.100000 0.200000\n"
    )
    assert "<xmax>20</xmax>" in text(files, "Annotations/street.xml")
    assert decoded(files, "crops/street.png_a_dog_2.jpg").shape == (4, 4, 3)


def test_cut_out_objects_have_a_bound(monkeypatch):
    """Prevents an answer of gigabytes, small objects lost behind a large one, and objects missing without a word."""
    monkeypatch.setattr(upload, "MOST_CROP_MEGAPIXELS", 0.0004)
    for size_hw, expected, note in (
        ((20, 38), ["cat_1", "a_dog_2"], ""),
        ((20, 60), ["a_dog_2"], "1 of 2 objects are cut out, as"),
    ):
        found = detect_upload(Fake(), settings(), picture(size_hw=size_hw), "a.png", with_crops=True)
        crops = [path for path in found["files"] if path.startswith("crops/")]
        assert crops == [f"crops/a.png_{name}.jpg" for name in expected]
        assert found["note"].startswith(note) and bool(found["note"]) == bool(note)


def test_objects_of_a_very_wide_picture():
    """Prevents a crop that is too wide for a JPEG from failing with all the rest."""
    found = detect_upload(Fake(), settings(), picture(size_hw=(4, 132_000)), "a.png", with_crops=True)
    assert decoded(found["files"], "crops/a.png_cat_1.png").shape == (4, 66_000, 3)


def test_only_the_chosen_classes_are_shown():
    """Prevents boxes of hidden classes in the table or in the labels."""
    found = detect_upload(Fake(), settings(), picture(), "street.png", class_ids=[1])
    assert [row[0] for row in found["boxes"]] == ["a/dog"]
    assert text(found["files"], "labels/street.txt").startswith("1 ")


def test_a_picture_without_objects():
    """Prevents an error, and a label file that is missing, where nothing is found."""
    found = detect_upload(Fake(), settings(), picture(".jpg"), "street.jpg", class_ids=[], with_crops=True)
    assert (found["boxes"], found["counts"]) == ([], [])
    assert list(found["files"]) == ["pictures/street_boxes.jpg", "labels/street.txt", "Annotations/street.xml"]
    assert text(found["files"], "labels/street.txt") == ""
    assert text(found["files"], "Annotations/street.xml") == ANNOTATION


def test_the_page_and_the_constants_choose_the_score():
    """Prevents a slider that does nothing, and a constant that the page replaces unasked."""
    detector = Fake()
    for arguments, expected in (({}, [0.5, 0.5]), ({"confidence": 0.2}, [0.2, 0.2])):
        detect_upload(detector, settings(), picture(), "a.png", **arguments)
        assert detector.options.confidence == expected
    detect_upload(detector, settings(confidence=0.7), picture(), "a.png")
    assert detector.options.confidence == [0.7, 0.7]


@pytest.mark.parametrize(
    ("content", "changes", "sentence"),
    [
        (b"no picture", {}, "a.png cannot be decoded as an image: its header cannot be read as an image. Expected a"),
        (b"", {}, "a.png cannot be decoded as an image: its header"),
        (picture()[:60], {}, "a.png cannot be decoded as an image"),
        (picture(".bmp", (1000, 2001)), {"max_megapixels": 2}, "2 megapixels, more than the 2 of max_megapixels"),
    ],
)
def test_what_is_no_picture_is_one_sentence(content, changes, sentence):
    """Prevents a trace, and pictures that fill the memory."""
    with pytest.raises(ValueError) as error:
        detect_upload(Fake(), settings(**changes), content, "a.png")
    assert sentence in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("../../etc/pass\x1bwd.JPG", "pictures/_.._etc_pass_wd_boxes.JPG"),
        ("..", "pictures/picture_boxes.png"),
        ("", "pictures/picture_boxes.png"),
        ("a.tif", "pictures/a_boxes.png"),
        ("x" * 300 + ".png", f"pictures/{'x' * 96}_boxes.png"),
    ],
)
def test_the_sender_does_not_choose_a_place(name, target):
    """Prevents names that lead out of a folder, and endings that no browser shows."""
    assert next(iter(detect_upload(Fake(), settings(), picture(), name)["files"])) == target


def test_full_pictures_are_told():
    """Prevents objects that are missing without a word."""
    found = detect_upload(Fake(), settings(max_boxes=2), picture(), "a.png")
    assert found["note"] == "max_boxes = 2 allows no more of a picture; there may be more objects."


def test_options_of_an_address():
    """Prevents a filter of no class that shows all, and numbers that end in a trace."""
    assert options_of("") == {"name": "", "with_crops": False}
    assert options_of("name=%E7%8C%AB.jpg&confidence=0.25&classes=&crops=1") == {
        "name": "猫.jpg",
        "with_crops": True,
        "confidence": 0.25,
        "class_ids": [],
    }
    for query in ("confidence=high", "classes=0,cat"):
        with pytest.raises(ValueError, match="confidence and classes are numbers; found '"):
            options_of(query)


def test_the_page_is_served(server):
    """Prevents a page without its style or script, one that loads from elsewhere, and one that others frame."""
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        status, headers, content = ask(server, "GET", path)
        assert (status, headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
        assert b"http://" not in content and b"https://" not in content
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self';")
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    about = json.loads(ask(server, "GET", "/about")[2])
    assert about == {
        "classes": ["cat", "a/dog"],
        "confidences": [0.5, 0.5],
        "crops": False,
        "megabytes": 50,
        "megapixels": 200,
    }


@pytest.mark.parametrize(
    "path", ["/../server.py", "/server.py", "/%2e%2e/upload.py", "//etc/passwd", "/etc/passwd", "//["]
)
def test_no_other_file_is_served(server, path):
    """Prevents visitors from reading files, and an address that ends in a trace."""
    assert error_of(server, "GET", path) == (404, "There is no such page.")


def test_ten_uploads_at_once(server):
    """Prevents answers that are mixed up or lost when several people send pictures."""
    sizes_hw = [(20, 40 + 10 * number) for number in range(10)]
    with ThreadPoolExecutor(10) as pool:
        answers = list(
            pool.map(lambda size: ask(server, "POST", "/detect?name=a.png", picture(size_hw=size)), sizes_hw)
        )
    assert [status for status, *_ in answers] == [200] * 10
    shapes = [decoded(json.loads(body)["files"], "pictures/a_boxes.png").shape[:2] for *_, body in answers]
    assert shapes == sizes_hw


def test_a_full_queue_is_told(server):
    """Prevents uploads without a bound from filling the memory."""
    for _ in range(MOST_WAITING):
        server.waiting.acquire()
    request = server, "POST", "/detect?name=a.png", picture()
    assert error_of(*request) == (503, "16 pictures are waiting already; try again in a moment.")
    for _ in range(MOST_WAITING):
        server.waiting.release()
    assert {ask(*request)[0] for _ in range(MOST_WAITING + 4)} == {200}


def test_uploads_that_stall_make_room(server, monkeypatch):
    """Prevents uploads that never end, and send a byte now and then, from keeping all others out."""
    monkeypatch.setattr("utils.modes.web.server.SECONDS_OF_UPLOAD", 0.4)
    head = b"POST /detect?name=a.png HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n"
    with contextlib.ExitStack() as stack:
        stalled = [stack.enter_context(socket.create_connection(server.server_address)) for _ in range(MOST_WAITING)]
        for part in (head, b"x", b"x", b"x"):
            for connection in stalled:
                connection.sendall(part)
            time.sleep(0.1)
        answer = http.client.HTTPResponse(stalled[0])
        answer.begin()
        assert answer.status == 422
        assert json.loads(answer.read())["error"] == "Only a part of the picture arrived in time; try again."
        assert server.waiting.acquire(timeout=1)
        server.waiting.release()
        assert ask(server, "POST", "/detect?name=a.png", picture())[0] == 200


def test_refused_uploads(server):
    """Prevents files without a bound, and a trace for a broken one."""
    path = "/detect?name=a.png"
    status, sentence = error_of(server, "POST", path, bytes(MOST_BYTES + 1))
    assert (status, sentence) == (413, "Expected a file of up to 50 MB; this one is empty or larger.")
    assert error_of(server, "POST", path, b"", Content_Length="9" * 5000)[0] == 413
    assert error_of(server, "POST", path, b"no picture")[0] == 422
    status, sentence = error_of(server, "POST", f"{path}&confidence=2", picture())
    assert (status, sentence) == (422, "confidence is 2.0; expected a share from 0 to 1.")


def test_a_failure_of_the_detector_shows_no_trace(server, capsys, monkeypatch):
    """Prevents insides of the program on the page, and a failure that nobody can look into."""
    monkeypatch.setattr(server.detector, "forward", lambda batch: 1 / 0)
    status, sentence = error_of(server, "POST", "/detect?name=a.png", picture())
    assert (status, sentence) == (500, "The detector failed on this picture; the terminal says why.")
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}])
def test_other_websites_cannot_use_the_page(server, headers):
    """Prevents a website from sending pictures, or from reading answers under a name that it gives this machine."""
    refused = error_of(server, "POST", "/detect?name=a.png", picture(), **headers)
    assert refused == (403, "Only this page itself may send pictures.")
    assert ask(server, "GET", "/about", Host="evil.example")[0] == 403
    own = f"http://127.0.0.1:{server.server_address[1]}"
    assert ask(server, "POST", "/detect?name=a.png", picture(), Origin=own)[0] == 200
    assert ask(server, "GET", "/about", Host="localhost:80")[0] == ask(server, "GET", "/about", Host="[::1]")[0] == 200


def test_a_port_that_is_taken(server):
    """Prevents a trace where another program has the port."""
    port = server.server_address[1]
    with pytest.raises(ValueError, match=f"web_port is {port}, where this program cannot listen: .+ --web_port="):
        open_server(Fake(), settings(web_port=port))


def test_an_open_address_is_told(capsys, monkeypatch):
    """Prevents a page for the whole network that nobody knows of, and Ctrl-C that ends in a trace."""

    def interrupt(server):
        raise KeyboardInterrupt

    monkeypatch.setattr("utils.modes.web.server.PageServer.serve_forever", interrupt)
    sentence = "note: web_host is '0.0.0.0', so everybody in the network can use this page, at port "
    for host, shown, is_told in (("127.0.0.1", "127.0.0.1", False), ("0.0.0.0", "localhost", True)):
        serve(Fake(), settings(web_host=host))
        out = capsys.readouterr().out
        assert (sentence in out) == is_told and f"Open http://{shown}:" in out and "Stopped by Ctrl-C." in out
