"""Overhead of w2skd's COCO scoring over the scoring package: 5,000 images with 100 detections each, as in COCO val.

Each image has seven boxes of 80 categories; half of the detections are slightly moved ground-truth boxes, half are
random. They arrive in batches of 16, as float32 tensors. A round covers all of scoring: reading the ground truth,
adding the batches, building the array, running the package and reading its numbers. Time inside the package's methods
is measured separately, as is the time to free its objects after the last call. The rest is w2skd's overhead.

    python benchmarks/scoring.py [--images 5000] [--detections 100] [--backend faster] [--rounds 1] [--json]
"""

import resource
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import faster_coco_eval
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from timing.alternating import build_parser, report
from torch import Tensor

from w2skd.tasks.detection.coco_scores import CocoScorer

BATCH_SIZE = 16
CATEGORIES = 80
BOXES = 7
CALLS = {
    "pycocotools": {COCO: ("createIndex", "loadRes"), COCOeval: ("evaluate", "accumulate", "summarize")},
    "faster": {
        faster_coco_eval.COCO: ("createIndex", "loadRes"),
        faster_coco_eval.COCOeval_faster: ("evaluate", "accumulate", "summarize"),
    },
}

Batch = tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]], Tensor]


def boxes(count: int) -> Tensor:
    """Draw xyxy boxes in an image of 640 x 480 px."""
    size = torch.rand(count, 2) ** 2 * 240 + 4
    corner = torch.rand(count, 2) * (torch.tensor([640, 480]) - size)
    return torch.cat([corner, corner + size], dim=1)


def random_data(images: int, detections: int) -> tuple[dict[str, Any], list[Batch]]:
    """Return COCO ground truth and batches of detections."""
    annotations, batches = [], []
    for first in range(0, images, BATCH_SIZE):
        places = torch.arange(first, min(first + BATCH_SIZE, images))
        found = []
        for place in places.tolist():
            true, labels = boxes(BOXES), torch.randint(CATEGORIES, (BOXES,))
            for (x1, y1, x2, y2), label in zip(true.tolist(), labels.tolist(), strict=True):
                number = len(annotations) + 1
                box = {"id": number, "image_id": place, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1]}
                annotations.append(box | {"area": (x2 - x1) * (y2 - y1), "iscrowd": 0})
            near = torch.randint(BOXES, (detections // 2,))
            moved = true[near] + 4 * torch.randn(len(near), 2).repeat(1, 2)
            anywhere = detections - len(near)
            all_labels = torch.cat([labels[near], torch.randint(CATEGORIES, (anywhere,))])
            found.append((torch.cat([moved, boxes(anywhere)]), torch.rand(detections), all_labels))
        batches.append((places, found, torch.ones(len(places), 2)))
    ids = [{"id": place} for place in range(images)]
    categories = [{"id": label, "name": f"class {label}"} for label in range(CATEGORIES)]
    return {"images": ids, "categories": categories, "annotations": annotations}, batches


class Stopwatch:
    """Accumulates the time spent in wrapped methods; nested calls count once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.ended = 0.0
        self._inside = False

    def timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if self._inside:
                return method(*arguments)
            self._inside, began = True, time.perf_counter()
            try:
                return method(*arguments)
            finally:
                self._inside, self.ended = False, time.perf_counter()
                self.seconds += self.ended - began

        return call


def main() -> None:
    parser = build_parser(__doc__, rounds=1)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="per image [100]")
    parser.add_argument("--backend", choices=sorted(CALLS), default="pycocotools")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    ground_truth, batches = random_data(options.images, options.detections)
    watch = Stopwatch()
    for owner, names in CALLS[options.backend].items():
        for name in names:
            setattr(owner, name, watch.timed(getattr(owner, name)))

    ours, theirs, freeing = [], [], []
    for _ in range(options.rounds):
        watch.seconds, began = 0.0, time.perf_counter()
        scorer = CocoScorer(ground_truth, range(CATEGORIES), range(options.images))
        for batch in batches:
            scorer.add(*batch)
        result = scorer.result(options.backend)
        freeing.append(time.perf_counter() - watch.ended)
        theirs.append(watch.seconds)
        ours.append(watch.ended - began - watch.seconds)
    shares = [mine / (mine + its) for mine, its in zip(ours, theirs, strict=True)]
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found = options.images * options.detections
    rows = [
        (
            f"outside {result.backend}, for {found:,} detections",
            f"{median(ours):.2f} s",
            f"{median(shares):.1%} of the total",
        ),
        (f"  inside {result.backend}", f"{median(theirs):.2f} s", ""),
        ("  freeing its objects, and per-class scores", f"{median(freeing):.2f} s", ""),
        ("  peak memory of the process", f"{peak_gib:.1f} GiB", ""),
    ]
    values = {
        "outside_s": ours,
        "inside_s": theirs,
        "freeing_s": freeing,
        "peak_gib": peak_gib,
        "ap50": result.numbers["ap50"],
    }
    report(options, rows, values)


if __name__ == "__main__":
    main()
