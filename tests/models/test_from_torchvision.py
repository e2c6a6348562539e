import pytest
import torch

from w2skd.errors import RecipeError
from w2skd.models.catalog import build_classifier
from w2skd.models.measure import count_parameters


def test_parameters_as_published():
    with torch.device("meta"):
        assert count_parameters(build_classifier("torchvision:resnet18", 1000)) == 11_689_512


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet81", "did you mean 'resnet"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no classifier 'fasterrcnn_resnet50_fpn'"),
        ("torchvision:", "no classifier ''"),
    ],
)
def test_unknown_models_are_rejected(name, message):
    with pytest.raises(RecipeError, match=message):
        build_classifier(name, 10)


@pytest.mark.filterwarnings("error")
def test_auxiliary_heads_are_omitted():
    with torch.device("meta"):
        model = build_classifier("torchvision:inception_v3", 4).train()
        assert model(torch.randn(2, 3, 299, 299)).shape == (2, 4)


@pytest.mark.parametrize(("image_size_px", "tokens"), [(None, 197), (96, 37), (32, 5)])
def test_a_transformer_is_built_for_its_images(image_size_px, tokens):
    with torch.device("meta"):
        model = build_classifier("torchvision:vit_b_16", 10, image_size_px)
    assert model.encoder.pos_embedding.shape == (1, tokens, 768)


@pytest.mark.parametrize(
    ("name", "image_size_px", "message"),
    [
        (
            "torchvision:vit_b_16",
            100,
            "torchvision:vit_b_16 cannot process images of 100 px: .*16 px; use 96 or 112 px",
        ),
        ("torchvision:vit_b_32", 16, "patches have 32 px; use 32 px"),
        ("torchvision:maxvit_t", 96, "torchvision:maxvit_t cannot process images of 96 px: .*partition size 7"),
    ],
)
def test_an_unsupported_size_is_rejected_in_one_line(name, image_size_px, message):
    with torch.device("meta"), pytest.raises(RecipeError, match=message) as caught:
        build_classifier(name, 10, image_size_px)
    assert "\n" not in str(caught.value)
