import hashlib
import json
import math
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from tiny import assert_same_weights, done, recipe_file
from torch import Tensor
from torchvision.models import Weights as PublishedWeights
from torchvision.models import WeightsEnum
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from w2skd.errors import CheckpointError, RecipeError
from w2skd.models.catalog import build_classifier
from w2skd.weights.imagenet import imagenet_ids
from w2skd.weights.load import Weights, load_into
from w2skd.weights.pretrained import assume_imagenet, load_pretrained

MODEL = "torchvision:squeezenet1_1"
NAMES = torchvision.models.get_model_weights("resnet18").DEFAULT.meta["categories"]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights as the published file of `MODEL`, at its URL; torch's cache is empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    (tmp_path / "server").mkdir()
    fresh = tmp_path / "server" / "fresh.pth"
    torch.manual_seed(0)
    torch.save(build_classifier(MODEL, 1000).state_dict(), fresh)
    file = fresh.rename(fresh.with_name(f"squeezenet1_1-{hashlib.sha256(fresh.read_bytes()).hexdigest()[:8]}.pth"))
    preset = partial(ImageClassification, crop_size=176, resize_size=232, interpolation=InterpolationMode.BICUBIC)

    class Tags(WeightsEnum):
        IMAGENET1K_V1 = PublishedWeights(
            file.as_uri(), preset, {"categories": NAMES, "recipe": "https://a.test/recipe"}
        )
        FEATURES = PublishedWeights(file.as_uri(), preset, {"categories": None})
        DEFAULT = IMAGENET1K_V1

    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: Tags)
    return file


def cached(server: Path) -> Path:
    folder = server.parents[1] / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / server.name


def check_published(weights: Weights, server: Path) -> None:
    assert weights.path == cached(server)
    assert weights.details == {
        "classes": NAMES,
        "class_ids": list(imagenet_ids()),
        "normalization": [0.485, 0.456, 0.406, 0.229, 0.224, 0.225],
        "preprocessing": {"resize_px": 232, "crop_px": 176, "interpolation": "bicubic"},
        "source": "torchvision squeezenet1_1 IMAGENET1K_V1",
        "url": server.as_uri(),
        "recipe_url": "https://a.test/recipe",
    }
    load_into(build_classifier(MODEL, 1000), weights, expected=MODEL)


@pytest.mark.parametrize("tag", [None, "IMAGENET1K_V1", "DEFAULT"])
def test_weights_are_read_from_torchs_cache_with_their_preprocessing(tag: str | None, server: Path) -> None:
    shutil.move(server, cached(server))
    check_published(load_pretrained(MODEL, tag), server)


def test_missing_weights_are_downloaded_once(server: Path) -> None:
    check_published(load_pretrained(MODEL), server)
    server.unlink()
    check_published(load_pretrained(MODEL), server)
    assert [path.name for path in cached(server).parent.iterdir() if path.name[0] != "."] == [server.name]


def test_a_failed_download_explains_how_to_provide_the_file(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise URLError(OSError(-2, "Name or service not known"))

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(MODEL)
    assert str(caught.value) == (
        f"torchvision squeezenet1_1 IMAGENET1K_V1: {server.name} is not in {cached(server).parent}, and downloading "
        f"it failed ([Errno -2] Name or service not known); download {server.as_uri()} on another machine and copy it "
        "into that folder (set by TORCH_HOME), or use your own file (teacher.checkpoint; evaluate: --checkpoint)"
    )


def test_a_failed_download_lists_cached_weights_of_the_same_model(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise URLError(OSError(-2, "Name or service not known"))

    class Tags(WeightsEnum):
        OLD = PublishedWeights(
            "http://a.test/old.pth", partial(ImageClassification, crop_size=8), {"categories": NAMES}
        )
        NEW = PublishedWeights(
            "http://a.test/new.pth", partial(ImageClassification, crop_size=8), {"categories": NAMES}
        )
        NEVER = PublishedWeights(
            "http://a.test/x.pth", partial(ImageClassification, crop_size=8), {"categories": NAMES}
        )
        DEFAULT = NEW

    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: Tags)
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    cached(server).with_name("old.pth").touch()
    with pytest.raises(CheckpointError, match=r"; cached weights of the same model: pretrained:OLD$"):
        load_pretrained(MODEL)


def test_a_file_with_a_wrong_checksum_is_rejected_and_not_kept(server: Path) -> None:
    true = hashlib.sha256(b"cut off").hexdigest()[:8]
    server.write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match=r"downloading it failed \(invalid hash value"):
        load_pretrained(MODEL)
    assert not cached(server).exists()
    shutil.move(server, cached(server))
    with pytest.raises(CheckpointError, match=rf"damaged or a different file: its SHA-256 begins with {true}, unlike"):
        load_pretrained(MODEL)


def test_an_unwritable_cache_is_reported(server: Path) -> None:
    folder = cached(server).parent
    folder.rmdir()
    folder.write_text("a file in the folder's place")
    with pytest.raises(CheckpointError, match=r"downloading it failed \(.*File exists"):
        load_pretrained(MODEL)


