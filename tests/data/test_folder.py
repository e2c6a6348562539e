"""Image folders: files that are read, ignored and refused."""

import errno
import os
import struct
import zlib
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch
from PIL import Image

from w2skd.data.folder import (
    EXTENSIONS,
    check_same_classes,
    describe_unused,
    list_class_folders,
    read_images,
)
from w2skd.errors import DataError


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards, blue is constant."""
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None, :]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    pixels[..., 2] = 100
    return Image.fromarray(pixels)


def save(image: Image.Image, path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def png_with_header_only(path: Path, width: int, height: int) -> Path:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    return path


def test_listing_is_sorted_and_counts_what_is_hidden_or_no_image(tmp_path: Path):
    for name in ("train/b/2.JPEG", "train/b/10.png", "train/a/x.bmp", "train/.git/y.png", "train/a/.z.png"):
        save(gradient(8, 8), tmp_path / name)
    (tmp_path / "train/a/notes.txt").write_text("not an image")
    (tmp_path / "train/README.md").write_text("not a class")
    (tmp_path / "train/a/folder.jpg").mkdir()
    listed = list_class_folders(tmp_path, "train", "data.train_folder")
    assert list(listed.files) == ["a", "b"]
    assert [path.name for path in listed.files["a"]] == ["x.bmp"]
    assert [path.name for path in listed.files["b"]] == ["10.png", "2.JPEG"]
    assert listed.notes == ("4 files are not read: 2 hidden (.git), 1 .md (README.md), 1 .txt (a/notes.txt)",)


@pytest.mark.parametrize("folder", ["2021", "2021/may", "a b", "x.jpg"])
def test_images_in_subfolders_belong_to_the_class(folder: str, tmp_path: Path):
    for name in ("b/0.png", f"a/{folder}/1.png", "a/0.png", f"a/{folder}/notes.doc"):
        save(gradient(8, 8), tmp_path / "train" / name) if name.endswith("png") else (
            tmp_path / "train" / name
        ).write_text("")
    (tmp_path / "train/a/loop").symlink_to(tmp_path / "train/a")
    listed = list_class_folders(tmp_path, "train", "data.train_folder")
    assert {path.relative_to(tmp_path / "train").as_posix() for path in listed.files["a"]} == {
        "a/0.png",
        f"a/{folder}/1.png",
    }
    assert listed.notes == (f"1 file is not read: 1 .doc (a/{folder}/notes.doc)",)


def test_images_are_sorted_folder_by_folder_as_paths_are(tmp_path: Path):
    names = ("a/b.png", "a/b/1.png", "a/b-c/1.png", "a/b/c/0.png", "a/B.png", "a/b c.png", "a/b!.png", "a b/1.png")
    for name in names:
        save(gradient(8, 8), tmp_path / "train" / name)
    listed = list_class_folders(tmp_path, "train", "data.train_folder")
    assert list(listed.files["a"]) == sorted(path for path in (tmp_path / "train/a").rglob("*.png") if path.is_file())
    assert list(listed.files["a"]) != sorted(listed.files["a"], key=str)


def test_many_classes_keep_their_order_and_the_first_problem_is_reported(tmp_path: Path):
    for label in range(40):
        save(gradient(8, 8), tmp_path / f"train/c{label:02d}/{label}.png")
    listed = list_class_folders(tmp_path, "train", "data.train_folder")
    assert [[path.stem for path in paths] for paths in listed.files.values()] == [[str(label)] for label in range(40)]
    for label in (9, 23):
        (tmp_path / f"train/c{label:02d}/{label}.png").unlink()
    for _ in range(5):
        with pytest.raises(DataError, match="class 'c09' has no images"):
            list_class_folders(tmp_path, "train", "data.train_folder")


def test_class_folders_are_listed_in_parallel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for label in range(4):
        save(gradient(8, 8), tmp_path / f"train/{label}/{label}.png")
    scandir, barrier = os.scandir, Barrier(4)

    def slow(path: str):
        if Path(path).parent.name == "train":
            barrier.wait(timeout=30)  # breaks unless all four wait
        return scandir(path)

    monkeypatch.setattr(os, "scandir", slow)
    listed = list_class_folders(tmp_path, "train", "data.train_folder")
    assert [path.name for path in listed.paths] == ["0.png", "1.png", "2.png", "3.png"]
    assert (listed.classes, listed.counts) == (("0", "1", "2", "3"), (1, 1, 1, 1))


@pytest.mark.parametrize("ending", [".jfif", ".jpe", ".JFIF"])
def test_other_endings_of_known_formats_are_read(ending: str, tmp_path: Path):
    save(gradient(8, 8), tmp_path / f"train/a/1{ending}", format="JPEG")
    listed = list_class_folders(tmp_path, "train", "data.train_folder")
    assert len(read_images(listed.files["a"], 8)) == 1


def test_a_single_class_is_reported(tmp_path: Path):
    save(gradient(8, 8), tmp_path / "train/cat/1.png")
    listed = list_class_folders(tmp_path, "train", "data.train_folder")
    assert listed.notes == ("contains a single class, 'cat': there is nothing to tell apart",)


def test_folders_beside_those_that_are_read_are_listed(tmp_path: Path):
    for name in ("train", "val", "test", "extra", ".cache"):
        (tmp_path / name).mkdir()
    (tmp_path / "labels.csv").write_text("")
    assert describe_unused(tmp_path, ("train", "val")) == f"{tmp_path} also holds extra/, labels.csv, test/: not read"
    assert describe_unused(tmp_path, ("train", "val", "test", "extra", "labels.csv")) is None


NFC, NFD = "caf\u00e9", "cafe\u0301"


def test_names_of_classes_are_composed(tmp_path: Path):
    for name in (NFD, "caff"):
        save(gradient(8, 8), tmp_path / "train" / name / "1.png")
    listed = list_class_folders(tmp_path, "train", "data.train_folder")
    assert list(listed.files) == ["caff", NFC]
    save(gradient(8, 8), tmp_path / "train" / NFC / "1.png")
    with pytest.raises(DataError, match=f"two folders are named '{NFC}', in different Unicode forms; merge or rename"):
        list_class_folders(tmp_path, "train", "data.train_folder")


def test_an_empty_class_before_two_equal_names_is_reported_first(tmp_path: Path):
    for name in (NFD, NFC):
        (tmp_path / "train" / name).mkdir(parents=True)
    with pytest.raises(DataError, match="has no images: the folder is empty"):
        list_class_folders(tmp_path, "train", "data.train_folder")


def test_classes_that_look_alike_are_told_apart_aloud(tmp_path: Path):
    for name in ("Cat", "cat", "dog"):
        save(gradient(8, 8), tmp_path / "train" / name / "1.png")
    listed = list_class_folders(tmp_path, "train", "data.train_folder")
    assert listed.notes == ("classes 'Cat' and 'cat' differ only in letter case",)
    with pytest.raises(DataError, match=r"only in test: Dog; 'dog' and 'Dog' differ only in letter case: rename one$"):
        check_same_classes(["a", "dog"], Path("train"), ["a", "Dog"], Path("test"))


def test_a_missing_root_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"data\.root: no such folder: .*nowhere"):
        list_class_folders(tmp_path / "nowhere", "train", "data.train_folder")


def test_a_missing_part_lists_what_is_there(tmp_path: Path):
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match=r"data\.eval_folder: no folder 'test' in .*: train, val$"):
        list_class_folders(tmp_path, "test", "data.eval_folder")


def test_an_empty_part_is_refused(tmp_path: Path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/loose.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"train: contains no folders"):
        list_class_folders(tmp_path, "train", "data.train_folder")


def test_a_class_without_images_is_refused(tmp_path: Path):
    save(gradient(8, 8), tmp_path / "train/a/1.png")
    (tmp_path / "train/b").mkdir()
    with pytest.raises(DataError, match=r"class 'b' has no images: the folder is empty"):
        list_class_folders(tmp_path, "train", "data.train_folder")
    (tmp_path / "train/b/notes.txt").write_text("")
    with pytest.raises(DataError, match=r"class 'b' has no images: none of its 1 files .*\.jpg, \.jpeg"):
        list_class_folders(tmp_path, "train", "data.train_folder")


def test_different_classes_are_named():
    with pytest.raises(DataError, match=r"only in train: c; only in test: d, e$"):
        check_same_classes(["a", "c"], Path("train"), ["a", "d", "e"], Path("test"))
    with pytest.raises(DataError, match=r"differ; only in test: b0, b1, b2, b3, b4, \.\.\.$"):
        check_same_classes(["a"], Path("train"), ["a", *(f"b{i}" for i in range(9))], Path("test"))
    check_same_classes(["a", "b"], Path("train"), ["b", "a"], Path("test"))


@pytest.mark.parametrize(
    "extension",
    [name for name in EXTENSIONS if name not in (".jpg", ".jpeg", ".jpe", ".jfif", ".pgm", ".gif", ".webp")],
)
def test_lossless_pixels_come_back(tmp_path: Path, extension: str):
    image = gradient(16, 16)
    pixels = read_images([save(image, tmp_path / f"x{extension}")], 16)
    assert pixels.dtype is torch.uint8
    assert torch.equal(pixels[0], torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1))


@pytest.mark.parametrize("extension", [".jpg", ".jpeg", ".webp"])
def test_lossy_pixels_come_back_nearly(tmp_path: Path, extension: str):
    image = gradient(16, 16)
    pixels = read_images([save(image, tmp_path / f"x{extension}", quality=95)], 16)
    expected = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    assert (pixels[0].float() - expected.float()).abs().mean() < 4


def test_more_images_than_a_chunk_keep_their_order(tmp_path: Path):
    paths = [save(Image.new("RGB", (8, 8), (i, 0, 0)), tmp_path / f"{i}.png") for i in range(150)]
    assert read_images(paths, 8)[:, 0, 4, 4].tolist() == list(range(150))


def test_no_images_at_all():
    assert read_images([], 8).shape == (0, 3, 8, 8)


def test_grey_palette_alpha_and_wide_pixels_become_rgb(tmp_path: Path):
    grey = Image.new("L", (8, 8), 90)
    files = {
        "grey.jpg": (grey, {}),
        "grey.pgm": (grey, {}),
        "palette.gif": (Image.new("RGB", (8, 8), (90, 90, 90)).quantize(4), {}),
        "palette.png": (Image.new("RGB", (8, 8), (90, 90, 90)).quantize(4), {"transparency": b"\x00\xff"}),
        "alpha.png": (Image.new("RGBA", (8, 8), (90, 90, 90, 10)), {}),
        "bilevel.png": (Image.new("1", (8, 8), 1), {}),
        "wide.png": (Image.fromarray(np.full((8, 8), 90 * 257, dtype=np.uint16)), {}),
    }
    paths = [save(image, tmp_path / name, **options) for name, (image, options) in files.items()]
    values = read_images(paths, 8).float().flatten(1)
    assert values.mean(1).tolist() == pytest.approx([90, 90, 90, 90, 90, 255, 90], abs=1)
    assert values.std(1).max() < 1.5


def test_cmyk_becomes_rgb(tmp_path: Path):
    image = Image.new("RGB", (16, 16), (200, 60, 30)).convert("CMYK")
    pixels = read_images([save(image, tmp_path / "x.jpg", quality=95)], 16)
    assert pixels[0].float().mean((1, 2)).tolist() == pytest.approx([200, 60, 30], abs=4)


@pytest.mark.parametrize(("width", "height"), [(40, 24), (24, 40), (12, 9), (64, 64), (200, 10)])
def test_the_shorter_side_is_resized_and_the_centre_taken(tmp_path: Path, width: int, height: int):
    image = gradient(width, height)
    pixels = read_images([save(image, tmp_path / "x.png")], 16)[0].float()
    scale = 16 / min(width, height)
    whole = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    left, top = (whole.width - 16) // 2, (whole.height - 16) // 2
    expected = (
        torch.from_numpy(np.asarray(whole.crop((left, top, left + 16, top + 16))).copy()).permute(2, 0, 1).float()
    )
    # Half a pixel of the crop's place is lost where the longer side must be rounded first.
    assert (pixels - expected).abs().max() <= 255 / min(whole.size) / 2 + 2


def test_downscaling_does_not_alias(tmp_path: Path):
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    pixels = read_images([save(Image.fromarray(stripes), tmp_path / "x.png")], 16)[0].float()
    assert (pixels[:, :, 2:-2] - 100).abs().max() < 8


def test_exif_orientation_is_applied(tmp_path: Path):
    image = gradient(32, 32)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be shown rotated by 270 degrees
    turned = read_images([save(image, tmp_path / "x.png", exif=exif)], 32)
    expected = np.asarray(image.transpose(Image.Transpose.ROTATE_270)).transpose(2, 0, 1).copy()
    assert torch.equal(turned[0], torch.from_numpy(expected))


@pytest.mark.parametrize("content", [b"", b"this is no image", b"\xff\xd8\xff\xe0 and then nothing"])
@pytest.mark.parametrize("name", ["bad.jpg", "bad.png"])
def test_a_corrupt_image_is_named(tmp_path: Path, name: str, content: bytes):
    good = save(gradient(8, 8), tmp_path / "good.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        read_images([good, tmp_path / name, good], 8)


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "cut.bmp"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_a_truncated_image_is_named(tmp_path: Path, name: str, share: float):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(Image.fromarray(pixels), tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=rf"{name}: .*remove"):
        read_images([path], 8)


def test_the_first_bad_image_is_reported_for_any_order_of_threads(tmp_path: Path):
    good = save(gradient(8, 8), tmp_path / "good.png")
    paths = [good] * 300
    for place in (70, 200, 290):
        paths[place] = tmp_path / f"bad{place}.png"
        paths[place].write_bytes(b"x")
    for _ in range(5):
        with pytest.raises(DataError, match=r"bad70\.png"):
            read_images(paths, 8)


def test_a_decompression_bomb_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"bomb\.png: its header claims more than [\d,]+ pixels"):
        read_images([png_with_header_only(tmp_path / "bomb.png", 60_000, 60_000)], 8)


def test_a_file_type_that_may_start_programs_is_not_opened(tmp_path: Path):
    path = tmp_path / "postscript.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match=r"postscript\.jpg: not an image"):
        read_images([path], 8)


def test_a_dangling_link_is_an_error_and_not_ignored(tmp_path: Path):
    (tmp_path / "train/a").mkdir(parents=True)
    (tmp_path / "train/a/gone.png").symlink_to(tmp_path / "nowhere.png")
    listed = list_class_folders(tmp_path, "train", "data.train_folder")
    with pytest.raises(DataError, match=r"gone\.png: No such file"):
        read_images(listed.files["a"], 8)


def test_an_unreadable_file_or_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By patches and not by modes, which do not bind root."""
    path = save(gradient(8, 8), tmp_path / "train/a/secret.png")

    def denied(self: Path, *arguments: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", denied)
        with pytest.raises(DataError, match=r"secret\.png: Permission denied"):
            read_images([path], 8)
    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DataError, match=r"train: cannot list the folder: Permission denied"):
        list_class_folders(tmp_path, "train", "data.train_folder")


def test_more_pixels_than_memory_are_refused_before_anything_is_read():
    with pytest.raises(DataError, match=r"1,000,000 images of 4096 x 4096 px need \d+ GiB.*data\.train_examples"):
        read_images([Path("nowhere.png")] * 1_000_000, 4096)
