import pytest
import torch
from torch.nn import functional

from w2skd.data.counter import normal
from w2skd.models.catalog import build_classifier
from w2skd.models.data_dependent import DataDependent
from w2skd.models.measure import count_parameters
from w2skd.models.whitened_cnn import WhitenedCnn, whitening_filters


def correlated_images(count=600, size_px=16):
    """Return images with correlated neighbouring pixels and colours and a mean other than 0."""
    noise = normal(0, torch.arange(count * 3 * (size_px + 3) ** 2)).view(count, 3, size_px + 3, size_px + 3)
    smooth = functional.avg_pool2d(noise, 4, stride=1) * 4
    return smooth + 0.5 * smooth.mean(1, keepdim=True) + 0.3


def responses(filters, images):
    """Return the responses of filters [K, 3, 2, 2] to every patch: float64 [K, patches]."""
    return functional.conv2d(images.double(), filters).transpose(0, 1).flatten(1)


def test_responses_to_the_images_are_white():
    images = correlated_images()
    filters = whitening_filters(images)
    assert filters.shape == (12, 3, 2, 2)
    covariance = torch.cov(responses(filters, images), correction=0)
    variances = torch.linalg.eigvalsh(
        torch.cov(functional.unfold(images.double(), 2).transpose(0, 1).flatten(1), correction=0)
    ).flip(0)
    # The offset of the eigenvalues lowers a variance v to v / (v + offset).
    torch.testing.assert_close(covariance, torch.diag(variances / (variances + 5e-4)), atol=1e-8, rtol=0)
    assert variances[0] > 20 * variances[-1], "these images need whitening"
    assert covariance.diagonal().min() > 0.9


def test_filters_do_not_depend_on_chunks_or_signs_of_eigenvectors():
    images = correlated_images(300)
    filters = whitening_filters(images)
    torch.testing.assert_close(whitening_filters(torch.cat([images, images])), filters)
    flat = filters.flatten(1)
    assert (flat.gather(1, flat.abs().argmax(1, keepdim=True)) > 0).all()


def test_constant_images_give_finite_filters():
    assert whitening_filters(torch.full((2, 3, 4, 4), 0.7)).isfinite().all()


def test_the_first_layer_has_both_signs_of_every_filter_and_stays_frozen():
    images = correlated_images(50)
    model = WhitenedCnn(8, 5)
    assert isinstance(model, DataDependent)
    before = torch.get_rng_state()
    model.initialize_from(images)
    assert torch.equal(before, torch.get_rng_state())
    first = model.whiten.weight
    assert not first.requires_grad
    torch.testing.assert_close(first[:12].double(), whitening_filters(images), rtol=0, atol=1e-6)
    assert torch.equal(first[12:], -first[:12])
    assert model.whiten.bias.requires_grad
    assert not model.whiten.bias.any()


def test_only_the_whitening_filters_and_the_scales_of_norms_are_frozen():
    frozen = {name for name, parameter in WhitenedCnn(8, 5).named_parameters() if not parameter.requires_grad}
    assert frozen == {"whiten.weight", *(f"block{b}.norm{n}.weight" for b in (1, 2, 3) for n in (1, 2))}


@pytest.mark.parametrize("width", [16, 32, 64])
def test_parameters_by_formula(width):
    with torch.device("meta"):
        parameters = count_parameters(build_classifier(f"whitened_cnn_w{width}", 10))
    wide = 4 * width
    convolutions = 9 * (24 * width + width * width + width * wide + 3 * wide * wide)
    assert parameters == 24 * 12 + 24 + convolutions + 2 * (2 * width + 4 * wide) + 10 * wide


def test_the_widest_has_the_two_million_parameters_of_the_paper():
    with torch.device("meta"):
        assert round(count_parameters(build_classifier("whitened_cnn_w64", 10)) / 1e6, 2) == 1.97


def test_convolutions_start_by_passing_their_inputs_on():
    torch.manual_seed(0)
    block = WhitenedCnn(32, 5).block1
    images = torch.randn(2, 24, 8, 8)
    torch.testing.assert_close(block.conv1(images)[:, :24], images)
    features = torch.randn(2, 32, 8, 8)
    torch.testing.assert_close(block.conv2(features), features)


def test_it_compiles_to_one_graph():
    torch.manual_seed(0)
    model, images = WhitenedCnn(8, 5).eval(), torch.randn(2, 3, 16, 16)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images))


@pytest.mark.parametrize("size_px", [16, 28, 32, 64])
def test_other_sizes_have_logits_too(size_px):
    assert build_classifier("whitened_cnn_w16", 7, size_px)(torch.randn(2, 3, size_px, size_px)).shape == (2, 7)


def test_frozen_parameters_keep_their_value_under_weight_decay():
    torch.manual_seed(0)
    model = WhitenedCnn(8, 5)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1, nesterov=True, fused=True)
    for _ in range(2):
        optimizer.zero_grad()
        functional.cross_entropy(model(torch.randn(4, 3, 16, 16)), torch.arange(4)).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
