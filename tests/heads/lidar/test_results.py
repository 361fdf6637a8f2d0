import numpy as np
import pytest

from visionattn.heads.lidar.results import PointPrediction

BOX = np.array([[1, 2, 0, 4, 2, 1.5, 0.3]], np.float32)


def test_records_are_plain_values():
    speed = np.array([[1.0, -2.0]], np.float32)
    prediction = PointPrediction(
        np.zeros((5, 4), np.float32), ("car", "tram"), BOX, np.array([0.75], np.float32), np.array([1]), speed
    )
    (record,) = prediction.to_records()
    assert record["class"] == "tram"
    assert record["score"] == 0.75
    assert record["velocity"] == [1.0, -2.0]
    assert "attribute" not in record  # trams are not a class of nuScenes
    assert record["box"] == pytest.approx(BOX[0].tolist(), abs=1e-4)
    assert all(type(value) is float for value in record["box"])
    assert len(prediction) == 1
    assert PointPrediction(np.zeros((0, 4)), ("car",)).to_records() == []


def test_attributes_of_nuscenes_classes():
    boxes, velocity = np.repeat(BOX, 3, 0), np.array([[0.0, 0.1], [3.0, 0.0], [0.0, 1.0]], np.float32)
    scores, labels = np.ones(3, np.float32), np.array([0, 0, 1])
    prediction = PointPrediction(np.zeros((0, 4)), ("car", "barrier"), boxes, scores, labels, velocity)
    assert prediction.attributes == ["vehicle.parked", "vehicle.moving", ""]
    assert [record["attribute"] for record in prediction.to_records()] == prediction.attributes
    assert PointPrediction(np.zeros((0, 4)), ("car",), BOX, scores[:1], labels[:1]).attributes is None


def test_arrays_that_do_not_fit_are_refused():
    points, one = np.zeros((0, 4)), np.ones(1, np.float32)
    with pytest.raises(ValueError, match="boxes"):
        PointPrediction(points, ("car",), BOX, one, np.array([0, 1]))
    with pytest.raises(ValueError, match="labels must be in"):
        PointPrediction(points, ("car",), BOX, one, np.array([1]))
    with pytest.raises(ValueError, match="truth"):
        PointPrediction(points, ("car",), truth=BOX)
