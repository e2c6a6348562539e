"""Features of classifiers and of torch-fidelity's networks, and weights that are refused."""

import fcntl
import hashlib
import os
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch_fidelity import calculate_metrics, feature_extractor_clip
from torch_fidelity.datasets import RandomlyGeneratedDataset
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from benchmarks.timing.random_inception import write_random_inception
from w2skd.errors import CheckpointError, RecipeError
from w2skd.models.small_cnn import SmallCnn
from w2skd.tasks.diffusion import features
from w2skd.tasks.diffusion.classifier_features import ClassifierFeatures, classifier_extractor
from w2skd.tasks.diffusion.features import Extractor, open_extractor
from w2skd.tasks.diffusion.fid import FidScorer
from w2skd.tasks.diffusion.recipe import FEATURE_EXTRACTORS
from w2skd.tasks.diffusion.reference import open_reference

INCEPTION = "inception-v3-compat"
IMAGES = torch.randint(0, 256, (10, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def scaled(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1


def of_classifier(model: nn.Module, fingerprint: str = "ab", batch_size: int = 64, size_px: int = 16) -> Extractor:
    found = ClassifierFeatures("checkpoint:runs/a", model, scaled, fingerprint)
    return classifier_extractor(found, device="cpu", batch_size=batch_size, size_px=size_px)


def small_cnn() -> SmallCnn:
    torch.manual_seed(0)
    return SmallCnn((8, 12), 10)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_inception(tmp_path_factory.mktemp("inception") / "inception.pth")


@pytest.fixture(scope="module")
def inception(inception_file: Path) -> Extractor:
    return open_extractor(INCEPTION, inception_file, device="cpu", batch_size=4)


def altered(file: Path, change: Callable[[dict[str, Any]], None], to: Path) -> Path:
    state = torch.load(file, weights_only=True)
    change(state)
    torch.save(state, to)
    return to


def test_a_recipes_extractors_are_torch_fidelitys() -> None:
    of_classifier(small_cnn())
    registered = (name for name in FEATURE_EXTRACTORS_REGISTRY if not name.startswith("w2skd-"))
    assert tuple(registered) == FEATURE_EXTRACTORS


def test_a_classifiers_features_are_the_inputs_of_its_last_linear_layer() -> None:
    model = small_cnn()
    extractor = of_classifier(model)
    found = extractor(IMAGES)
    slow = model.double().features(scaled(IMAGES).double()).mean(dim=(2, 3))
    assert extractor.dimensions == 12
    assert extractor.weights == "ab"
    assert extractor.name == "checkpoint:runs/a"
    assert (found.dtype, found.shape) == (torch.float32, (10, 12))
    assert torch.allclose(found.double(), slow, atol=1e-5)
    assert float(slow.std()) > 0.01


def test_dropout_and_batch_normalisation_are_in_eval_mode_and_unchanged() -> None:
    model = nn.Sequential(small_cnn().features, nn.Flatten(), nn.Dropout(0.5), nn.Linear(12 * 16, 10)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    extractor = of_classifier(model)
    assert torch.equal(extractor(IMAGES), extractor(IMAGES))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model[-1]._forward_pre_hooks  # other callers of the model are not affected


def test_the_callers_modes_do_not_change_features() -> None:
    model = small_cnn()
    extractor = of_classifier(model)
    plain = extractor(IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(model.features(scaled(IMAGES)).mean(dim=(2, 3)).float(), plain)  # a plain forward
        assert torch.equal(extractor(IMAGES), plain)
    with torch.inference_mode():
        found = extractor(IMAGES + 0)
        assert not found.is_inference()
        assert torch.equal(found, plain)
    assert not plain.requires_grad


def test_features_do_not_depend_on_the_batch_size() -> None:
    whole, parts = (of_classifier(small_cnn(), batch_size=size) for size in (64, 3))
    assert torch.allclose(whole(IMAGES), parts(IMAGES), atol=1e-5)
    assert torch.allclose(whole(IMAGES)[4:5], parts(IMAGES[4:5]), atol=1e-5)
    assert whole(IMAGES[:0]).shape == (0, 12)


@pytest.mark.parametrize("images", [IMAGES.float(), IMAGES[:, :1], IMAGES[0]])
def test_anything_but_a_batch_of_uint8_rgb_images_is_refused(images: Tensor) -> None:
    with pytest.raises(AssertionError):
        of_classifier(small_cnn())(images)


def test_a_classifier_without_a_linear_layer_is_refused() -> None:
    with pytest.raises(CheckpointError, match="checkpoint:runs/a: has no linear layer whose inputs"):
        of_classifier(nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))


class Tokens(nn.Module):
    """Classifies every patch and averages the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 8, stride=8)
        self.head = nn.Linear(4, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.patches(images).flatten(2).transpose(1, 2)).mean(1)  # type: ignore[no-any-return]


class Idle(nn.Module):
    """Has an unused linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 10, 16)
        self.auxiliary = nn.Linear(10, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images).flatten(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("model", "found"), [(Tokens, r"head, got \(1, 4, 4\)"), (Idle, r"auxiliary, was not called")])
def test_a_classifier_whose_features_are_not_one_row_per_image_is_refused(
    model: Callable[[], nn.Module], found: str
) -> None:
    with pytest.raises(
        CheckpointError, match=f"checkpoint:runs/a: its last linear layer, {found}, not one row per image"
    ):
        of_classifier(model())


def test_a_classifier_with_non_finite_features_is_refused_at_construction() -> None:
    model = small_cnn()
    next(model.parameters()).data[0] = float("nan")
    with pytest.raises(CheckpointError, match=r"^checkpoint:runs/a: has non-finite features for an image of 8 px$"):
        of_classifier(model, size_px=8)


def test_a_classifier_is_tried_on_images_of_the_size_that_it_will_see() -> None:
    def of_16_px() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))

    assert of_classifier(of_16_px(), size_px=16).dimensions == 768
    with pytest.raises(CheckpointError, match=r"^checkpoint:runs/a: cannot process images of 8 px \(mat1 and mat2"):
        of_classifier(of_16_px(), size_px=8)


@pytest.mark.parametrize("extension", ["", "-other"])
def test_torch_fidelity_by_itself_gives_the_same_numbers_in_a_classifiers_features(
    tmp_path: Path, extension: str
) -> None:
    fingerprint = f"cafe{extension}"

    class Registered(ClassifierFeatures):
        """Constructed by torch-fidelity."""

        def __init__(self, *_: Any, **__: Any):
            super().__init__("checkpoint:runs/a", small_cnn(), scaled, fingerprint)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "penultimate"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

    extractor = of_classifier(small_cnn(), fingerprint)
    assert extractor.network_name == f"w2skd-cafe{extension}"
    register_feature_extractor(extractor.network_name, Registered)
    real, fake = (RandomlyGeneratedDataset(count, 3, 16, 16, seed=count) for count in (80, 60))
    theirs = calculate_metrics(
        input1=fake,
        input2=real,
        feature_extractor=extractor.network_name,
        fid=True,
        kid=True,
        kid_subset_size=50,
        batch_size=64,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    reference = open_reference(extractor, lambda: [real.imgs], key={}, cache=tmp_path)
    scorer = FidScorer(reference, extractor, kid_subset_size=50)
    scorer.add(torch.arange(60), fake.imgs)
    ours = scorer.result()
    assert ours.fid == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)
    assert ours.kid == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-5)
    assert ours.kid_std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-5)
    assert ours.fid > 0.001