@pytest.mark.parametrize(
    ("model", "tag", "problem"),
    [
        ("cifar_resnet8", None, "has no published weights; models that can have them: torchvision:, timm:"),
        ("torchvision:resnet81", None, "torchvision has no classifier 'resnet81' .did you mean 'resnet"),
        ("torchvision:fasterrcnn_resnet50_fpn", None, "torchvision has no classifier"),
        ("torchvision:resnet50", "IMAGENET1K_V3", "no weights 'IMAGENET1K_V3' of resnet50 .did you mean.* V1.*V2"),
        ("torchvision:vgg16", "IMAGENET1K_FEATURES", "have no classifier: choose others"),
    ],
)
def test_unknown_weights_are_rejected(model: str, tag: str | None, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem.replace(" V1", " IMAGENET1K_V1")):
        load_pretrained(model, tag)


def test_a_bare_file_of_a_known_model_is_assumed_to_be_imagenets() -> None:
    weights = Weights(Path("mine.pth"), {}, details={"layout": "model", "classes": ["a"]})
    details = assume_imagenet(weights, "torchvision:mobilenet_v2").details
    assert (details["layout"], details["classes"]) == ("model", ["a"]), "the file's own details take precedence"
    assert details["class_ids"] == list(imagenet_ids())
    assert details["preprocessing"] == {"resize_px": 232, "crop_px": 224, "interpolation": "bilinear"}
    assert details["source"] == "assumed to be trained as torchvision mobilenet_v2 IMAGENET1K_V2"
    assert details["assumed"] is True
    assert "url" not in details


def test_a_published_file_is_recognised_in_any_folder(server: Path) -> None:
    details = assume_imagenet(Weights(server, {}), MODEL).details
    assert details["source"] == "torchvision squeezenet1_1 IMAGENET1K_V1"
    assert "assumed" not in details
    server.write_bytes(b"another file of the same name")
    assert assume_imagenet(Weights(server, {}), MODEL).details["assumed"] is True


def test_every_classifier_of_torchvision_has_its_preprocessing() -> None:
    for name in torchvision.models.list_models(module=torchvision.models):
        preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        details = assume_imagenet(Weights(Path("x.pth"), {}), f"torchvision:{name}").details
        assert len(details["classes"]) == len(details["class_ids"]) == 1000
        prepared = details["preprocessing"]
        assert [prepared["resize_px"], prepared["crop_px"]] == [*preset.resize_size, *preset.crop_size], name
        assert prepared["interpolation"] == preset.interpolation.value
        if name not in ("googlenet", "inception_v3"):
            assert details["normalization"] == [*preset.mean, *preset.std]


def test_models_that_renormalise_their_input_get_images_renormalised_alike() -> None:
    published = torchvision.models.googlenet(transform_input=True, init_weights=False)
    preset = torchvision.models.get_model_weights("googlenet").DEFAULT.transforms()
    pixels = torch.rand(1, 3, 8, 8)
    details = assume_imagenet(Weights(Path("x.pth"), {}), "torchvision:googlenet").details
    mean, std = torch.tensor(details["normalization"]).reshape(2, 1, 3, 1, 1)
    preset_mean, preset_std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (preset.mean, preset.std))
    seen = published._transform_input((pixels - preset_mean) / preset_std)
    torch.testing.assert_close((pixels - mean) / std, seen)


