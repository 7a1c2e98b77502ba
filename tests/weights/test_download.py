import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import Request

import pytest

from utils.weights import download
from utils.weights.download import CHECKSUMS, RELEASES, fetch, is_release

CONTENT = b"weights " * 40_000  # 320,000 bytes, so that several chunks come


class Handler(BaseHTTPRequestHandler):
    """Answers as the last part of the address says, and counts what it was asked for."""

    def do_GET(self):
        server = self.server
        server.asked.append(self.path)
        if self.path == "/moved.pth":
            return self.answer(b"", status=302, Location="/good.pth")
        if self.path == "/elsewhere.pth":
            return self.answer(b"", status=302, Location=server.elsewhere)
        if self.path == "/together.pth":
            server.barrier.wait(timeout=10)
        if self.path == "/slow.pth":
            self.answer(CONTENT[:1000], length=len(CONTENT))
            return server.stopped.wait(timeout=10)
        if self.path == "/truncated.pth":
            return self.answer(CONTENT[:1000], length=len(CONTENT))
        if self.path == "/page.pth":
            return self.answer(b"<html>Log in to this network</html>")
        if self.path == "/endless.pth":
            return self.answer(CONTENT, length=None)
        if self.path == "/missing.pth":
            return self.send_error(404)
        return self.answer(CONTENT)

    def answer(self, body, length=-1, status=200, **headers):
        """length: Content-Length, -1 for the body's, None for no such header."""
        self.send_response(status)
        if length is not None:
            headers["Content-Length"] = len(body) if length < 0 else length
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A release page on this machine; RELEASES names its files. It is asked directly, whatever proxy is set."""
    monkeypatch.setenv("no_proxy", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.elsewhere = [], ""
    server.stopped, server.barrier = threading.Event(), threading.Barrier(2)
    base = f"http://127.0.0.1:{server.server_port}"
    for name in ("good", "moved", "elsewhere", "together", "slow", "truncated", "page", "endless", "missing"):
        monkeypatch.setitem(RELEASES, name, f"{base}/{name}.pth")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.stopped.set()
    server.shutdown()
    server.server_close()
    thread.join()


def accept(path):
    """A verify that takes the release and nothing else."""
    if Path(path).read_bytes() != CONTENT:
        raise ValueError(f"{path} is a web page (HTML), not weights. Copy it\nagain.")


def refused(name, folder, verify=accept):
    """The message of a fetch that must fail, after checking that it names all a user needs and leaves nothing."""
    present = sorted(os.listdir(folder)) if os.path.isdir(folder) else None
    with pytest.raises(ValueError) as caught:
        fetch(name, folder, verify)
    message = str(caught.value)
    by_hand = os.path.abspath(os.path.join(folder, f"{name}.pth"))
    assert message.startswith(f"{name} could not be fetched from {RELEASES[name]} (")
    assert message.endswith(f"; fetch it with a browser and put it at {by_hand}, or check the network and start again.")
    assert "\n" not in message and ".part" not in message
    assert (sorted(os.listdir(folder)) if os.path.isdir(folder) else None) == present
    return message


def test_the_known_releases():
    """Prevents a name from losing its address, or two names from landing in one file."""
    dfine = [name for name in RELEASES if name.startswith("dfine")]
    assert dfine == [
        *("dfine_n", "dfine_s", "dfine_m", "dfine_l", "dfine_x"),
        *("dfine_n_coco", "dfine_s_coco", "dfine_m_coco", "dfine_l_coco", "dfine_x_coco"),
        *("dfine_s_obj2coco", "dfine_s_obj365"),
        *("dfine_m_obj2coco", "dfine_m_obj365", "dfine_l_obj2coco", "dfine_l_obj365"),
        *("dfine_x_obj2coco", "dfine_x_obj365"),
    ]
    storage = "https://github.com/Peterande/storage/releases/download/dfinev1.0"
    assert RELEASES["dfine_n"] == f"{storage}/dfine_n_coco.pth"
    assert RELEASES["dfine_l_obj365"] == f"{storage}/dfine_l_obj365_e25.pth"
    assert sorted(set(RELEASES) - set(dfine)) == [
        *("yolov4", "yolov4-tiny.conv.29", "yolov4.conv.137", "yolov4_tiny"),
        *("yolox_l", "yolox_m", "yolox_nano", "yolox_s", "yolox_tiny", "yolox_x"),
    ]
    yolox, darknet = "https://github.com/Megvii-BaseDetection/YOLOX", "https://github.com/AlexeyAB/darknet"
    assert RELEASES["yolox_nano"] == f"{yolox}/releases/download/0.1.1rc0/yolox_nano.pth"
    assert RELEASES["yolov4"] == f"{darknet}/releases/download/darknet_yolo_v3_optimal/yolov4.weights"
    assert RELEASES["yolov4-tiny.conv.29"] == f"{darknet}/releases/download/darknet_yolo_v4_pre/yolov4-tiny.conv.29"
    assert len({address.rpartition("/")[2] for address in RELEASES.values()}) == 23
    assert set(CHECKSUMS) <= set(RELEASES)


def test_is_release(tmp_path, monkeypatch):
    """Prevents a file of the user's from being passed over, and a download for what is no known name."""
    monkeypatch.chdir(tmp_path)
    assert is_release("yolox_nano") and is_release("yolov4.conv.137")
    assert not is_release("") and not is_release("yolox_nano.pth") and not is_release("model_data/yolox_nano")
    (tmp_path / "yolov4.conv.137").write_bytes(b"mine")
    assert not is_release("yolov4.conv.137")


