import pickle

import numpy as np

from utils.data.annotations import Records


def test_records_pickle():
    """Prevents boxes from landing at the wrong image after a trip to a spawned worker, and an empty set failing."""
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4)
    records = Records(
        ["a.jpg", "图.jpg", "c.jpg"], [[1, 2], [3, 4], [5, 6]], [2, 0, 1], boxes, [0, 1, 1], [True, False, True]
    )
    copy = pickle.loads(pickle.dumps(records))
    assert [copy.path(index) for index in range(3)] == ["a.jpg", "图.jpg", "c.jpg"]
    assert copy.sizes_hw.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert copy.first.tolist() == [0, 2, 2, 3]
    assert copy.boxes(2).tolist() == [[8, 9, 10, 11]]
    assert copy.labels(0).tolist() == [0, 1]
    assert copy.difficult.tolist() == [True, False, True]
    empty = pickle.loads(pickle.dumps(Records([], [], [], [], [])))
    assert (len(empty), empty.boxes_xyxy.shape) == (0, (0, 4))


def test_without_difficult():
    """Prevents boxes that move to another image when those before them are left out."""
    boxes = np.arange(16, dtype=np.float32).reshape(4, 4)
    records = Records(
        ["a.jpg", "b.jpg", "c.jpg"], [[9, 9]] * 3, [2, 1, 1], boxes, [0, 1, 2, 3], [True, False, True, False]
    )
    easy = records.without_difficult()
    assert [easy.labels(index).tolist() for index in range(3)] == [[1], [], [3]]
    assert easy.boxes(2).tolist() == [[12, 13, 14, 15]]
    assert (easy.path(2), len(records.classes), easy.difficult.tolist()) == ("c.jpg", 4, [False, False])
    empty = Records([], [], [], [], []).without_difficult()
    assert (len(empty), empty.first.tolist()) == (0, [0])
