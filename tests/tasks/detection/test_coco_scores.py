"""COCO scores equal those of the packages, except for the cases that these handle wrongly."""

import json
import math
import tarfile
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import run_ranks, values
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from w2skd.errors import OutputError, UsageError
from w2skd.platform.ranks import Ranks, process_group
from w2skd.tasks.detection import coco_scores as scores
from w2skd.tasks.detection.coco_scores import (
    CocoScorer,
    check_results_path,
    choose_backend,
)
from w2skd.tasks.detection.recipe import COCO_METRICS

NEEDS_FASTER = pytest.mark.skipif(find_spec("faster_coco_eval") is None, reason="faster-coco-eval is not installed")
BACKENDS = ["pycocotools", pytest.param("faster", marks=NEEDS_FASTER)]
IDS = (3, 7, 90)  # with gaps

Found = tuple[Tensor, Tensor, Tensor]


def truth(annotations: list[dict[str, Any]], images: int = 1, ids: tuple[int, ...] = IDS) -> dict[str, Any]:
    return {
        "images": [{"id": number, "height": 480, "width": 640} for number in range(1, images + 1)],
        "categories": [{"id": number, "name": f"class {number}"} for number in ids],
        "annotations": annotations,
    }


def box(number: int, xywh: list[float], image: int = 1, category: int = 3, crowd: int = 0) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": xywh,
        "area": xywh[2] * xywh[3],
        "iscrowd": crowd,
    }


def found(*rows: tuple[float, float, float, float, float, int]) -> Found:
    """Each row is x1, y1, x2, y2, score, label."""
    table = torch.tensor(rows, dtype=torch.float64).view(-1, 6)
    return table[:, :4], table[:, 4], table[:, 5].long()


def scored(ground_truth: dict[str, Any], detections: list[Found], backend: str = "pycocotools") -> scores.CocoResult:
    scorer = CocoScorer(ground_truth, IDS, range(1, len(detections) + 1))
    scorer.add(torch.arange(len(detections)), detections)
    return scorer.result(backend)


def made_up(seed: int, images: int = 20) -> tuple[dict[str, Any], list[Found]]:
    """Boxes of all sizes, some of them crowds; of these a part is found, moved a little; scores have ties."""
    generator = np.random.default_rng(seed)
    annotations, detections = [], []
    for image in range(1, images + 1):
        rows: list[Any] = []
        for _ in range(generator.integers(0, 8)):
            width, height = np.exp(generator.uniform(2, 5.3, 2))
            x, y = generator.uniform(0, 400, 2)
            label = int(generator.integers(0, 3))
            one = box(len(annotations) + 1, [x, y, width, height], image, IDS[label], int(generator.random() < 0.15))
            annotations.append(one)
            for _ in range(generator.integers(0, 3)):
                x1, y1 = x + width * generator.normal(0, 0.08), y + height * generator.normal(0, 0.08)
                seen = label if generator.random() < 0.9 else (label + 1) % 3
                score = round(float(generator.random()), 1)
                rows.append((x1, y1, x1 + width * generator.uniform(0.8, 1.2), y1 + height, score, seen))
        detections.append(found(*rows))
    return truth(annotations, images), detections