def test_a_classifier_may_be_opened_twice() -> None:
    first, second = of_classifier(small_cnn(), "twice"), of_classifier(small_cnn(), "twice")
    assert torch.equal(first(IMAGES), second(IMAGES))


def test_inceptions_features_are_torch_fidelitys_own(inception: Extractor, inception_file: Path) -> None:
    own = create_feature_extractor(
        INCEPTION, ["2048"], cuda=False, verbose=False, feature_extractor_weights_path=str(inception_file)
    )
    with torch.no_grad():
        (expected,) = own(IMAGES[:3])
    assert torch.equal(inception(IMAGES[:3]), expected)
    assert float(expected.std(0).mean()) > 1e-3
    assert inception.dimensions == 2048
    assert inception.network_name == INCEPTION
    assert inception.weights == hashlib.sha256(inception_file.read_bytes()).hexdigest()


def test_weights_can_be_safetensors(inception: Extractor, inception_file: Path, tmp_path: Path) -> None:
    save_file(torch.load(inception_file, weights_only=True), tmp_path / "inception.safetensors")
    other = open_extractor(INCEPTION, tmp_path / "inception.safetensors", device="cpu", batch_size=4)
    assert torch.equal(other(IMAGES[:1]), inception(IMAGES[:1]))


def test_opening_does_not_advance_the_callers_generator(inception_file: Path) -> None:
    torch.manual_seed(5)
    open_extractor(INCEPTION, inception_file, device="cpu", batch_size=4)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


def test_files_without_batch_norm_counters_are_accepted(inception_file: Path, tmp_path: Path) -> None:
    def uncount(state: dict[str, Any]) -> None:
        for name in [name for name in state if name.endswith("num_batches_tracked")]:
            del state[name]

    file = altered(inception_file, uncount, tmp_path / "old.pth")
    assert open_extractor(INCEPTION, file, device="cpu", batch_size=4).dimensions == 2048


