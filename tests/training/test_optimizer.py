import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from w2skd.recipe.duration import Duration
from w2skd.recipe.train import EmaSection, TrainSection
from w2skd.training.finite import take_step
from w2skd.training.optimizer import build_average, build_optimizer


def section(optimizer: dict[str, object]) -> TrainSection:
    return TrainSection.model_validate(
        {"steps": 1, "batch_size": 1, "optimizer": optimizer, "lr_schedule": {"name": "constant"}}
    )


def steps(optimizer: torch.optim.Optimizer, weight: nn.Parameter, gradients: Tensor) -> Tensor:
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


GRADIENTS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
START = torch.linspace(-1, 1, 5)


class OneWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(START.clone())


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_follows_its_definition(nesterov: bool) -> None:
    model = OneWeight()
    values = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": nesterov}
    ours = steps(build_optimizer(model, section(values)), model.weight, GRADIENTS)
    weight, momentum = START.double(), torch.zeros(5, dtype=torch.float64)
    for gradient in GRADIENTS.double():
        gradient = gradient + 0.01 * weight
        momentum = 0.9 * momentum + gradient
        weight = weight - 0.1 * (gradient + 0.9 * momentum if nesterov else momentum)
    torch.testing.assert_close(ours.double(), weight, rtol=1e-5, atol=1e-6)


