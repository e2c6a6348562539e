"""Compare FID and KID with those of torch-fidelity's own command, and measure their cost.

Two sets of synthetic images are written as PNG files: the samples and the real images. The command `fidelity` reads
both folders; our scorer gets the pixels of the same files. Both use the same Inception weights, random unless --weights
is given: agreement does not depend on what the network has learned. With fewer than 2,049 images per set FID is biased,
equally for both.

    python benchmarks/fid_equality.py [--images 64] [--size-px 32] [--weights FILE] [--json]
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from timing.alternating import build_parser, report
from timing.random_inception import write_random_inception
from torch import Tensor
from torch.nn import functional
from torchvision.io import decode_image

from w2skd.tasks.diffusion.features import open_extractor
from w2skd.tasks.diffusion.fid import FidScorer
from w2skd.tasks.diffusion.reference import open_reference
from w2skd.tasks.diffusion.sample_pictures import write_samples

BATCH_SIZE = 16
COMMAND = "import sys; from torch_fidelity.fidelity import main; sys.exit(main())"


def pictures(count: int, size_px: int, seed: int, contrast: float) -> Tensor:
    """Draw smooth colours with some grain, uint8 [count, 3, size_px, size_px]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = functional.interpolate(coarse, (size_px, size_px), mode="bicubic")
    grain = torch.randn(count, 3, size_px, size_px, generator=generator)
    return (128 + contrast * 255 * (smooth - 0.5) + 8 * grain).clamp(0, 255).to(torch.uint8)


def read(folder: Path) -> Iterator[Tensor]:
    files = sorted(folder.iterdir())
    for first in range(0, len(files), BATCH_SIZE):
        yield torch.stack([decode_image(str(file)) for file in files[first : first + BATCH_SIZE]])


def by_command(fake: Path, real: Path, weights: Path, subset_size: int, threads: int) -> dict[str, float]:
    options = ["--fid", "--kid", "--cpu", "--json", "--silent", "--no-cache", "--save-cpu-ram", "-b", str(BATCH_SIZE)]
    options += ["--input1", str(fake), "--input2", str(real), "--kid-subset-size", str(subset_size)]
    options += ["--feature-extractor-weights-path", str(weights)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *options], env=environment, capture_output=True, text=True, check=True
    )
    values: dict[str, float] = json.loads(done.stdout)
    return {name.replace("frechet_inception_distance", "fid"): value for name, value in values.items()}


def main() -> None:
    options = build_parser(__doc__, rounds=1)
    options.add_argument("--images", type=int, default=64, help="images per set [64]")
    options.add_argument("--size-px", type=int, default=32, help="side of the images [32]")
    options.add_argument("--weights", type=Path, help="Inception weights; random if omitted")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    seconds: dict[str, float] = {}

    def timed(name: str, began: float) -> None:
        seconds[name] = time.perf_counter() - began

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = chosen.weights or write_random_inception(folder / "inception.pth")
        for seed, (kind, contrast) in enumerate((("fake", 0.7), ("real", 1.0))):
            (folder / kind).mkdir()
            write_samples(pictures(chosen.images, chosen.size_px, seed, contrast), folder / kind)
        subset_size = min(1000, chosen.images)

        began = time.perf_counter()
        theirs = by_command(folder / "fake", folder / "real", weights, subset_size, chosen.threads)
        timed("command", began)

        began = time.perf_counter()
        extractor = open_extractor("inception-v3-compat", weights, device="cpu", batch_size=BATCH_SIZE)
        timed("open", began)
        began = time.perf_counter()
        reference = open_reference(extractor, lambda: read(folder / "real"), key={}, cache=folder / "cache")
        timed("reference", began)
        began = time.perf_counter()
        open_reference(extractor, lambda: read(folder / "real"), key={}, cache=folder / "cache")
        timed("cached", began)
        began = time.perf_counter()
        scorer = FidScorer(reference, extractor, kid_subset_size=subset_size)
        for number, images in enumerate(read(folder / "fake")):
            scorer.add(torch.arange(len(images)) + BATCH_SIZE * number, images)
        timed("features", began)
        began = time.perf_counter()
        ours = scorer.result()
        timed("result", began)

    pairs = {
        "fid": (ours.fid, theirs["fid"]),
        "kid": (ours.kid, theirs["kernel_inception_distance_mean"]),
        "kid_std": (ours.kid_std, theirs["kernel_inception_distance_std"]),
    }
    relative = {key: abs(own - other) / max(abs(other), 1e-300) for key, (own, other) in pairs.items()}
    rows = [
        (f"{key}: ours, the command's, relative difference", f"{own:.7g}, {other:.7g}, {relative[key]:.1e}", "1e-3")
        for key, (own, other) in pairs.items()
        if key != "kid_std"
    ]
    labels = {
        "command": "the command, in total",
        "open": "read, check and load the weights",
        "reference": "compute the reference",
        "cached": "load the reference from the cache",
        "features": "compute features of the samples",
        "result": "compute FID and KID from features",
    }
    rows += [(label, f"{seconds[key]:.2f} s", "") for key, label in labels.items()]
    report(chosen, rows, {"scores": pairs, "relative": relative, "seconds": seconds})


if __name__ == "__main__":
    main()
