import pytest
import torch
from torch.nn import functional

from w2skd.method.losses import distillation_kl


def logits(seed, examples=7, classes=5, scale=3.0):
    return torch.randn(examples, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def reference(student, teacher, temperature):
    p, q = (torch.exp(z / temperature) for z in (teacher.double(), student.double()))
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    total = sum(
        p[n, c] * (torch.log(p[n, c]) - torch.log(q[n, c])) for n in range(p.shape[0]) for c in range(p.shape[1])
    )
    return temperature**2 * total / p.shape[0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_equals_the_float64_reference(temperature):
    student, teacher = logits(0), logits(1)
    loss = distillation_kl(student.float(), teacher.float(), temperature)
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert loss.item() == pytest.approx(reference(student, teacher, temperature).item(), rel=1e-5)


def test_a_value_computed_by_hand():
    # KL((3/4, 1/4) || (1/2, 1/2)) = 3/4 ln 3/2 + 1/4 ln 1/2 = 0.130812
    teacher = torch.tensor([[3.0, 1.0]]).log()
    assert distillation_kl(torch.zeros(1, 2), teacher, 1.0).item() == pytest.approx(0.130812, abs=1e-6)
    # Swapped arguments would give 1/2 ln 2/3 + 1/2 ln 2 = 0.143841.
    assert distillation_kl(teacher, torch.zeros(1, 2), 1.0).item() == pytest.approx(0.143841, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradient_is_temperature_times_the_difference_of_the_distributions(temperature):
    student, teacher = logits(2).float().requires_grad_(), logits(3).float()
    distillation_kl(student, teacher, temperature).backward()
    q, p = (functional.softmax(z.detach().double() / temperature, dim=1) for z in (student, teacher))
    torch.testing.assert_close(student.grad.double(), temperature * (q - p) / len(p), atol=1e-6, rtol=1e-5)


def test_gradient_equals_finite_differences_of_the_reference():
    student, teacher, step = logits(4, examples=2, classes=3), logits(5, examples=2, classes=3), 1e-6
    variable = student.float().requires_grad_()
    distillation_kl(variable, teacher.float(), 2.0).backward()
    for n in range(2):
        for c in range(3):
            shift = torch.zeros_like(student)
            shift[n, c] = step
            slope = (reference(student + shift, teacher, 2.0) - reference(student - shift, teacher, 2.0)) / (2 * step)
            assert variable.grad[n, c].item() == pytest.approx(slope.item(), abs=1e-5)


def test_no_gradient_reaches_the_teacher():
    student, teacher = logits(6).float().requires_grad_(), logits(7).float().requires_grad_()
    distillation_kl(student, teacher, 2.0).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_equal_logits_give_zero_and_a_constant_shift_does_not_matter():
    student, teacher = logits(8).float(), logits(9).float()
    assert distillation_kl(student, student + 5.0, 2.0).item() == pytest.approx(0, abs=1e-6)
    plain = distillation_kl(student, teacher, 2.0).item()
    assert distillation_kl(student, teacher - 3.0, 2.0).item() == pytest.approx(plain, rel=1e-5)


def test_the_mean_is_over_the_batch():
    student, teacher = logits(10, examples=1).float(), logits(11, examples=1).float()
    one = distillation_kl(student, teacher, 2.0).item()
    assert distillation_kl(student.repeat(6, 1), teacher.repeat(6, 1), 2.0).item() == pytest.approx(one, rel=1e-6)


def test_extreme_logits_stay_finite():
    student = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    loss = distillation_kl(student, torch.tensor([[-200.0, 200.0, 0.0]]), 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(400.0)
    assert student.grad.isfinite().all()


def test_bf16_logits_under_autocast_are_computed_in_float32():
    student, teacher = logits(12).bfloat16(), logits(13).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = distillation_kl(student, teacher, 2.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference(student, teacher, 2.0).item(), rel=1e-5)


@pytest.mark.parametrize(("student", "teacher"), [((4, 5), (4, 6)), ((4, 5), (1, 5)), ((5,), (5,)), ((2, 4, 5),) * 2])
def test_wrong_shapes_are_refused(student, teacher):
    with pytest.raises(ValueError, match="share one shape"):
        distillation_kl(torch.zeros(student), torch.zeros(teacher), 2.0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_invalid_temperatures_are_refused(temperature):
    with pytest.raises(ValueError, match="temperature"):
        distillation_kl(torch.zeros(2, 3), torch.zeros(2, 3), temperature)