TINY = "timm:test_resnet"
REPOSITORY = "timm/test_resnet.r160_in1k"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hugging Face Hub, which is unreachable."""
    pytest.importorskip("timm")
    import huggingface_hub

    def no_network(*_: object, **__: object) -> None:
        raise huggingface_hub.errors.LocalEntryNotFoundError("Please check your connection") from OSError("no network")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_network)
    return tmp_path / "hub"


def put_into(hub: Path, repository: str, state: dict[str, Tensor]) -> Path:
    folder = hub / f"models--{repository.replace('/', '--')}"
    file = folder / "snapshots" / "0123" / "model.safetensors"
    file.parent.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123")
    save_file(state, file)
    return file


def timm_state(name: str) -> dict[str, Tensor]:
    import timm

    torch.manual_seed(3)
    return dict(timm.create_model(name).state_dict())


@pytest.mark.parametrize(("model", "tag"), [(TINY, None), (TINY, "r160_in1k"), (f"{TINY}.r160_in1k", None)])
def test_timms_weights_are_read_from_the_hubs_cache(model: str, tag: str | None, hub: Path) -> None:
    state = timm_state("test_resnet")
    file = put_into(hub, REPOSITORY, state)
    torch.manual_seed(7)
    weights = load_pretrained(model, tag)
    drawn = torch.rand(())
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(())), "loading changes the caller's random draws"
    assert weights.path == file
    assert_same_weights(weights.state, state)
    assert weights.details == {
        "classes": NAMES,
        "class_ids": list(imagenet_ids()),
        "normalization": [0.5] * 6,
        "preprocessing": {"resize_px": 168, "crop_px": 160, "interpolation": "bilinear"},
        "source": "timm test_resnet r160_in1k",
        "url": f"https://huggingface.co/{REPOSITORY}",
        "license": "apache-2.0",
    }


def test_weights_in_their_authors_format_are_converted_to_timms(hub: Path) -> None:
    state = timm_state("test_vit")
    name = "patch_embed.proj.weight"
    put_into(hub, "timm/test_vit.r160_in1k", state | {name: state[name].flatten(1)})
    assert_same_weights(load_pretrained("timm:test_vit").state, state)


def test_a_file_of_another_model_is_rejected(hub: Path) -> None:
    put_into(hub, REPOSITORY, timm_state("test_vit"))
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: not the weights of timm's test_resnet: .*"
    ) as caught:
        load_pretrained(TINY)
    assert "\n" not in str(caught.value)


def test_without_the_hub_the_error_explains_how_to_provide_the_file(hub: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(TINY)
    assert str(caught.value) == (
        f"timm test_resnet r160_in1k: {REPOSITORY} of the Hugging Face Hub is not in {hub}, and downloading it failed "
        f"(no network); run `hf download {REPOSITORY}` on another machine and copy what it adds to its cache into that "
        "folder (set by HF_HOME), or use your own file (teacher.checkpoint; evaluate: --checkpoint)"
    )


@pytest.mark.parametrize(
    ("model", "tag", "problem"),
    [
        ("timm:test_resnot", None, "timm has no model 'test_resnot' .did you mean 'test_resnet'"),
        (TINY, "r161_in1k", "no weights 'r161_in1k' of test_resnet .did you mean 'r160_in1k'.*; it has r160_in1k"),
        (f"{TINY}.r160_in1k", "other", "names other weights than the tag 'other'"),
        ("timm:vit_small_patch14_dinov2", None, "have no classifier; weights with one: none"),
    ],
)
def test_unknown_weights_of_timm_are_rejected(model: str, tag: str | None, problem: str, hub: Path) -> None:
    with pytest.raises(RecipeError, match=problem):
        load_pretrained(model, tag)


def test_without_timm_installed_its_models_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(RecipeError, match="timm:test_resnet needs timm, which is not installed: pip install"):
        load_pretrained(TINY)


def test_timms_preprocessing_matches_timms_own(hub: Path) -> None:
    import timm
    from timm.data import create_transform, resolve_data_config

    for name in ("resnet50.a1_in1k", "convnext_tiny.in12k", "mobilenetv3_small_100.lamb_in1k", "vit_base_patch16_384"):
        details = assume_imagenet(Weights(Path("x.safetensors"), {}), f"timm:{name}").details
        config: dict[str, Any] = timm.get_pretrained_cfg(name).to_dict()
        resize, crop = create_transform(**resolve_data_config(pretrained_cfg=config)).transforms[:2]
        prepared = details["preprocessing"]
        assert (prepared["resize_px"], (prepared["crop_px"],) * 2) == (resize.size, crop.size)
        assert prepared["interpolation"] == resize.interpolation.value
        assert details["class_ids"] == list(imagenet_ids())
        assert math.isfinite(sum(details["normalization"]))


def test_ids_match_timms(hub: Path) -> None:
    from timm.data import ImageNetInfo

    assert list(imagenet_ids()) == ImageNetInfo().label_names()


def test_evaluate_scores_published_weights_prediction_by_prediction_as_their_preset_does(
    server: Path, tmp_path: Path
) -> None:
    shutil.move(server, cached(server))
    names = [imagenet_ids()[0], imagenet_ids()[217]]
    draw = np.random.default_rng(0)
    for part, count in (("train", 1), ("test", 6)):
        for name in names:
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for index in range(count):
                sides = draw.integers(60, 300, 2)
                coarse = draw.integers(0, 256, (5, 4, 3), dtype=np.uint8)
                image = Image.fromarray(coarse).resize(tuple(sides.tolist()), Image.Resampling.BICUBIC)
                image.save(tmp_path / "images" / part / name / f"{index}.jpg", quality=90)
    data = f"data={{source: image_folder, root: {tmp_path / 'images'}, image_size: 32, workers: 0}}"
    # Neither the recipe's size nor its precision nor its interpolation is theirs.
    settings = ("--set", data, "--set", "train.precision=bf16", "--set", "train.batch_size=2")
    written = tmp_path / "predictions.jsonl"
    done("evaluate", "-m", MODEL, "-r", recipe_file(tmp_path), *settings, "--predictions", written)

    preset = torchvision.models.get_model_weights(MODEL).DEFAULT.transforms()
    model = build_classifier(MODEL, 1000).eval()
    load_into(model, load_pretrained(MODEL), expected=MODEL)
    rows = [json.loads(line) for line in written.read_text().splitlines()]
    assert [row["example"] for row in rows] == [f"test/{name}/{index}.jpg" for name in names for index in range(6)]
    for row in rows:
        image = Image.open(tmp_path / "images" / row["example"]).convert("RGB")
        with torch.no_grad():
            shares = model(preset(image)[None])[0, [0, 217]].softmax(0)
        assert row["predicted"] == names[int(shares.argmax())]
        assert row["confidence"] == pytest.approx(shares.max().item(), abs=1e-5)
    assert len({row["confidence"] for row in rows}) == len(rows)
