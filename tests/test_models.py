import pytest
import torch
from torch import nn

from w2skd.errors import RecipeError
from w2skd.models.catalog import CLASSIFIERS, build_classifier
from w2skd.models.measure import count_parameters, forward_flops
from w2skd.recipe import names


def test_recipes_know_the_catalogs_names():
    assert tuple(CLASSIFIERS) == names.CLASSIFIERS


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("cifar_resnet20", 10, 269_722),
        ("cifar_resnet32", 10, 464_154),
        ("cifar_resnet44", 10, 658_586),
        ("cifar_resnet56", 10, 853_018),
        ("cifar_resnet110", 10, 1_727_962),
        ("torchvision:resnet18", 1000, 11_689_512),
    ],
)
def test_parameters_as_published(name, classes, parameters):
    assert count_parameters(build_classifier(name, classes)) == parameters


def test_the_small_pair_is_small():
    assert 20_000 <= count_parameters(build_classifier("small_cnn_weak", 10)) <= 40_000
    assert 250_000 <= count_parameters(build_classifier("small_cnn_strong", 10)) <= 350_000


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name != "cifar_resnet110"])
def test_every_model_trains_in_either_memory_format(name):
    torch.manual_seed(0)
    model = build_classifier(name, 7).train()
    images = torch.randn(4, 3, 32, 32)
    logits = model(images)
    assert logits.shape == (4, 7)
    logits.logsumexp(dim=1).mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    model.to(memory_format=torch.channels_last)
    last = model(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, logits, atol=1e-3, rtol=1e-3)


def test_initialisation_comes_from_the_global_generator():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat(
            [parameter.detach().flatten() for parameter in build_classifier("cifar_resnet8", 5).parameters()]
        )

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_a_shortcut_takes_every_second_pixel_and_pads_with_zeros():
    block = build_classifier("cifar_resnet8", 10).stage2[0].eval()
    nn.init.zeros_(block.norm2.weight)  # silences the convolutions: what is left is the shortcut
    images = torch.rand(2, 16, 32, 32)
    out = block(images)
    assert out.shape == (2, 32, 16, 16)
    assert torch.equal(out[:, 8:24], images[:, :, ::2, ::2])
    assert out[:, :8].abs().sum() == out[:, 24:].abs().sum() == 0


def test_depth_counts_the_layers_with_weights():
    model = build_classifier("cifar_resnet56", 10)
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == 56


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar_resnet21", "did you mean 'cifar_resnet"),
        ("torchvision:resnet81", "did you mean 'resnet"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no classifier 'fasterrcnn_resnet50_fpn'"),
        ("torchvision:", "no classifier ''"),
    ],
)
def test_unknown_models_are_refused(name, message):
    with pytest.raises(RecipeError, match=message):
        build_classifier(name, 10)


@pytest.mark.filterwarnings("error")
def test_auxiliary_heads_are_left_out():
    assert isinstance(build_classifier("torchvision:inception_v3", 4)(torch.randn(2, 3, 299, 299)), torch.Tensor)


def test_flops_of_layers_worked_out_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 5)
    )
    expected = 2 * 8 * 6 * 6 * 3 * 9 + 2 * 8 * 6 * 6 * 5
    for examples in (1, 4):
        assert forward_flops(model, (torch.randn(examples, 3, 6, 6),)) == expected


def test_flops_of_resnet20_as_published():
    # He et al. count 40.8 million multiply-adds.
    flops = forward_flops(build_classifier("cifar_resnet20", 10), (torch.randn(1, 3, 32, 32),))
    assert flops / 2 == pytest.approx(40.8e6, rel=0.01)


def test_counting_flops_leaves_the_model_as_it_was():
    model = build_classifier("small_cnn_weak", 10).train()
    model.features[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    forward_flops(model, (torch.randn(2, 3, 32, 32),))
    assert [module.training for module in (model, model.features[0], model.features[1])] == [True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
