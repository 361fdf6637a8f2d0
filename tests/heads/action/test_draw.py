import numpy as np
import pytest

pytest.importorskip("cv2")

from visionattn.heads.action.draw import FRAME_HEIGHT, draw_keypoints, draw_sheet


def test_keypoints_are_drawn_where_they_are_and_only_inside():
    frame = np.full((80, 100, 3), 60, np.uint8)
    points = np.array([[[20.0, 30.0], [np.nan, 5.0], [150.0, 10.0]], [[70.0, 50.0], [-3.0, 2.0], [90.0, 79.0]]])
    drawn = draw_keypoints(frame, points)
    assert drawn.shape == (FRAME_HEIGHT, 200, 3)
    changed = (drawn != 60).any(-1)
    for x, y in ((20, 30), (70, 50), (90, 79)):
        assert changed[2 * y, 2 * x]
        changed[max(0, 2 * y - 5) : 2 * y + 6, max(0, 2 * x - 5) : 2 * x + 6] = False
    assert not changed.any()
    assert (drawn[60, 40] != drawn[100, 140]).any(), "each person has a color"
    assert (frame == 60).all()


def test_frames_of_a_sheet_are_in_order():
    frames = [np.full((20, 30, 3), 10 * number, np.uint8) for number in range(1, 6)]
    sheet = draw_sheet(frames, "walk")
    width = FRAME_HEIGHT * 30 // 20
    assert sheet.shape[1] == 4 * width
    assert [int(sheet[5, width * column + 5, 0]) for column in range(4)] == [10, 20, 30, 40]
    assert int(sheet[FRAME_HEIGHT + 5, 5, 0]) == 50
    assert sheet[2 * FRAME_HEIGHT :].max() == 255, "the caption"
