"""Point clouds from files: formats, number of columns, what is dropped and what is refused."""

import pickle
import zipfile

import numpy as np
import pytest

from visionattn.errors import DataError
from visionattn.heads.lidar.data.files import read_points, write_points


def cloud(rows: int, columns: int) -> np.ndarray:
    rng = np.random.default_rng(rows)
    points = rng.normal(0, 20, (rows, columns)).astype(np.float32)
    points[:, 3:] = rng.random((rows, columns - 3))
    return points


@pytest.mark.parametrize(("rows", "columns"), [(7, 4), (7, 5), (20, 4), (20, 5), (100, 4), (40, 5)])
def test_bin_columns_are_found_out(tmp_path, rows, columns):
    points = cloud(rows, columns)
    write_points(tmp_path / "a.bin", points)
    found = read_points(tmp_path / "a.bin")
    np.testing.assert_array_equal(found.points, points)
    assert found.points.dtype == np.float32
    np.testing.assert_array_equal(read_points(tmp_path / "a.bin", columns).points, points)


def test_nuscenes_name_means_five_columns(tmp_path):
    points = np.abs(cloud(20, 5))  # the values alone would not tell
    write_points(tmp_path / "a.bin", points)
    with pytest.raises(DataError, match="could have 4 or 5 columns"):
        read_points(tmp_path / "a.bin")
    write_points(tmp_path / "a.pcd.bin", points)
    assert read_points(tmp_path / "a.pcd.bin").points.shape == (20, 5)


def test_rows_that_are_not_finite_are_dropped_and_counted(tmp_path):
    points = cloud(30, 4)
    points[3, 0], points[5, 3], points[9, 2] = np.nan, np.inf, -np.inf
    write_points(tmp_path / "a.bin", points)
    found = read_points(tmp_path / "a.bin", 4)
    assert found.dropped == 3
    np.testing.assert_array_equal(found.points, np.delete(points, [3, 5, 9], 0))
    np.save(tmp_path / "a.npy", np.array([[0.0, 1, 2, 3], [1e300, 0, 0, 0]]))
    assert read_points(tmp_path / "a.npy").dropped == 1  # float32 has no such number


def test_numpy_files(tmp_path):
    points = cloud(12, 6)
    np.save(tmp_path / "a.npy", points.astype(np.float64))
    np.testing.assert_array_equal(read_points(tmp_path / "a.npy", 4).points, points[:, :4])
    np.savez_compressed(tmp_path / "a.npz", points=points, other=np.zeros(3))
    np.testing.assert_array_equal(read_points(tmp_path / "a.npz").points, points)
    np.savez(tmp_path / "b.npz", cloud=points)
    np.testing.assert_array_equal(read_points(tmp_path / "b.npz").points, points)
    with pytest.raises(DataError, match="6 columns, but `columns` is 7"):
        read_points(tmp_path / "a.npy", 7)


def test_pcd_has_intensity_fourth(tmp_path):
    text = (
        "FIELDS ring x y i z\nSIZE 4 4 4 4 4\nTYPE F F F F F\nWIDTH 2\nHEIGHT 1\nDATA ascii\n7 1 2 4 3\n7 5 6 8 nan\n"
    )
    (tmp_path / "a.pcd").write_text(text)
    found = read_points(tmp_path / "a.pcd")
    assert found.points.tolist() == [[1, 2, 3, 4, 7]]
    assert found.dropped == 1
    (tmp_path / "a.pcd").write_text(text.replace(" i ", " w "))
    assert read_points(tmp_path / "a.pcd", 5).points.tolist() == [[1, 2, 3, 0, 7]]
    (tmp_path / "a.pcd").write_text(text.replace(" z", " v"))
    with pytest.raises(DataError, match="no field 'z'"):
        read_points(tmp_path / "a.pcd")


class Evil:
    def __reduce__(self):
        return pytest.fail, ("a pickle was run",)


def test_damaged_and_dangerous_files_are_refused(tmp_path):
    write_points(tmp_path / "a.bin", cloud(8, 4))
    (tmp_path / "a.bin").write_bytes((tmp_path / "a.bin").read_bytes()[:-3])
    with pytest.raises(DataError, match="125 bytes are not a whole number of rows"):
        read_points(tmp_path / "a.bin")
    with pytest.raises(DataError, match="rows of 5"):
        read_points(tmp_path / "a.bin", 5)
    np.save(tmp_path / "o.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    np.save(tmp_path / "cut.npy", cloud(50, 4))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-8])
    np.save(tmp_path / "flat.npy", np.zeros(4))
    np.savez(tmp_path / "o.npz", points=np.array([Evil()], dtype=object))
    (tmp_path / "p.npy").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "two.npz", a=cloud(3, 4), b=cloud(3, 4))
    for name in ("o.npy", "cut.npy", "flat.npy", "o.npz", "p.npy", "text.npz", "two.npz", "none.bin", "x.las"):
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            read_points(tmp_path / name)
    with pytest.raises(ValueError, match="`columns` must be at least 3"):
        read_points(tmp_path / "a.bin", 2)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_any_damage_to_a_numpy_file_is_an_error_of_ours(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    (np.save if suffix == ".npy" else np.savez_compressed)(path, cloud(20, 4))
    content = path.read_bytes()
    messages = []
    for place in range(0, len(content), 3):
        for value in (0, 40, 255):
            path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
            try:
                read_points(path)
            except DataError as error:
                messages.append(str(error))
    assert len(messages) > 50
    assert all(str(path) in message for message in messages)


def test_headers_that_claim_more_than_there_is(tmp_path):
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**13, 4)}
    with (tmp_path / "a.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(b"\0" * 64)
    with pytest.raises(DataError, match=r"a\.npy"):
        read_points(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.write(tmp_path / "a.npy", "points.npy")
    with pytest.raises(DataError, match="the header declares 160000000000000 bytes"):
        read_points(tmp_path / "a.npz")


def test_empty(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"")
    assert read_points(tmp_path / "a.bin").points.shape == (0, 4)
    assert read_points(tmp_path / "a.bin", 5).points.shape == (0, 5)


def test_real_frames(shared_dir):
    for path in sorted((shared_dir / "data" / "lidar").glob("*.bin")):
        found = read_points(path)
        assert found.points.shape[1] == 4
        assert found.points.size * 4 == path.stat().st_size
        assert found.dropped == 0
