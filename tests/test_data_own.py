"""Datasets from files: CIFAR-10, MNIST, .npz, folders of pictures; and files not to be trusted."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gpucnn import data, random
from gpucnn.data.cifar10 import cifar10
from gpucnn.data.split import split
from tests.test_data_load import write_fashion


def levels(*shape: int) -> np.ndarray:
    n = int(np.prod(shape))
    return random.bits(3, n, -(-n // 4)).view(np.uint8)[:n].reshape(shape).copy()


# ---- CIFAR-10


def write_cifar(folder: Path, n: int = 6) -> np.ndarray:
    """Six files of n records; returns the planes (6 n, 3, 32, 32) in the order of the files."""
    planes = levels(6 * n, 3, 32, 32)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    for i, name in enumerate(names):
        records = b"".join(bytes([(i + k) % 10]) + planes[i * n + k].tobytes() for k in range(n))
        (folder / name).write_bytes(records)
    return planes


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_cifar10(tmp_path: Path, inner: str) -> None:
    (tmp_path / inner).mkdir(exist_ok=True)
    planes = write_cifar(tmp_path / inner)
    train, test = data.load("cifar10", data_dir=tmp_path, images=20)
    assert (train.images.shape, test.images.shape) == ((20, 32, 32, 3), (6, 32, 32, 3))
    for n, h, w, c in ((0, 0, 0, 0), (19, 31, 2, 1), (7, 5, 30, 2)):
        assert train.images[n, h, w, c] == planes[n, c, h, w]
    assert test.images[5, 1, 2, 0] == planes[35, 0, 1, 2]
    assert train.labels[:8].tolist() == [0, 1, 2, 3, 4, 5, 1, 2]
    assert test.labels.tolist() == [5, 6, 7, 8, 9, 0]
    whole, _ = data.load("cifar10", data_dir=tmp_path)
    reds = whole.images[..., 0].astype(float) / 255
    assert whole.mean[0] == train.mean[0] == pytest.approx(reds.mean(), rel=1e-9)
    assert whole.std[0] == pytest.approx(reds.std(), rel=1e-9)
    assert train.augmentation is not None
    assert test.augmentation is None


def refusal(path: Path) -> str:
    with pytest.raises(ValueError, match=str(path)) as caught:
        cifar10("train", path)
    return str(caught.value)


def test_cifar10_refuses_what_it_is_not(tmp_path: Path) -> None:
    assert "data_batch_1.bin is missing: unpack cifar-10-binary.tar.gz" in refusal(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(b"\x80\x04")
    assert "pickles, which can run any code and are not read; get the binary" in refusal(tmp_path)
    write_cifar(tmp_path)
    first = tmp_path / "data_batch_1.bin"
    whole = first.read_bytes()
    first.write_bytes(whole[:-1])
    assert f"{first}: holds 18437 bytes, which is no whole number of records" in refusal(tmp_path)
    first.write_bytes(b"")
    assert "holds 0 bytes" in refusal(tmp_path)
    first.write_bytes(whole[:3073] + b"\x0a" + whole[3074:])
    assert f"{first}: record 1 has the label 10, labels must be 0 to 9" in refusal(tmp_path)
    with first.open("wb") as file:
        file.truncate(3073 * 10_001)  # takes no room on the disk
    assert "holds 10001 records, a file of CIFAR-10 has at most 10000" in refusal(tmp_path)
    with pytest.raises(ValueError, match="data_dir must name the folder of cifar10's files"):
        data.load("cifar10")
    with pytest.raises(ValueError, match="split must be one of train, test, got 'val'"):
        cifar10("val", tmp_path)


# ---- MNIST


def test_mnist_plain_and_zipped(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    train, test = data.load("mnist", data_dir=tmp_path)
    assert (len(train), len(test), train.classes[7]) == (40, 20, "7")
    assert train.augmentation is None  # a digit is no longer one in the mirror
    import gzip

    for path in tmp_path.glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    again, _ = data.load("mnist", data_dir=tmp_path)
    assert (again.images == train.images).all()
    with pytest.raises(ValueError, match="data_dir must name the folder of mnist's files"):
        data.load("mnist")


# ---- .npz


def test_npz_is_split_and_normalised_by_its_training_images(tmp_path: Path) -> None:
    x, y = levels(40, 6, 5, 3), np.arange(40) % 4
    np.savez_compressed(tmp_path / "mine.npz", x=x, y=y)
    train, validation, test = data.load_splits(tmp_path / "mine.npz", seed=1, validation=0.25)
    assert validation is not None
    assert (len(train), len(validation), len(test)) == (24, 8, 8)
    assert (train.name, train.classes) == ("mine", ("0", "1", "2", "3"))
    images = {
        part.images[i].tobytes() for part in (train, validation, test) for i in range(len(part))
    }
    assert images == {image.tobytes() for image in x}
    kept = np.concatenate([train.images, validation.images]) / 255.0
    assert train.mean == pytest.approx(kept.mean(axis=(0, 1, 2)), rel=1e-9)
    assert test.mean == train.mean
    assert data.load(tmp_path / "mine.npz", seed=1)[1].labels.tolist() == test.labels.tolist()
    assert data.load(tmp_path / "mine.npz", seed=2)[1].images.tobytes() != test.images.tobytes()
    with pytest.raises(ValueError, match="images must be at most 32, got 33"):
        data.load(tmp_path / "mine.npz", images=33)


def test_npz_with_parts_and_real_numbers(tmp_path: Path) -> None:
    x, y = levels(9, 4, 4), np.arange(9) % 3
    parts = {"x_train": x[:4] / np.float32(255), "y_train": y[:4], "x_val": x[4:6] / 255.0}
    parts |= {"y_val": y[4:6], "x_test": x[6:].astype(np.int64), "y_test": y[6:].astype(np.uint8)}
    np.savez(tmp_path / "parts.npz", **parts)
    train, validation, test = data.load_splits(tmp_path / "parts.npz")
    assert validation is not None
    for part, rows in ((train, slice(4)), (validation, slice(4, 6)), (test, slice(6, None))):
        assert (part.images[..., 0] == x[rows]).all()
        assert (part.labels == y[rows]).all()
    with pytest.raises(ValueError, match=r"validation must be left out: .* has such a part"):
        data.load_splits(tmp_path / "parts.npz", validation=0.1)


def test_npz_of_label_maps_in_fortran_order(tmp_path: Path) -> None:
    x, y = np.asfortranarray(levels(10, 4, 6)), np.arange(240).reshape(10, 4, 6) % 2
    np.savez(tmp_path / "maps.npz", x=x, y=y)
    train, test = data.load(tmp_path / "maps.npz")
    assert train.per_pixel
    assert len(train) == 8
    assert {i.tobytes() for i in (*train.images[..., 0], *test.images[..., 0])} == {
        np.ascontiguousarray(i).tobytes() for i in x
    }


def npy(shape: tuple[int, ...], dtype: str, held: bytes) -> bytes:
    """A .npy file whose header promises what it wants."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + held


