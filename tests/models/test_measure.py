import pytest
import torch
from torch import nn

from w2skd.models.catalog import build_classifier
from w2skd.models.measure import activation_bytes, forward_flops, single_valued_norms


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


@pytest.mark.parametrize(
    "layer",
    [
        nn.MultiheadAttention(16, 4, batch_first=True),
        nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True, norm_first=True),
    ],
)
def test_flops_of_fused_attention_are_counted(layer):
    class SelfAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, tokens):
            attends = isinstance(self.layer, nn.MultiheadAttention)
            return self.layer(tokens, tokens, tokens, need_weights=False)[0] if attends else self.layer(tokens)

    tokens, width = 10, 16
    attention = 4 * tokens * width * width + 2 * tokens * tokens * width
    feed_forward = 0 if isinstance(layer, nn.MultiheadAttention) else 2 * tokens * width * 32
    assert forward_flops(SelfAttention(), (torch.randn(3, tokens, width),)) == 2 * (attention + feed_forward)
    assert torch.backends.mha.get_fastpath_enabled()


def test_counting_flops_does_not_change_the_model():
    model = build_classifier("small_cnn_weak", 10).train()
    model.features[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    forward_flops(model, (torch.randn(2, 3, 32, 32),))
    assert [module.training for module in (model, model.features[0], model.features[1])] == [True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_activation_memory_excludes_memory_that_does_not_grow_with_the_batch():
    # Linear saves its inputs (6 numbers) and its weights, which do not grow; tanh saves its results (5).
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh()).train()
    for examples in (1, 3):
        assert activation_bytes(model, (torch.randn(examples, 6, requires_grad=True),)) == 4 * (6 + 5)
    assert model.training


def test_lists_are_doubled_by_example():
    class Sized(nn.Module):
        def forward(self, images, sizes):
            assert len(images) == len(sizes)
            return torch.tanh(images)

    images = torch.randn(2, 3, 4, 4, requires_grad=True)
    assert activation_bytes(Sized(), (images, ((4, 4), (4, 3)))) == 4 * 3 * 4 * 4


class Pooled(nn.Module):
    """A batch norm over one value per example, and one over a map."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.pool, self.narrow = nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm1d(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.narrow(self.pool(self.wide(images)).flatten(1))


def test_batch_norms_with_a_single_value_are_found() -> None:
    model, images = Pooled(), torch.rand(1, 3, 4, 4)
    assert single_valued_norms(model, (images,)) == ["narrow"]
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(images)
    model.narrow.eval()
    assert single_valued_norms(model, (images,)) == []
    assert (model.wide.training, model.narrow.training) == (True, False)
    assert single_valued_norms(Pooled(), (torch.rand(1, 3, 1, 1),)) == ["wide", "narrow"]