def test_adamw_follows_its_definition() -> None:
    model = OneWeight()
    values = {"name": "adamw", "lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.2}
    ours = steps(build_optimizer(model, section(values)), model.weight, GRADIENTS)
    weight = START.double()
    mean = square = torch.zeros(5, dtype=torch.float64)
    for step, gradient in enumerate(GRADIENTS.double(), start=1):
        weight = weight * (1 - 0.1 * 0.2)
        mean, square = 0.8 * mean + 0.2 * gradient, 0.95 * square + 0.05 * gradient**2
        weight = weight - 0.1 * (mean / (1 - 0.8**step)) / ((square / (1 - 0.95**step)).sqrt() + 1e-6)
    torch.testing.assert_close(ours.double(), weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimizers_can_skip_an_update_on_the_device(name: str) -> None:
    optimizer = build_optimizer(OneWeight(), section({"name": name, "lr": 0.1}))
    assert all(group["fused"] for group in optimizer.param_groups)


class WithEmbedding(nn.Module):
    """A model with each kind of parameter. `embedding` is exempt by name; another exempt name does not exist."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.ones(1, 4, 2))
        self.linear = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)
        self.temperature = nn.Parameter(torch.ones(()))

    def no_weight_decay(self) -> set[str]:
        return {"embedding", "absent"}


OPTIMIZERS = [{"name": "sgd", "lr": 0.1, "momentum": 0.9}, {"name": "adamw", "lr": 0.1}]


@pytest.mark.parametrize("values", OPTIMIZERS)
def test_by_default_all_parameters_decay_in_one_group(values: dict[str, object]) -> None:
    model = WithEmbedding()
    (group,) = build_optimizer(model, section({**values, "weight_decay": 0.5})).param_groups
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in model.parameters()]
    assert group["weight_decay"] == 0.5


@pytest.mark.parametrize("values", OPTIMIZERS)
def test_norms_biases_and_parameters_listed_by_the_model_can_be_excluded_from_decay(values: dict[str, object]) -> None:
    model = WithEmbedding()
    changes = {"weight_decay": 0.5, "decay_norms_and_biases": False}
    optimizer = build_optimizer(model, section({**values, **changes}))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    assert groups == [["linear.weight"], ["embedding", "temperature", "linear.bias", "norm.weight", "norm.bias"]]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    take_step(optimizer, torch.tensor(0.0))
    for name, value in model.state_dict().items():
        expected = before[name] * (1 - 0.1 * 0.5) if name == "linear.weight" else before[name]
        torch.testing.assert_close(value, expected)


def test_without_a_list_of_the_model_dimensions_decide() -> None:
    values = {**OPTIMIZERS[0], "decay_norms_and_biases": False}
    plain = build_optimizer(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), section(values))
    assert [len(group["params"]) for group in plain.param_groups] == [1, 3]
    bare = build_optimizer(nn.Linear(2, 2, bias=False), section(values))
    assert [len(group["params"]) for group in bare.param_groups] == [1, 0]
    bare.load_state_dict(bare.state_dict())


def test_the_average_follows_weights_and_running_statistics() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = build_average(model, EmaSection(decay=0.75), 1, 1)
    assert average is not None
    expected = {}
    for number in range(4):
        with torch.no_grad():
            for value in model.state_dict().values():
                value.copy_(torch.full_like(value, number) if value.is_floating_point() else torch.tensor(number))
        average.update_parameters(model)
        for name, value in model.state_dict().items():
            # The first update copies.
            expected[name] = value.double() if number == 0 else 0.75 * expected[name] + 0.25 * value.double()
    averaged = average.module.state_dict()
    for name in ("0.weight", "0.bias", "1.weight", "1.running_mean", "1.running_var"):
        torch.testing.assert_close(averaged[name].double(), expected[name])
    assert averaged["0.weight"][0, 0] == 1 * 0.25 * 0.75**2 + 2 * 0.25 * 0.75 + 3 * 0.25
    assert averaged["0.weight"].data_ptr() != model[0].weight.data_ptr()


def averaged_after(section: EmaSection, values: list[float], **lengths: int) -> float:
    model = nn.Linear(1, 1, bias=False)
    average = build_average(model, section, **{"steps_per_epoch": 1, "total_steps": 1, **lengths})
    assert average is not None
    for value in values:
        nn.init.constant_(model.weight, value)
        average.update_parameters(model)
    return average.module.weight.item()


def test_after_a_half_life_a_weight_has_halved() -> None:
    # The first update copies, the next ten move towards 1.
    values = [0.0, *[1.0] * 10]
    assert averaged_after(EmaSection(half_life=Duration(10, "step")), values) == pytest.approx(0.5, abs=1e-6)
    assert averaged_after(EmaSection(half_life=Duration(5, "step")), values) == pytest.approx(0.75, abs=1e-6)


@pytest.mark.parametrize("written", ["10step", "2.5ep", "0.1run"])
def test_a_half_life_can_have_any_unit(written: str) -> None:
    section = EmaSection.model_validate({"half_life": written})
    value = averaged_after(section, [0.0, *[1.0] * 10], steps_per_epoch=4, total_steps=100)
    assert value == pytest.approx(0.5, abs=1e-6)


def test_a_half_life_is_at_least_one_step() -> None:
    assert averaged_after(EmaSection(half_life=Duration(0.1, "ep")), [0.0, 1.0], steps_per_epoch=2) == 0.5


@pytest.mark.parametrize("ramp_up", [None, 0.05, 0.5])
def test_the_half_life_follows_karras_et_al(ramp_up: float | None) -> None:
    """Compare with the update in EDM's training loop, in float64; ``seen`` counts images, in batches of 64."""
    values = torch.randn(300, generator=torch.Generator().manual_seed(1)).cumsum(0).tolist()
    mean, seen = 0.0, 0
    for value in values:
        half_life_images = 100 * 64
        if ramp_up is not None:
            half_life_images = min(half_life_images, seen * ramp_up)
        beta = 0.5 ** (64 / max(half_life_images, 1e-8)) if seen else 0.0  # the first update copies anyway
        mean = value + (mean - value) * beta
        seen += 64
    ours = averaged_after(EmaSection(half_life=Duration(100, "step"), ramp_up=ramp_up), values)
    assert ours == pytest.approx(mean, rel=1e-5)


def test_a_ramp_forgets_the_first_weights() -> None:
    values = [1000.0, *[1.0] * 100]
    slow, ramped = (
        averaged_after(EmaSection(half_life=Duration(1000, "step"), ramp_up=ramp_up), values) for ramp_up in (None, 0.1)
    )
    assert slow > 900
    assert ramped == pytest.approx(1.0, abs=0.01)


def test_an_average_with_a_ramp_resumes() -> None:
    section = EmaSection(half_life=Duration(50, "step"), ramp_up=0.3)
    weights = torch.randn(30, 2, 2, generator=torch.Generator().manual_seed(2))
    model = nn.Linear(2, 2)
    whole, first, second = (build_average(model, section, 1, 1) for _ in range(3))
    assert whole is not None
    assert first is not None
    assert second is not None
    for step, weight in enumerate(weights):
        model.weight.data.copy_(weight)
        whole.update_parameters(model)
        if step < 13:
            first.update_parameters(model)
        if step == 13:
            second.load_state_dict(first.state_dict())
        if step >= 13:
            second.update_parameters(model)
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


@pytest.mark.parametrize("section", [EmaSection(decay=0.9), EmaSection(half_life=Duration(9, "step"), ramp_up=0.1)])
def test_an_update_does_not_synchronise(section: EmaSection) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).to("meta")  # its tensors have no values to read
    average = build_average(model, section, 1, 1)
    assert average is not None
    for _ in range(3):
        average.update_parameters(model)
    assert average.n_averaged == 3
    with pytest.raises(RuntimeError, match="meta"):
        model[0].weight.sum().item()


def test_no_section_no_average() -> None:
    assert build_average(nn.Linear(1, 1), None, 1, 1) is None


def test_the_average_is_torchs_own_for_weights_and_running_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    ours = build_average(model, EmaSection(decay=0.9), 1, 1)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(4):
        model(torch.randn(8, 3))
        with torch.no_grad():
            model[0].weight.add_(torch.randn(3, 3))
        for average in (ours, theirs):
            average.update_parameters(model)
    for name, value in theirs.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(ours.state_dict()[name], value), name
    assert ours.module[1].num_batches_tracked == model[1].num_batches_tracked == 4
    assert ours.n_averaged == 4


def undecayed(model: nn.Module) -> set[str]:
    values = {"name": "adamw", "lr": 0.1, "decay_norms_and_biases": False}
    decayed, free = build_optimizer(model, section(values)).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.01, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)] for parameter in free["params"]}