BOMB = npy((1 << 20, 1 << 12, 1 << 12, 3), "|u1", b"\0" * 1000)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "must hold x and y, or x_train, y_train, x_test and y_test, holds nothing"),
        ({"x.npy": BOMB, "z.npy": b""}, "must hold x and y, or .*, holds x, z"),
        ({"x.npy": BOMB, "y.npy": BOMB}, r"x promises 1048576 x 4096 .* the file holds 1000"),
        ({"x.npy": b"pickle", "y.npy": b""}, "x is no NumPy array"),
        ({"x.npy": npy((2,), "|O", b"\0" * 16), "y.npy": b""}, "must hold numbers, its dty"),
        ({"x.npy": npy((2, 3), "|u1", b"\0" * 6), "y.npy": npy((2,), "<i8", b"\0" * 16)},
         r"x must have shape \(N, H, W\)"),
        ({"x.npy": npy((2, 3, 1), "<f4", b"\0\0\0\x40" * 6), "y.npy": npy((2,), "<i8", b"\0" * 16)},
         "x must be real numbers of 0 to 1, got 2 to 2"),
        ({"x.npy": npy((2, 3, 1), "|u1", b"\0" * 6), "y.npy": npy((3,), "<i8", b"\0" * 24)},
         r"y must be integers \(2,\), or one per pixel, got int64 \(3,\)"),
        ({"x.npy": npy((1, 3, 1), "|u1", b"\0" * 3), "y.npy": npy((1,), "<i8", b"\xff" * 8)},
         "y must be 0 to 9999, got -1 to -1"),
    ],
)  # fmt: skip
def test_npz_that_cannot_be_trusted(
    tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    path = tmp_path / "odd.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match=message) as caught:
        data.load(path)
    assert str(path) in str(caught.value)


def test_npz_bomb_and_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, x=np.zeros((64, 100, 100), np.uint8), y=np.zeros(64, int))
    monkeypatch.setattr("gpucnn.data.npz.available_memory", lambda: 1_000_000)
    with pytest.raises(ValueError, match="= 640000 bytes, the memory here allows 500000"):
        data.load(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"not an .npz file, or a damaged one"):
        data.load(path)
    (tmp_path / "text.npz").write_text("x, y")
    with pytest.raises(ValueError, match=r"not an .npz file"):
        data.load(tmp_path / "text.npz")
    with pytest.raises(ValueError, match=r"cannot be read .No such file"):
        data.load(tmp_path / "absent.npz")