def test_fetched_once(server, tmp_path):
    """Prevents a second download of what is there, and one into a folder that must first be made."""
    folder = tmp_path / "new" / "model_data"
    path = fetch("good", folder, accept)
    assert path == str(folder / "good.pth")
    assert Path(path).read_bytes() == CONTENT
    assert server.asked == ["/good.pth"]
    assert fetch("good", folder, accept) == path
    assert server.asked == ["/good.pth"]
    assert os.listdir(folder) == ["good.pth"]


def test_a_file_put_there_by_hand_is_left_alone(server, tmp_path):
    """Prevents the network from being asked, or the user's file from being replaced, where one is there already."""
    (tmp_path / "good.pth").write_bytes(b"mine")
    assert fetch("good", tmp_path, accept) == str(tmp_path / "good.pth")
    assert (tmp_path / "good.pth").read_bytes() == b"mine"
    assert server.asked == []


def test_redirects(server, tmp_path):
    """Prevents releases from failing where the page hands on to another server, as GitHub does."""
    assert Path(fetch("moved", tmp_path, accept)).read_bytes() == CONTENT
    assert server.asked == ["/moved.pth", "/good.pth"]
    assert os.listdir(tmp_path) == ["moved.pth"]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("ftp://127.0.0.1/a.pth", "it leads on to ftp://127.0.0.1/a.pth, which is not https"),
        ("file:///etc/hostname", "'file:///etc/hostname' is not allowed"),
        ("//[bad", "Invalid IPv6 URL"),
    ],
)
def test_redirects_elsewhere_are_refused(server, tmp_path, address, reason):
    """Prevents a server from making us read local files or other protocols, and a trace for an address that is none."""
    server.elsewhere = address
    assert reason in refused("elsewhere", tmp_path)
    assert server.asked == ["/elsewhere.pth"]


def test_https_is_never_left():
    """Prevents a redirect from https to http, on which anybody could put other weights."""
    for start, target, is_allowed in (
        ("https://a/x", "https://b/x", True),
        ("http://a/x", "https://b/x", True),
        ("http://a/x", "http://b/x", True),
        ("https://a/x", "http://b/x", False),
    ):
        request = Request(start)
        if is_allowed:
            assert download._Redirects().redirect_request(request, None, 302, "", {}, target).full_url == target
        else:
            with pytest.raises(OSError, match="it leads on to http://b/x, which is not https"):
                download._Redirects().redirect_request(request, None, 302, "", {}, target)


def test_missing_page(server, tmp_path):
    """Prevents a page that says 404 from being taken for weights."""
    assert "(HTTP Error 404: Not Found)" in refused("missing", tmp_path)


def test_no_network(server, tmp_path):
    """Prevents a trace instead of a sentence on a machine without a network."""
    server.shutdown()
    server.server_close()
    assert "Connection refused" in refused("good", tmp_path)


def test_truncated_answer(server, tmp_path):
    """Prevents a connection that breaks off from leaving a part that looks like the file."""
    assert "(only 1000 of 320000 bytes came)" in refused("truncated", tmp_path)


def test_slow_answer(server, tmp_path, monkeypatch):
    """Prevents a server that stops sending from holding the program for ever."""
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    assert "(nothing came for 0.2 seconds)" in refused("slow", tmp_path)


def test_other_content_is_refused(server, tmp_path):
    """Prevents the login page of a hotel's network from being kept as weights; its reason must not name a dead file."""
    assert "(page.pth is a web page (HTML), not weights. Copy it again)" in refused("page", tmp_path)


@pytest.mark.parametrize("name", ["good", "endless"])
def test_too_large(server, tmp_path, monkeypatch, name):
    """Prevents a full disk, whether the server says its length before or not."""
    monkeypatch.setattr(download, "MAX_BYTES", 300_000)
    monkeypatch.setattr(download, "CHUNK_BYTES", 65536)
    assert "(it is larger than 300000 bytes, which no release is)" in refused(name, tmp_path)


def test_without_a_length(server, tmp_path):
    """Prevents servers that do not say a length from being refused."""
    assert Path(fetch("endless", tmp_path, accept)).read_bytes() == CONTENT


def test_checksum(server, tmp_path, monkeypatch):
    """Prevents weights that somebody changed on the way from being used where the project published a checksum."""
    monkeypatch.setitem(CHECKSUMS, "good", "0" * 64)
    expected = hashlib.sha256(CONTENT).hexdigest()
    assert f"(its SHA-256 is {expected}, expected {'0' * 64})" in refused("good", tmp_path)
    monkeypatch.setitem(CHECKSUMS, "good", expected)
    assert Path(fetch("good", tmp_path, accept)).read_bytes() == CONTENT


def test_folder_that_cannot_be_written(server, tmp_path):
    """Prevents a long download before the first write fails, and a second error that hides the first."""
    (tmp_path / "file").write_bytes(b"")
    assert "File exists" in refused("good", tmp_path / "file")
    assert "Not a directory" in refused("good", tmp_path / "file" / "below")
    assert server.asked == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_stopping_leaves_nothing(server, tmp_path, stop):
    """Prevents half a file from staying behind on Ctrl-C, and errors of ours from being told as the network's."""

    def verify(path):
        assert os.path.getsize(path) == len(CONTENT)
        raise stop

    with pytest.raises(stop):
        fetch("good", tmp_path, verify)
    assert os.listdir(tmp_path) == []


def test_two_at_once(server, tmp_path):
    """Prevents two programs that start together from writing into each other's file.

    The server answers neither before both have asked, so both download.
    """
    paths = []
    threads = [
        threading.Thread(target=lambda: paths.append(fetch("together", tmp_path, accept)), daemon=True)
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert paths == [str(tmp_path / "together.pth")] * 2
    assert server.asked == ["/together.pth"] * 2
    assert os.listdir(tmp_path) == ["together.pth"]
    assert (tmp_path / "together.pth").read_bytes() == CONTENT