def without_its_last(state: dict[str, Any]) -> None:
    del state["fc.bias"]


def with_another_tensor(state: dict[str, Any]) -> None:
    state["fc.extra"] = torch.zeros(1)


def of_torchvision(state: dict[str, Any]) -> None:
    state |= {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}


def not_finite(state: dict[str, Any]) -> None:
    state["fc.bias"][3] = float("nan")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (without_its_last, "not the weights of inception-v3-compat: fc.bias is missing"),
        (with_another_tensor, "not the weights of inception-v3-compat: fc.extra is unknown"),
        (
            of_torchvision,
            r"not the weights of inception-v3-compat: fc.weight is \(1000, 2048\), expected \(1008, 2048\), and 1 more",
        ),
        (not_finite, "fc.bias is not finite: "),
    ],
)
def test_inception_weights_are_checked_for_names_shapes_and_values(
    inception_file: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], problem: str
) -> None:
    file = altered(inception_file, change, tmp_path / "wrong.pth")
    with pytest.raises(CheckpointError, match=f"^{file}: {problem}"):
        open_extractor(INCEPTION, file, device="cpu", batch_size=4)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(small_cnn().state_dict(), tmp_path / "small.pth")
    for name, first in (
        (INCEPTION, r"Conv2d_1a_3x3.conv.weight is missing"),
        ("vgg16", r"features.0.weight is \(8, 3"),
    ):
        with pytest.raises(CheckpointError, match=rf"not the weights of {name}: {first}.*, and \d+ more names or"):
            open_extractor(name, tmp_path / "small.pth", device="cpu", batch_size=4)


class Trap:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_file_with_code_is_refused_without_running_it(tmp_path: Path) -> None:
    torch.save({"fc.bias": Trap(tmp_path / "caught")}, tmp_path / "trap.pth")
    (tmp_path / "trap.pkl").write_bytes(pickle.dumps(Trap(tmp_path / "caught"), protocol=2))
    for name in ("trap.pth", "trap.pkl"):
        with pytest.raises(CheckpointError, match=f"{name}: (refused: it contains pickled code|damaged or not)"):
            open_extractor(INCEPTION, tmp_path / name, device="cpu", batch_size=4)
    assert not (tmp_path / "caught").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"cut{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)({"a": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match=f"^{file}: damaged"):
        open_extractor(INCEPTION, file, device="cpu", batch_size=4)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"fc.bias": 3}, {3: torch.zeros(1)}, torch.zeros(1)])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="not the weights of inception-v3-compat: expected a state dict"):
        open_extractor(INCEPTION, tmp_path / "other.pth", device="cpu", batch_size=4)


