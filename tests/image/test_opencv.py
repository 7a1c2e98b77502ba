import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def test_an_opencv_that_does_not_load_says_what_to_install(tmp_path):
    """Prevents a bare "libGL.so.1" on slim images, which tells a learner nothing."""
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = "import utils.image.letterbox"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=60
    )
    message = process.stderr.strip().splitlines()[-1]
    assert process.returncode == 1
    assert "libGL.so.1" in message
    assert "apt-get install libgl1 libglib2.0-0" in message
    assert "opencv-python-headless" in message
