import pytest
import torch

from w2skd.models.catalog import build_classifier
from w2skd.models.measure import count_parameters, forward_flops
from w2skd.models.vit import CifarVit


def parameters_by_formula(classes, tokens, width=192, mlp=384, depth=9, patch_px=4):
    attention = 4 * (width * width + width)
    feed_forward = (width * mlp + mlp) + (mlp * width + width)
    block = attention + feed_forward + 2 * 2 * width
    patches = 3 * patch_px**2 * width + width
    return patches + tokens * width + depth * block + 2 * width + (width + 1) * classes


@pytest.mark.parametrize(("image_size_px", "tokens"), [(None, 64), (32, 64), (64, 256), (4, 1)])
@pytest.mark.parametrize("classes", [10, 100])
def test_parameters_follow_the_image_size(image_size_px, tokens, classes):
    with torch.device("meta"):
        model = build_classifier("cifar_vit", classes, image_size_px)
    assert count_parameters(model) == parameters_by_formula(classes, tokens)
    assert model.position_embedding.shape == (1, tokens, 192)


def test_flops_by_hand():
    tokens, width = 64, 192
    block = tokens * (4 * width * width + 2 * width * 384) + 2 * tokens * tokens * width
    multiply_adds = tokens * 48 * width + 9 * block + width * 10
    assert forward_flops(CifarVit(10), (torch.randn(1, 3, 32, 32),)) == 2 * multiply_adds


def test_only_position_embeddings_distinguish_patches():
    torch.manual_seed(0)
    model = CifarVit(5, 16).eval()
    images = torch.randn(2, 3, 16, 16)
    moved = images.roll(4, dims=3)
    with torch.no_grad():
        assert not torch.allclose(model(images), model(moved), atol=1e-6)
        model.position_embedding.zero_()
        torch.testing.assert_close(model(images), model(moved), atol=1e-5, rtol=1e-5)


def test_train_and_eval_mode_give_the_same_logits():
    torch.manual_seed(0)
    model = CifarVit(5, 16)
    images = torch.randn(3, 3, 16, 16)
    logits = model.train()(images)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(model.eval()(images), logits, atol=1e-5, rtol=1e-5)


def test_parameters_without_weight_decay_exist():
    model = CifarVit(5)
    assert model.no_weight_decay() == {"position_embedding"}
    assert model.no_weight_decay() <= dict(model.named_parameters()).keys()


def test_initial_logits_are_small_and_biases_zero():
    torch.manual_seed(0)
    model = CifarVit(10)
    assert all(not value.any() for name, value in model.named_parameters() if name.endswith("bias"))
    assert all(value.eq(1).all() for name, value in model.named_parameters() if "norm" in name and "weight" in name)
    assert model(torch.randn(8, 3, 32, 32)).abs().max() < 2
