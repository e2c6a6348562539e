import subprocess
import sys

import pytest
import torch

from w2skd.errors import RecipeError
from w2skd.models.catalog import build_classifier
from w2skd.models.measure import count_parameters


def test_without_timm_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(RecipeError, match=r"timm:resnet18 needs timm, .* pip install 'w2skd\[timm\]'"):
        build_classifier("timm:resnet18", 10)


def test_timm_is_not_loaded_for_other_models():
    code = "import sys; from w2skd.models.catalog import build_classifier; build_classifier('cifar_resnet8', 10, 32)"
    done = subprocess.run([sys.executable, "-c", f"{code}; sys.exit('timm' in sys.modules)"], timeout=600)
    assert done.returncode == 0


@pytest.mark.parametrize("name", ["timm:resnet18", "timm:resnet18.a1_in1k"])
def test_parameters_as_published(name):
    with torch.device("meta"):
        assert count_parameters(build_classifier(name, 1000)) == 11_689_512


def test_no_weights_are_loaded(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("tried to load weights")

    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)
    assert build_classifier("timm:resnet10t.c3_in1k", 4)(torch.randn(2, 3, 64, 64)).shape == (2, 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet81", "timm has no model 'resnet81' \\(did you mean 'resnet"),
        ("timm:resnet18.a1_in2k", "timm has no weights 'resnet18.a1_in2k' \\(did you mean 'resnet18.a1_in1k'"),
        ("timm:hf-hub:timm/resnet18.a1_in1k", "timm has no model 'hf-hub:"),
        ("timm:", "timm has no model ''"),
    ],
)
def test_unknown_models_are_rejected(name, message):
    with pytest.raises(RecipeError, match=message):
        build_classifier(name, 10)


@pytest.mark.parametrize(("image_size_px", "tokens"), [(None, 197), (96, 37)])
def test_a_transformer_is_built_for_its_images(image_size_px, tokens):
    with torch.device("meta"):
        model = build_classifier("timm:vit_tiny_patch16_224", 10, image_size_px)
    assert model.pos_embed.shape == (1, tokens, 192)


def test_a_convolutional_network_accepts_any_size():
    with torch.device("meta"):
        assert build_classifier("timm:resnet10t", 10, 96)(torch.randn(2, 3, 96, 96)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "image_size_px", "reason"),
    [
        ("timm:vit_tiny_patch16_224", 100, "its patches have 16 px; use 96 or 112 px"),
        ("timm:vit_small_patch14_dinov2", 100, "its patches have 14 px; use 98 or 112 px"),
        ("timm:nest_tiny", 100, "First level blocks don't fit evenly"),
        ("timm:vit_tiny_r_s16_p8_224", 100, "its own size is 224 px"),
    ],
)
def test_an_unsupported_size_is_rejected_in_one_line(name, image_size_px, reason):
    with torch.device("meta"), pytest.raises(RecipeError) as caught:
        build_classifier(name, 10, image_size_px)
    message = str(caught.value)
    assert message.startswith(f"{name} cannot process images of {image_size_px} px: ")
    assert reason in message
    assert "\n" not in message