def test_tokens_embeddings_and_tables_of_a_transformer_do_not_decay() -> None:
    vit = undecayed(torchvision.models.vit_b_16())
    assert {"class_token", "encoder.pos_embedding"} <= vit
    assert not any(name.endswith("weight") and ".ln" not in name and "encoder.ln" not in name for name in vit)
    swin = undecayed(torchvision.models.swin_t())
    assert "features.1.0.attn.relative_position_bias_table" in swin
    assert "features.1.0.attn.qkv.weight" not in swin
    convnext = undecayed(torchvision.models.convnext_tiny())
    assert "features.1.0.layer_scale" in convnext
    assert "features.1.0.block.0.weight" not in convnext


def test_a_single_output_decays_and_an_embedding_does_not() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 1), nn.Conv1d(4, 4, 3, groups=4), nn.LayerNorm(4))
    assert undecayed(model) == {"0.weight", "1.bias", "2.bias", "3.weight", "3.bias"}


class Restless(nn.Module):
    """A module that replaces its buffers instead of changing them in place, and uses one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2, bias=False)
        self.second = nn.Linear(2, 2, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("largest", torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("cache", torch.zeros(2), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        self.largest = torch.maximum(self.largest, inputs.max())
        self.seen = self.seen + len(inputs)
        self.cache = inputs[0]
        return self.second(self.first(inputs))


def test_the_average_follows_replaced_buffers_and_averages_a_shared_weight_once() -> None:
    model = Restless()
    average = build_average(model, EmaSection(decay=0.5), 1, 1)
    assert average is not None
    weight, largest = torch.zeros(2, 2), 0.0
    for number in range(1, 4):
        model(torch.full((3, 2), 2.0**number))
        nn.init.constant_(model.first.weight, number)
        average.update_parameters(model)
        share = 1.0 if number == 1 else 0.5
        weight = weight + share * (number - weight)
        largest = largest + share * (2.0**number - largest)
    averaged = average.module
    assert torch.equal(averaged.first.weight, weight)
    assert averaged.second.weight is averaged.first.weight
    assert (averaged.largest, averaged.seen) == (largest, 9)
    assert averaged.cache.tolist() == [0, 0]  # only the state is averaged


class Mixed(nn.Module):
    """A module with parameters that have no mean, and a buffer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.phases = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
        self.codes = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)
        self.register_buffer("scale", torch.zeros(()))
        self.register_buffer("alias", self.scale)


def test_complex_and_integer_parameters_are_copied_and_a_shared_buffer_is_averaged_once() -> None:
    model = Mixed()
    average = build_average(model, EmaSection(decay=0.5), 1, 1)
    assert average is not None
    for number in (0, 1):
        with torch.no_grad():
            for tensor in (*model.parameters(), model.scale):
                tensor.fill_(number)
        average.update_parameters(model)
        assert torch.equal(average.module.phases, model.phases)
        assert torch.equal(average.module.codes, model.codes)
    assert average.module.weight.tolist() == [0.5, 0.5]
    assert average.module.scale == average.module.alias == 0.5


def test_an_update_costs_the_same_calls_for_any_number_of_layers() -> None:
    """Collecting two state dicts per step takes longer than a small network's step on a GPU."""
    calls = []
    for layers in (1, 20):
        model = nn.Sequential(*(nn.BatchNorm1d(2) for _ in range(layers)))
        average = build_average(model, EmaSection(decay=0.9), 1, 1)
        assert average is not None
        average.update_parameters(model)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            average.update_parameters(model)
        calls.append(sum(event.name.startswith("aten::_foreach") for event in profile.events()))
    assert calls[0] == calls[1] == 2
