import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch import nn

from w2skd.errors import CheckpointError
from w2skd.weights.load import load_weights

STATE = {"weight": torch.ones(2, 3)}


def zipped(**entries: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), content)
    return stream.getvalue()


def tarred() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pt"))
    return stream.getvalue()


def script() -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), stream)
    return stream.getvalue()


def saved(write: Callable[[io.BytesIO], object]) -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


KINDS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is empty"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n", "is a Git LFS pointer"),
    "page": (b"\n<!DOCTYPE html><html><title>Sign in</title></html>", "is a web page (HTML)"),
    "bare page": (b"<HTML><body>404</body></HTML>", "is a web page (HTML)"),
    "text": ("weights: caf\u00e9\n".encode() * 60, "is a text file"),
    "json": (json.dumps({"weights": [1, 2]}).encode(), "is a text file"),
    "script": (script(), "is a TorchScript archive"),
    "zip": (zipped(readme_dot_txt=b"hello"), "is a zip archive without a checkpoint"),
    "export": (
        zipped(model__archive_format=b"pt2", model__models__model_dot_json=b"{}"),
        "is an archive of torch.export",
    ),
    "npz": (saved(lambda stream: np.savez(stream, a=np.ones(3))), "is an archive of NumPy arrays"),
    "npy": (saved(lambda stream: np.save(stream, np.ones(3))), "is a NumPy array"),
    "keras": (zipped(config_dot_json=b"{}", model_dot_weights_dot_h5=b""), "is a Keras model"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "is an HDF5 file"),
    "gzip": (gzip.compress(b"x"), "is compressed (gzip): unpack it first"),
    "tar": (tarred(), "is a tar archive"),
    "png": (saved(lambda stream: Image.new("RGB", (2, 2)).save(stream, "PNG")), "is a PNG image"),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x052.0.0" + bytes(30), "is an ONNX model"),
    "noise": (bytes(range(255, 128, -1)), "damaged or not a checkpoint"),
}


@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".ckpt", ""])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_known_by_its_content(kind: str, ending: str, tmp_path: Path) -> None:
    content, problem = KINDS[kind]
    path = tmp_path / f"teacher{ending}"
    path.write_bytes(content)
    if kind == "noise" and ending == ".safetensors":
        problem = "damaged or truncated"
    with pytest.raises(CheckpointError) as caught:
        load_weights(path)
    assert str(caught.value).startswith(f"{path}: {problem}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", [".pth", ".bin", ".safetensors", ""])
def test_weights_are_read_under_any_name(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"teacher{ending}"
    path.write_bytes(save(STATE))
    assert torch.equal(load_weights(path).state["weight"], STATE["weight"])
    torch.save(STATE, path)
    assert torch.equal(load_weights(path).state["weight"], STATE["weight"])