# ---- folders of pictures


def write_pictures(root: Path, n: int = 5, size: tuple[int, int] = (6, 4)) -> None:
    """Three classes, in all three formats; a picture's level tells class and number."""
    for c, name in enumerate(("cat", "dog", "emu")):
        (root / name).mkdir(parents=True)
        for i in range(n):
            suffix = ("png", "jpg", "bmp")[i % 3]
            picture = Image.new("RGB", size, (60 * c + 4 * i, 100, 200))
            picture.save(root / name / f"{i}.{suffix}", quality=100)


def test_folder_of_class_folders(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "cat" / ".DS_Store").write_text("")
    train, test = data.load(tmp_path)
    assert train.classes == ("cat", "dog", "emu")
    assert train.name == tmp_path.name
    assert (train.images.shape, test.images.shape) == ((12, 4, 6, 3), (3, 4, 6, 3))
    assert sorted(test.labels.tolist()) == [0, 1, 2]  # each class gives a fifth
    for part in (train, test):
        reds = part.images[:, 2, 3, 0].astype(int)
        assert (abs(reds - 60 * part.labels - 8) <= 9).all()
    gray, _ = data.load(tmp_path, size=(8, 8), gray=True)
    assert gray.images.shape == (12, 8, 8, 1)
    assert len(gray.mean) == 1


def test_folder_with_parts(tmp_path: Path) -> None:
    for part, n in (("train", 4), ("val", 2), ("Test", 3)):
        write_pictures(tmp_path / part, n)
    train, validation, test = data.load_splits(tmp_path)
    assert validation is not None
    assert (len(train), len(validation), len(test)) == (12, 6, 9)
    (tmp_path / "val" / "emu" / "0.png").unlink()
    (tmp_path / "val" / "emu" / "1.jpg").unlink()
    with pytest.raises(ValueError, match="val/emu: holds no picture"):
        data.load(tmp_path)
    (tmp_path / "val" / "emu").rmdir()
    with pytest.raises(ValueError, match=r"validation and train must have the same .* has emu"):
        data.load(tmp_path)
    (tmp_path / "more").mkdir()
    with pytest.raises(ValueError, match="holds train and test, and besides more"):
        data.load(tmp_path)


def test_unreadable_pictures_are_listed_and_skipped_when_asked(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    (tmp_path / "dog" / "notes.txt").write_text("no picture")
    whole = (tmp_path / "emu" / "0.png").read_bytes()
    (tmp_path / "emu" / "0.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="2 of 16 pictures cannot be read; --skip-unrea") as caught:
        data.load(tmp_path, size=(4, 6))
    assert "dog/notes.txt: not a PNG, JPEG or BMP picture" in str(caught.value)
    assert "emu/0.png: " in str(caught.value)
    with pytest.warns(UserWarning, match=r"left out 2 of 16 pictures:\n.*notes.txt"):
        train, test = data.load(tmp_path, size=(4, 6), skip_unreadable=True)
    assert len(train) + len(test) == 14
    for path in (tmp_path / "emu").iterdir():
        path.write_text("none")
    with (
        warnings.catch_warnings(),
        pytest.raises(ValueError, match="no picture of the class emu can be read"),
    ):
        data.load(tmp_path, size=(4, 6), skip_unreadable=True)


def test_a_picture_larger_than_the_limit_is_refused_by_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path, 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    Image.new("L", (31, 1)).save(tmp_path / "cat" / "bomb.png")
    with pytest.raises(ValueError, match=r"bomb.png: too large, a picture may have at most 30"):
        data.load(tmp_path, size=(4, 4))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda root: None, {}, "must hold a folder for each of two classes or more, found 0"),
        (lambda root: (root / "a").mkdir(), {}, "found 1"),
        (lambda root: write_pictures(root / "a"), {}, "found 1"),
        (lambda root: (write_pictures(root), (root / "x.png").write_text("")), {},
         "pictures belong into a folder for each class, beside them lies x.png"),
        (lambda root: (write_pictures(root), (root / "cat" / "more").mkdir()), {},
         "cat/more: a class folder holds pictures, not folders"),
        (lambda root: (write_pictures(root), Image.new("L", (3, 3)).save(root / "cat" / "z.png")),
         {}, "the pictures differ in size; --size says what to make of them"),
        (write_pictures, {"size": (0, 4)}, "size must be 1 to 4,194,304 pixels, got 0 x 4"),
        (write_pictures, {"size": (4096, 4096)}, "size must be 1 to"),
        (write_pictures, {"data_dir": "x"}, "data_dir must be left out"),
    ],
)  # fmt: skip
def test_folders_that_do_not_fit(tmp_path: Path, make, options, message: str) -> None:
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        data.load(tmp_path, **options)


