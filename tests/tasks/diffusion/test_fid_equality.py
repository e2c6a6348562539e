"""FID and KID equal those of torch-fidelity's command for the same images and weights."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch_fidelity import fidelity

from benchmarks.timing.random_inception import write_random_inception
from w2skd.tasks.diffusion.features import open_extractor
from w2skd.tasks.diffusion.fid import FidScorer
from w2skd.tasks.diffusion.reference import open_reference


def pictures(count: int, seed: int, brightest: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, brightest, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)


def write(images: Tensor, folder: Path) -> Path:
    folder.mkdir()
    for number, pixels in enumerate(images.permute(1, 2, 3, 0).unbind(-1)):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{number:06d}.png")
    return folder


@pytest.mark.slow
def test_fid_and_kid_equal_those_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake, real = pictures(6, 0, 200), pictures(8, 1, 256)
    weights = write_random_inception(tmp_path / "inception.pth")
    folders = ["--input1", str(write(fake, tmp_path / "fake")), "--input2", str(write(real, tmp_path / "real"))]
    options = [
        "--fid",
        "--kid",
        "--kid-subset-size",
        "5",
        "--cpu",
        "--json",
        "--silent",
        "--no-cache",
        "--save-cpu-ram",
    ]
    file = ["--feature-extractor-weights-path", str(weights)]
    monkeypatch.setattr(sys, "argv", ["fidelity", *folders, *options, *file])
    fidelity.main()
    theirs = json.loads(capsys.readouterr().out)
    extractor = open_extractor("inception-v3-compat", weights, device="cpu", batch_size=4)
    reference = open_reference(extractor, lambda: real.split(3), key={}, cache=tmp_path / "cache")
    scorer = FidScorer(reference, extractor, kid_subset_size=5)
    for ids in torch.arange(6).split(4):
        scorer.add(ids, fake[ids])
    ours = scorer.result()
    assert ours.fid == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert ours.kid == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert ours.kid_std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3)
    assert ours.fid > 1
