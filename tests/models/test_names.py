import pytest

from w2skd.models.names import CLASSIFIERS, is_classifier, unknown_classifier


@pytest.mark.parametrize(
    "name",
    [
        *CLASSIFIERS,
        "torchvision:resnet18",
        "torchvision:vit_b_16",
        "timm:resnet18",
        "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        "plugin:MyNet",
        "plugin:my_net2",
    ],
)
def test_valid_names(name):
    assert is_classifier(name)


@pytest.mark.parametrize(
    "name",
    [
        *("resnet50", "cifar_resnet21", "", "torchvision", ":resnet18", "hub:resnet18"),
        *("torchvision:R50", "torchvision:", "torchvision:resnet18.a1_in1k", "timm:hf-hub:a/b", "timm:x.", "timm:.x"),
        *("plugin:_hidden", "plugin:2d", "plugin:os.system", "plugin:a:b", "plugin:my models"),
    ],
)
def test_invalid_names(name):
    assert not is_classifier(name)
    assert unknown_classifier(name).startswith(f"unknown model {name!r}")
    assert "\n" not in unknown_classifier(name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet50", "(did you mean 'torchvision:resnet50' or 'timm:resnet50'?)"),
        ("vit_b_16", "(did you mean 'torchvision:vit_b_16' or 'timm:vit_b_16'?)"),
        ("wrn_16_3", "(did you mean 'wrn_16_2'?)"),
        ("cifar_vitt", "(did you mean 'cifar_vit'?)"),
        ("timmm:resnet18", "(did you mean 'timm'?)"),
        ("torchvision:R50", "not a valid name of a torchvision model"),
        ("nothing like it", "torchvision:<name>, timm:<name>, plugin:<name>"),
    ],
)
def test_hints(name, hint):
    assert hint in unknown_classifier(name)