def test_more_pictures_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path)
    monkeypatch.setattr("gpucnn.data.folder.available_memory", lambda: 1000)
    with pytest.raises(ValueError, match="15 pictures of 4 x 6 x 3 take 1,080 bytes, the memory"):
        data.load(tmp_path)


def test_options_of_pictures_alone(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=levels(4, 4, 4), y=np.arange(4))
    for name in ("shapes", str(tmp_path / "a.npz")):
        with pytest.raises(ValueError, match=f"gray is for a folder of pictures, {name} is none"):
            data.load(name, gray=True)
    with pytest.raises(ValueError, match=r"one of shapes, .*, an .npz file or a fol"):
        data.load("shape")


# ---- splits


def test_a_split_gives_each_class_the_same_share() -> None:
    labels = np.repeat(np.arange(3), (70, 20, 10)).astype(np.int32)
    whole = data.Dataset("w", levels(100, 2, 2, 1), labels, ("a", "b", "c"), 0.5, 0.5)
    rest, aside = split(whole, 0.2, seed=4)
    assert np.bincount(aside.labels).tolist() == [14, 4, 2]
    both = sorted(image.tobytes() for part in (rest, aside) for image in part.images)
    assert both == sorted(image.tobytes() for image in whole.images)
    assert split(whole, 0.2, seed=4)[1].images.tobytes() == aside.images.tobytes()
    assert split(whole, 0.2, seed=4, part=1)[1].images.tobytes() != aside.images.tobytes()
    tiny = data.Dataset("t", levels(2, 2, 2, 1), labels[:2], ("a",), 0.5, 0.5)
    assert [len(part) for part in split(tiny, 0.01, 0)] == [1, 1]
    for share in (0, 1, -0.1, float("nan")):
        with pytest.raises(ValueError, match="share must be above 0 and below 1"):
            split(whole, share, 0)


def test_pictures_of_many_kinds_in_memory(tmp_path: Path) -> None:
    """16-bit gray, palettes, transparency and EXIF turns come as uint8 of one shape."""
    write_pictures(tmp_path, 2, (4, 6))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    Image.new("L", (6, 4), 50).save(turned, "JPEG", exif=exif)
    (tmp_path / "cat" / "turned.jpg").write_bytes(turned.getvalue())
    Image.new("RGBA", (4, 6), (0, 0, 0, 0)).save(tmp_path / "dog" / "clear.png")
    Image.fromarray(np.full((6, 4), 65535, np.uint16)).save(tmp_path / "emu" / "deep.png")
    train, test = data.load(tmp_path)
    assert train.images.shape[1:] == (6, 4, 3)
    whole = np.concatenate([train.images, test.images])
    assert (whole == 255).all(axis=(1, 2, 3)).sum() == 2


def test_fewer_images_are_a_share_of_each_class(tmp_path: Path) -> None:
    write_pictures(tmp_path, 12)
    train, test = data.load(tmp_path, images=10)
    assert np.bincount(train.labels).tolist() in ([3, 3, 4], [3, 4, 3], [4, 3, 3])
    assert len(test) == 7
    again, _ = data.load(tmp_path, images=10)
    assert again.images.tobytes() == train.images.tobytes()
    with pytest.raises(ValueError, match="images must be at most 29, got 30"):
        data.load(tmp_path, images=30)


@pytest.mark.parametrize(
    "header",
    [b"{'descr': '<f4', 'fortran_order': False, 'shape': (3,", b"{[]: 1}", b"-" * 3000 + b"1"],
)
def test_headers_that_are_no_headers(tmp_path: Path, header: bytes) -> None:
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", content)
        archive.writestr("y.npy", content)
    with pytest.raises(ValueError, match=r"a.npz: x is no NumPy array"):
        data.load(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("x.npy", npy((-2, -3, 4, 1), "|u1", b"\0" * 24))
        archive.writestr("y.npy", npy((2,), "<i8", b"\0" * 16))
    with pytest.raises(ValueError, match=r"b.npz: x is no NumPy array"):
        data.load(tmp_path / "b.npz")
