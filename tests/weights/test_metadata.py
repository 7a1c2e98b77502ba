import math

from utils.weights.metadata import best_confidences, confidence_of, confidence_words

CONTRACT = {"confidence": {"cat": 0.25, "dog": 0.4}}


def test_what_an_evaluation_leaves_in_the_contract():
    """Prevents NaN, which stands for a class that was never found, from becoming a threshold that nothing reaches."""
    rows = [{"name": "cat", "boxes": 10, "confidence": 0.25}, {"name": "dog", "boxes": 99, "confidence": math.nan}]
    rows += [{"name": "bird", "boxes": 9, "confidence": 0.97}]  # the best score of nine boxes is an accident
    assert best_confidences({"classes": rows}) == {"cat": 0.25}
    assert best_confidences({"classes": []}) == best_confidences(None) == {}


def test_the_lowest_score_of_each_class():
    """Prevents thresholds in another order than the classes, and a class without one from failing."""
    assert confidence_of(CONTRACT, ["dog", "bird", "cat"]) == [0.4, 0.5, 0.25]
    assert confidence_of({}, ["cat"]) == [0.5]
    # A detector that is no good yet finds most at scores at which nearly everything is background.
    assert confidence_of({"confidence": {"cat": 0.001}}, ["cat"]) == [0.05]
    assert confidence_of(CONTRACT, []) == []


def test_the_sentence_on_scores():
    """Prevents thresholds that nobody knows of."""
    best = "Boxes are shown from the score on that was best for their class in training: "
    assert confidence_words(CONTRACT, ["cat", "dog"]) == f"{best}cat 0.25, dog 0.40."
    assert confidence_words(CONTRACT, ["cat", "bird"]) == f"{best}cat 0.25; 0.5 for the other classes."
    assert confidence_words(CONTRACT, ["cat"], 0.3) == "Boxes are shown from the score 0.3 on."
    assert confidence_words({}, ["cat"]) == (
        "Boxes are shown from the score 0.5 on; the file does not say which score is best."
    )
