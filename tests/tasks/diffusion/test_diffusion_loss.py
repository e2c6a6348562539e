import pytest
import torch

from w2skd.tasks.diffusion.loss import weighted_squared_error


def predictions(seed, examples=3, side=4):
    """Prediction and target, float64 [N, 3, S, S] each, and weights [N]."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((examples, 3, side, side), (examples, 3, side, side))
    student, target = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return student, target, torch.rand(examples, generator=generator, dtype=torch.float64) + 0.5


def test_loss_equals_the_float64_reference():
    student, target, weights = predictions(80)
    total = sum(
        weights[n] * sum((student[n].flatten()[i] - target[n].flatten()[i]) ** 2 for i in range(48)) / 48
        for n in range(3)
    )
    loss = weighted_squared_error(student.float(), target.float(), weights.float())
    assert (loss.dtype, loss.shape) == (torch.float32, ())
    assert loss.item() == pytest.approx(total.item() / 3, rel=1e-5)


def test_known_values():
    student, target = torch.zeros(2, 3, 2, 2), torch.stack([torch.full((3, 2, 2), 2.0), torch.full((3, 2, 2), 3.0)])
    assert weighted_squared_error(student, target, torch.tensor([1.0, 1.0])).item() == (4 + 9) / 2
    # Not divided by the sum of the weights: a batch of timesteps with small weights has a small loss.
    assert weighted_squared_error(student, target, torch.tensor([0.5, 0.0])).item() == 0.5 * 4 / 2


def test_gradient_is_twice_the_weighted_difference():
    student, target, weights = predictions(83)
    variable = student.float().requires_grad_()
    weighted_squared_error(variable, target.float(), weights.float()).backward()
    expected = 2 * weights[:, None, None, None] * (student - target) / student.numel()
    torch.testing.assert_close(variable.grad.double(), expected, rtol=1e-5, atol=1e-8)


def test_target_gets_no_gradient():
    student, target, weights = (tensor.float() for tensor in predictions(86))
    target.requires_grad_()
    weighted_squared_error(student.requires_grad_(), target, weights).backward()
    assert target.grad is None


def test_loss_is_computed_in_float32_for_any_input_dtype():
    student, target, weights = predictions(89)
    half = student.bfloat16()
    expected = weighted_squared_error(half.float(), target.float(), weights.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = weighted_squared_error(half, target, weights)
    assert found.dtype == torch.float32
    assert found.item() == expected.item()
    large = torch.full((1, 3, 2, 2), 300.0, dtype=torch.float16)  # its square overflows float16
    assert weighted_squared_error(large, torch.zeros_like(large), torch.ones(1)).item() == 90_000


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(2, 3, 4, 4), (2, 3, 4, 5), (2,)], r"prediction and target must both have shape \[N, 3, S, S\]"),
        ([(2, 3, 4, 4), (1, 3, 4, 4), (2,)], "prediction and target must both have shape"),
        ([(2, 3, 4), (2, 3, 4), (2,)], "prediction and target must both have shape"),
        ([(2, 3, 4, 4), (2, 3, 4, 4), (3,)], r"weights must have shape \[2\], got \[3\]"),
        ([(2, 3, 4, 4), (2, 3, 4, 4), (2, 1)], r"weights must have shape \[2\], got \[2, 1\]"),
    ],
)
def test_mismatched_shapes_are_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        weighted_squared_error(*(torch.zeros(shape) for shape in shapes))
