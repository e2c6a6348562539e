import pytest
import torch
from torch import nn

from w2skd.errors import RecipeError
from w2skd.models.image_size import require_logits, require_whole_patches


@pytest.mark.parametrize(("image_size_px", "patch_px"), [(4, 4), (224, 16), (98, 14)])
def test_whole_patches_pass(image_size_px, patch_px):
    require_whole_patches("m", image_size_px, patch_px)


@pytest.mark.parametrize(
    ("image_size_px", "patch_px", "fitting"),
    [(225, 16, "224 or 240 px"), (7, 16, "px; use 16 px"), (15, 14, "14 or 28")],
)
def test_the_error_suggests_the_nearest_sizes(image_size_px, patch_px, fitting):
    with pytest.raises(RecipeError, match=f"m cannot process images of {image_size_px} px: .*{fitting}"):
        require_whole_patches("m", image_size_px, patch_px)


class Gives(nn.Module):
    def __init__(self, outcome):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.outcome = outcome

    def forward(self, images):
        return self.outcome(self.norm(images))


def test_the_model_stays_unchanged():
    model = Gives(lambda images: images.mean(dim=(2, 3)) @ torch.ones(3, 5))
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    require_logits("m", model, 5, 8)
    assert (model.training, model.norm.training) == (True, False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (lambda images: images.view(7), "m cannot process images of 8 px: shape"),
        (lambda images: images.mean(dim=(2, 3)), r"m returns \[1, 3\] for one image of 8 px, expected logits \[1, 5\]"),
        (lambda images: (images, images), "m returns a tuple for one image"),
        (lambda images: {}["logits"], "m cannot process images of 8 px: 'logits'"),
    ],
)
def test_models_without_logits_are_rejected(outcome, message):
    model = Gives(outcome)
    with pytest.raises(RecipeError, match=message):
        require_logits("m", model, 5, 8)
    assert model.training
