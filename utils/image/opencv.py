"""OpenCV, with words for the case that it is installed and does not load."""

try:
    import cv2
except ImportError as error:
    raise ImportError(
        f"OpenCV does not load ({error}). If it is not installed: pip install -r requirements.txt. If a library such "
        "as libGL.so.1 is missing, as on slim images: apt-get install libgl1 libglib2.0-0, or use the build that needs "
        "none: pip uninstall opencv-python && pip install opencv-python-headless."
    ) from error

__all__ = ["cv2"]
