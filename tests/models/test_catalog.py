import pytest
import torch

from w2skd.errors import RecipeError
from w2skd.models import names
from w2skd.models.catalog import CLASSIFIERS, ELSEWHERE, build_classifier
from w2skd.models.measure import count_parameters


def test_names_match_the_catalog():
    assert tuple(CLASSIFIERS) == names.CLASSIFIERS
    assert tuple(ELSEWHERE) == tuple(names.MODEL_PREFIXES)


def test_the_small_pair_is_small():
    assert 20_000 <= count_parameters(build_classifier("small_cnn_weak", 10)) <= 40_000
    assert 250_000 <= count_parameters(build_classifier("small_cnn_strong", 10)) <= 350_000


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name not in ("cifar_resnet110", "wrn_28_10")])
def test_every_model_trains_in_either_memory_format(name):
    torch.manual_seed(0)
    model = build_classifier(name, 7, 32).train()
    images = torch.randn(4, 3, 32, 32)
    logits = model(images)
    assert logits.shape == (4, 7)
    logits.logsumexp(dim=1).mean().backward()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in learned)
    model.to(memory_format=torch.channels_last)
    last = model(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, logits, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["cifar_resnet8", "wrn_16_2", "cifar_vit", "timm:resnet10t"])
def test_initialisation_comes_from_the_global_generator(name):
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([parameter.detach().flatten() for parameter in build_classifier(name, 5).parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_testing_a_size_does_not_change_later_random_draws():
    drawn = []
    for image_size_px in (None, 32):
        torch.manual_seed(0)
        model = build_classifier("cifar_resnet8", 5, image_size_px)
        drawn.append((torch.rand(3), model.state_dict()["norm.running_mean"]))
    torch.testing.assert_close(*drawn, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar_resnet21", "unknown model 'cifar_resnet21' \\(did you mean 'cifar_resnet"),
        ("resnet50", "did you mean 'torchvision:resnet50' or 'timm:resnet50'"),
        ("torchvison:resnet18", "did you mean 'torchvision'"),
    ],
)
def test_unknown_models_are_rejected(name, message):
    with pytest.raises(RecipeError, match=message):
        build_classifier(name, 10)


@pytest.mark.parametrize(
    ("name", "image_size_px", "reason"),
    [
        ("cifar_vit", 30, "its patches have 4 px; use 28 or 32 px"),
        ("small_cnn_strong", 8, "Output size is too small"),
        ("torchvision:alexnet", 32, "Output size is too small"),
    ],
)
def test_an_unsupported_size_is_rejected_in_one_line(name, image_size_px, reason):
    with torch.device("meta"), pytest.raises(RecipeError) as caught:
        build_classifier(name, 3, image_size_px)
    message = str(caught.value)
    assert message.startswith(f"{name} cannot process images of {image_size_px} px: ")
    assert reason in message
    assert "\n" not in message
