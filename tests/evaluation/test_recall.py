import numpy as np
import pytest

from detkit.evaluation.recall import proposal_recall


def test_by_hand():
    # The second proposal is best for both objects; it goes to the second (0.9), the first keeps 0.6.
    ious = [np.array([[0.6, 0.8], [0.0, 0.9]]), np.zeros((1, 0)), np.zeros((0, 3))]
    found = proposal_recall(ious, limits=(1, 2), iou_thrs=(0.5, 0.7))
    # Three objects; with one proposal an image, the first object alone is found, at 0.6.
    assert found == pytest.approx(np.array([[1, 0], [2, 1]]) / 3)


def test_without_objects_there_is_no_recall():
    assert np.isnan(proposal_recall([np.zeros((0, 2))], (1,), (0.5,))).all()