@pytest.mark.parametrize("name", [INCEPTION, "vgg16", "clip-rn50"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    for path in (tmp_path / "nothing.pth", tmp_path):
        with pytest.raises(CheckpointError, match=f"^fid.weights: {path}: no such file$"):
            open_extractor(name, path, device="cpu", batch_size=4)


def test_offline_the_error_says_how_to_get_inceptions_weights_or_avoid_them(offline: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_extractor(INCEPTION, None, device="cpu", batch_size=4)
    assert str(caught.value) == (
        f"weights of inception-v3-compat: weights-inception-2015-12-05-6726825d.pth is not in {offline}, and "
        "downloading it failed ([Errno -2] Name or service not known); download "
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth "
        "on another machine and copy it into that folder (set by TORCH_HOME), or set fid.weights to the file, or set "
        "fid.extractor to checkpoint:RUN, a classifier trained with w2skd, which needs no download"
    )


def test_weights_come_from_torchs_cache(
    offline: Path, inception: Extractor, inception_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline.mkdir(parents=True)
    name = f"weights-{inception.weights[:8]}.pth"
    (offline / name).symlink_to(inception_file)
    monkeypatch.setattr(features, "_URLS", {INCEPTION: f"https://a.test/{name}"})
    assert open_extractor(INCEPTION, None, device="cpu", batch_size=4).weights == inception.weights


def test_a_cached_file_with_the_wrong_checksum_is_refused(offline: Path) -> None:
    offline.mkdir(parents=True)
    (offline / "weights-inception-2015-12-05-6726825d.pth").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match="damaged or a different file: its SHA-256 begins with"):
        open_extractor(INCEPTION, None, device="cpu", batch_size=4)


def test_vgg_weights_can_be_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def narrow() -> nn.Module:
        body = [nn.Conv2d(3, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 8), nn.ReLU()]
        layers = {"features": nn.Sequential(*body), "classifier": nn.Sequential(*(nn.Linear(8, 8) for _ in range(7)))}
        return nn.Sequential(OrderedDict(layers))

    monkeypatch.setattr(torchvision.models, "vgg16", narrow)
    monkeypatch.setattr(features, "vgg16", narrow)
    torch.save(narrow().state_dict(), tmp_path / "vgg.pth")
    extractor = open_extractor("vgg16", tmp_path / "vgg.pth", device="cpu", batch_size=4)
    assert extractor.dimensions == 8
    assert float(extractor(IMAGES).min()) >= 0  # its layer for FID is after the ReLU


class ClipFile(nn.Module):
    """The parts of OpenAI's files that torch-fidelity reads."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = feature_extractor_clip.VisionTransformer(32, 16, 64, 1, 1, 8)
        self.text_projection = nn.Parameter(torch.zeros(4, 8))

    def forward(self, images: Tensor) -> Tensor:
        return self.visual(images)  # type: ignore[no-any-return]


@pytest.fixture
def clip_file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(ClipFile().eval(), torch.zeros(1, 3, 32, 32)).save(str(tmp_path / "clip.pt"))
    return tmp_path / "clip.pt"


def test_clip_is_loaded_from_openais_file_only(clip_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"clip.pt: not OpenAI's file of clip-rn50; .* \(SHA-256 afeb0e10f9e"):
        open_extractor("clip-rn50", clip_file, device="cpu", batch_size=4)
    own = hashlib.sha256(clip_file.read_bytes()).hexdigest()
    monkeypatch.setitem(feature_extractor_clip.MODEL_METADATA, "clip-vit-b-32", {"hash": own, "filename": "ViT-B-32"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extractor = open_extractor("clip-vit-b-32", clip_file, device="cpu", batch_size=4)
    assert (extractor.dimensions, extractor.weights) == (8, own)
    assert extractor(IMAGES).std() > 1e-3


def test_clip_is_cached_where_torch_fidelity_keeps_it(
    clip_file: Path, offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        CheckpointError,
        match=r"ViT-B-32.pt on another machine and copy it into that folder as clip-vit-b-32-40d365715.*",
    ):
        open_extractor("clip-vit-b-32", None, device="cpu", batch_size=4)
    own = hashlib.sha256(clip_file.read_bytes()).hexdigest()
    monkeypatch.setitem(feature_extractor_clip.MODEL_METADATA, "clip-vit-b-32", {"hash": own, "filename": "ViT-B-32"})
    clip_file.rename(offline / f"clip-vit-b-32-{own}.pt")
    assert open_extractor("clip-vit-b-32", None, device="cpu", batch_size=4).weights == own


def test_a_clip_that_torch_fidelity_cannot_load_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "clip.pt"
    file.write_bytes(b"cut off")
    own = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(feature_extractor_clip.MODEL_METADATA, "clip-vit-b-32", {"hash": own, "filename": "ViT-B-32"})
    with pytest.raises(CheckpointError, match=f"^{file}: cannot load clip-vit-b-32 "):
        open_extractor("clip-vit-b-32", file, device="cpu", batch_size=4)


def test_dinov2_takes_no_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"fid.weights: dinov2-vit-s-14 takes no file"):
        open_extractor("dinov2-vit-s-14", tmp_path / "x.pth", device="cpu", batch_size=4)


def test_offline_the_error_says_what_dinov2_needs_in_the_cache(offline: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_extractor("dinov2-vit-s-14", None, device="cpu", batch_size=4)
    message = str(caught.value)
    assert message.startswith(f"{offline.parent}: cannot load dinov2-vit-s-14 (")
    assert "facebookresearch_dinov2_main" in message
    assert "fid.extractor to checkpoint:RUN" in message
    assert "fid.weights" not in message  # it takes no file
    assert "\n" not in message


def test_dinov2_comes_from_torchs_hub(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    monkeypatch.setattr(torch.hub, "load", lambda *_: network)
    extractor = open_extractor("dinov2-vit-s-14", None, device="cpu", batch_size=4)
    assert extractor.dimensions == 12
    assert len(extractor.weights) == 64


def test_ranks_load_dinov2_from_the_hub_one_at_a_time(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> nn.Module:
        """torch.hub unpacks into one folder without locking it."""
        (lock,) = offline.parent.glob(".*.lock")
        with lock.open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return nn.Flatten()

    monkeypatch.setattr(torch.hub, "load", load)
    open_extractor("dinov2-vit-s-14", None, device="cpu", batch_size=4)
    (lock,) = offline.parent.glob(".*.lock")
    with lock.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released after loading


def test_dinov2_is_loaded_from_a_read_only_hub(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline.parents[1].write_text("in the way")
    monkeypatch.setattr(torch.hub, "load", lambda *_: nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()))
    assert open_extractor("dinov2-vit-s-14", None, device="cpu", batch_size=4).dimensions == 12