def by_files(annotations: Path, results: Path) -> list[float]:
    """COCO's twelve metrics by pycocotools from an annotation and a results file."""
    with redirect_stdout(StringIO()):
        loaded = COCO(str(annotations))
        evaluator = COCOeval(loaded, loaded.loadRes(str(results)), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [math.nan if value == -1 else float(value) for value in evaluator.stats]


def same(numbers: dict[str, float], expected: list[float]) -> bool:
    """To the last digit."""
    return np.array_equal(np.array([numbers[name] for name in COCO_METRICS]), np.array(expected), equal_nan=True)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_numbers_are_those_of_pycocotools_from_files(tmp_path: Path, seed: int, dtype: torch.dtype) -> None:
    ground_truth, detections = made_up(seed)
    detections = [(boxes.to(dtype), score.to(dtype), label) for boxes, score, label in detections]
    (tmp_path / "truth.json").write_text(json.dumps(ground_truth))
    by_hand = [
        {
            "image_id": number,
            "category_id": IDS[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for number, one in enumerate(detections, start=1)
        for (x1, y1, x2, y2), score, label in zip(*(part.tolist() for part in one), strict=True)
    ]
    (tmp_path / "results.json").write_text(json.dumps(by_hand))
    numbers = scored(ground_truth, detections).numbers
    assert same(numbers, by_files(tmp_path / "truth.json", tmp_path / "results.json")), numbers
    assert 0.2 < numbers["ap50"] < 0.9
    assert not any(math.isnan(value) for value in numbers.values())


@NEEDS_FASTER
@pytest.mark.parametrize("seed", range(4))
def test_both_packages_give_the_same_numbers(seed: int) -> None:
    """But for the last digit: to avoid a division by 0, pycocotools adds 2^-52, which shows where it divides by 1."""
    reference, faster = (scored(*made_up(seed), backend) for backend in ("pycocotools", "faster"))
    assert faster.numbers == pytest.approx(reference.numbers, abs=1e-14, nan_ok=True)
    for row, expected in zip(faster.classes, reference.classes, strict=True):
        assert row == pytest.approx(expected, abs=1e-14, nan_ok=True)
    assert reference.backend.startswith("pycocotools 2.")
    assert faster.backend.startswith("faster-coco-eval 1.")


@pytest.mark.parametrize("backend", BACKENDS)
def test_perfect_boxes_of_one_size_score_one_and_other_sizes_have_no_number(backend: str) -> None:
    ground_truth = truth([box(1, [10, 10, 50, 50]), box(2, [200, 100, 60, 60], category=90)])
    result = scored(ground_truth, [found((10, 10, 60, 60, 0.9, 0), (200, 100, 260, 160, 0.8, 2))], backend)
    of_size = {name: value for name, value in result.numbers.items() if "small" in name or "large" in name}
    assert all(math.isnan(value) for value in of_size.values()), of_size
    assert all(result.numbers[name] == pytest.approx(1) for name in COCO_METRICS if name not in of_size)
    nothing = pytest.approx(math.nan, nan_ok=True)
    assert result.classes == [
        {"class": "class 3", "boxes": 1, "ap": pytest.approx(1), "ap50": pytest.approx(1)},
        {"class": "class 7", "boxes": 0, "ap": nothing, "ap50": nothing},
        {"class": "class 90", "boxes": 1, "ap": pytest.approx(1), "ap50": pytest.approx(1)},
    ]
    assert result.notes == ()


def test_average_precision_over_thresholds_is_what_the_overlap_says() -> None:
    """A box that overlaps by 0.8 is right at the seven thresholds from 0.50 to 0.80."""
    result = scored(truth([box(1, [0, 0, 100, 100])]), [found((0, 0, 80, 100, 0.9, 0))])
    assert result.numbers["ap"] == pytest.approx(0.7)
    assert (result.numbers["ap50"], result.numbers["ap75"]) == pytest.approx((1, 1))
    assert (result.classes[0]["ap"], result.classes[0]["ap50"]) == pytest.approx((0.7, 1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_crowd_region_is_neither_hit_nor_missed(backend: str) -> None:
    annotations = [box(1, [10, 10, 40, 40]), box(2, [300, 100, 200, 200], crowd=1)]
    inside = [(310, 110, 350, 150, 0.95, 0), (400, 200, 450, 250, 0.94, 0)]
    result = scored(truth(annotations), [found(*inside, (10, 10, 50, 50, 0.9, 0))], backend)
    assert result.numbers["ap"] == pytest.approx(1)
    assert result.numbers["ar1"] == pytest.approx(0), "the one detection that counts is in the crowd"
    assert result.classes[0]["boxes"] == 1
    beside = scored(truth(annotations[:1]), [found(*inside, (10, 10, 50, 50, 0.9, 0))], backend)
    assert beside.numbers["ap"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_area_is_the_files_where_it_has_one(backend: str) -> None:
    one = box(1, [10, 10, 50, 50])
    for area, name in ((one["area"], "ap_medium"), (1000.0, "ap_small"), (10_000.0, "ap_large"), (None, "ap_medium")):
        annotation = {**one, "area": area}
        if area is None:
            del annotation["area"], annotation["iscrowd"]
        numbers = scored(truth([annotation]), [found((10, 10, 60, 60, 0.9, 0))], backend).numbers
        sizes = {size: numbers[size] for size in ("ap_small", "ap_medium", "ap_large")}
        assert sizes.pop(name) == pytest.approx(1), (area, name)
        assert all(math.isnan(value) for value in sizes.values()), (area, sizes)


@pytest.mark.parametrize("backend", BACKENDS)
def test_finding_nothing_is_zero(backend: str) -> None:
    result = scored(truth([box(1, [10, 10, 50, 50])], images=2), [found(), found()], backend)
    assert (result.numbers["ap"], result.numbers["ap50"], result.numbers["ar100"]) == (0, 0, 0)
    assert (result.classes[0]["ap"], result.notes) == (0, ())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("annotations", [[], [box(1, [0, 0, 9, 9], crowd=1)]])
@pytest.mark.parametrize("detections", [[], [found()], [found((0, 0, 5, 5, 0.5, 0))]])
def test_nothing_to_find_is_no_number_and_is_reported(
    backend: str, annotations: list[dict[str, Any]], detections: list[Found]
) -> None:
    result = scored(truth(annotations, len(detections)), detections, backend)
    assert all(math.isnan(value) for value in result.numbers.values()), result.numbers
    assert result.notes == (f"the {len(detections)} evaluation images have no ground-truth boxes: all scores are NaN",)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", range(5))
def test_a_detection_that_is_not_finite_finds_nothing_and_is_reported(backend: str, value: float, place: int) -> None:
    """By itself pycocotools gives a box of NaN full marks, whatever it is compared with."""
    boxes, score, labels = found((0, 0, 50, 50, 0.9, 0), (300, 300, 400, 400, 0.8, 0))
    table = torch.cat([boxes, score[:, None]], dim=1)
    table[0, place] = value
    result = scored(truth([box(1, [0, 0, 50, 50])]), [(table[:, :4], table[:, 4], labels)], backend)
    assert result.numbers["ap50"] == 0
    assert result.notes == ("dropped 1 of 2 detections with non-finite values",)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_may_be_any_numbers(backend: str) -> None:
    """An annotation of id 0 is a miss for pycocotools, and ids beyond 2^53 are not exact in its arrays."""
    big = 2**60
    ground_truth = truth([box(0, [0, 0, 50, 50], image=big + 1), box(5, [0, 0, 50, 50], image=0)])
    scorer = CocoScorer(ground_truth, IDS, torch.tensor([big + 1, big, 0]))
    scorer.add(torch.tensor([2, 0, 1]), [found((0, 0, 50, 50, 0.9, 0)), found((0, 0, 50, 50, 0.8, 0)), found()])
    assert scorer.result(backend).numbers["ap"] == pytest.approx(1)


def test_only_listed_images_count() -> None:
    ground_truth = truth([box(1, [0, 0, 50, 50], image=1), box(2, [0, 0, 50, 50], image=2)], images=2)
    scorer = CocoScorer(ground_truth, IDS, [2])
    scorer.add(torch.tensor([0]), [found((0, 0, 50, 50, 0.9, 0))])
    result = scorer.result("pycocotools")
    assert (result.numbers["ap"], result.classes[0]["boxes"]) == (pytest.approx(1), 1)


def test_boxes_of_the_input_image_are_scaled_back() -> None:
    ground_truth = truth([box(1, [10, 40, 50, 60], image=1), box(2, [5, 5, 20, 20], image=2)], images=3)
    detections = [found(), found((20, 20, 120, 50, 0.9, 0)), found((15, 15, 75, 75, 0.9, 0))]
    scorer = CocoScorer(ground_truth, IDS, [3, 1, 2])
    scorer.add(torch.arange(3), detections, torch.tensor([[9.0, 9.0], [0.5, 2.0], [3.0, 3.0]]))
    assert scorer.result("pycocotools").numbers["ap"] == pytest.approx(1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scoring_changes_nothing_and_prints_nothing(capfd: pytest.CaptureFixture[str], backend: str) -> None:
    ground_truth, detections = made_up(0)
    before = json.dumps(ground_truth)
    scorer = CocoScorer(ground_truth, IDS, range(1, len(detections) + 1))
    scorer.add(torch.arange(len(detections)), detections)
    assert scorer.result(backend) == scorer.result(backend)
    assert json.dumps(ground_truth) == before
    assert capfd.readouterr() == ("", "")


def test_half_precision_and_gradients_are_taken() -> None:
    boxes, score, labels = found((10, 10, 60, 60, 0.5, 0))
    result = scored(truth([box(1, [10, 10, 50, 50])]), [(boxes.bfloat16(), score.half().requires_grad_(), labels)])
    assert result.numbers["ap"] == pytest.approx(1)


def test_an_image_added_never_or_twice_is_a_bug() -> None:
    scorer = CocoScorer(truth([], images=2), IDS, [1, 2])
    scorer.add(torch.tensor([1]), [found()])
    with pytest.raises(AssertionError, match="1 of 2 images were not added"):
        scorer.result("pycocotools")
    scorer.add(torch.tensor([1]), [found()])
    with pytest.raises(AssertionError, match="an image was added twice"):
        scorer.result("pycocotools")


def _share(ranks: Ranks, seed: int) -> tuple[dict[str, float], tuple[str, ...], list[list[float]]]:
    ground_truth, detections = made_up(seed)
    detections[5][0][0] = math.nan
    scorer = CocoScorer(ground_truth, IDS, range(1, len(detections) + 1))
    with process_group(ranks, torch.device("cpu")):
        for place in range(ranks.rank, len(detections), ranks.world):
            scorer.add(torch.tensor([place]), [detections[place]])
        scorer.merge(ranks)
        result = scorer.result("pycocotools")
    return result.numbers, result.notes, scorer._rows.tolist()


def test_ranks_score_like_one_process() -> None:
    alone = _share(Ranks(), 2)
    assert alone[1] != ()
    assert values(run_ranks(_share, 2)) == [alone, alone]


@pytest.mark.parametrize("chunk", [10_000, 5])
def test_the_results_file_is_cocos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(scores, "_CHUNK", chunk)
    ground_truth, detections = made_up(1)
    (tmp_path / "truth.json").write_text(json.dumps(ground_truth))
    detections = [(boxes.float(), score.float() * 1.1, label) for boxes, score, label in detections]
    scorer = CocoScorer(ground_truth, IDS, range(1, len(detections) + 1))
    scorer.add(torch.arange(len(detections)), detections)
    path = tmp_path / "results.json"
    scorer.write_results(path)
    records = json.loads(path.read_text())
    count = sum(len(labels) for _, _, labels in detections)
    assert len(records) == count > 10
    assert {record["image_id"] for record in records} <= set(range(1, len(detections) + 1))
    assert {record["category_id"] for record in records} <= set(IDS)
    assert list(records[0]) == ["image_id", "category_id", "bbox", "score"]
    assert len(path.read_text().splitlines()) == count + 2, "a line each"
    assert same(scorer.result("pycocotools").numbers, by_files(tmp_path / "truth.json", path))


def test_a_results_file_of_nothing_is_an_empty_list(tmp_path: Path) -> None:
    scorer = CocoScorer(truth([]), IDS, [1])
    scorer.add(torch.tensor([0]), [found()])
    scorer.write_results(tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text()) == []


def test_an_unwritable_results_path_is_refused_at_startup(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^cannot write results to .*out\.csv: .* use the name out\.json$"):
        check_results_path(tmp_path / "out.csv")
    with pytest.raises(OutputError, match=r"^cannot write .*nowhere/out\.json: No such file or directory$"):
        check_results_path(tmp_path / "nowhere" / "out.json")
    check_results_path(tmp_path / "out.json")
    assert list(tmp_path.iterdir()) == []


def test_the_faster_package_is_taken_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (True, False):
        monkeypatch.setattr(scores, "find_spec", lambda _, there=there: object() if there else None)
        assert choose_backend("auto") == ("faster" if there else "pycocotools")
        assert choose_backend("pycocotools") == "pycocotools"
    with pytest.raises(UsageError, match=r"^eval\.backend: faster needs .*: pip install 'w2skd\[coco\]'$"):
        choose_backend("faster")


@pytest.fixture(
    scope="module", params=["coco-tiny/annotations/instances_val2017", "bccd-coco/annotations/instances_val"]
)
def annotations(request: pytest.FixtureRequest, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files as they come: COCO's has crowd regions and gaps between its category ids."""
    name = f"{request.param}.json"
    target = tmp_path_factory.mktemp("annotations")
    with tarfile.open(shared_data / f"{name.partition('/')[0]}.tar.xz") as archive:
        member = next(member for member in archive if member.name == name)
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 or newer
        archive.extract(member, target)
    return target / name


@pytest.mark.shared_data
@pytest.mark.parametrize("backend", BACKENDS)
def test_jittered_ground_truth_of_real_files_scores_as_by_pycocotools_itself(
    annotations: Path, tmp_path: Path, backend: str
) -> None:
    ground_truth = json.loads(annotations.read_text())
    category_ids = sorted(category["id"] for category in ground_truth["categories"])
    image_ids = [image["id"] for image in ground_truth["images"]]
    generator = np.random.default_rng(0)
    records, rows = [], {image_id: [] for image_id in image_ids}
    for one in ground_truth["annotations"]:
        for _ in range(generator.integers(0, 4)):
            x, y, width, height = one["bbox"]
            x1, y1 = x + width * generator.normal(0, 0.06), y + height * generator.normal(0, 0.06)
            x2, y2 = x1 + width * generator.uniform(0.85, 1.2), y1 + height * generator.uniform(0.85, 1.2)
            score = round(float(generator.random()), 2)
            category = one["category_id"] if generator.random() < 0.8 else category_ids[0]
            xywh = [x1, y1, x2 - x1, y2 - y1]
            records.append({"image_id": one["image_id"], "category_id": category, "bbox": xywh, "score": score})
            rows[one["image_id"]].append((x1, y1, x2, y2, score, category_ids.index(category)))
    (tmp_path / "results.json").write_text(json.dumps(records))

    scorer = CocoScorer(ground_truth, category_ids, image_ids)
    for places in torch.arange(len(image_ids)).split(7):
        scorer.add(places, [found(*rows[image_ids[place]]) for place in places])
    numbers = scorer.result(backend).numbers
    expected = by_files(annotations, tmp_path / "results.json")
    assert same(numbers, expected) or backend == "faster", (numbers, expected)
    assert [numbers[name] for name in COCO_METRICS] == pytest.approx(expected, abs=1e-14, nan_ok=True)
    assert 0.2 < numbers["ap"] < 0.95
