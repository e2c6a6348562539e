import re

import pytest
import torch
from torch import Tensor, nn

from w2skd.models.catalog import build_classifier
from w2skd.weights.fit import Fit, describe_misfit, fit

State = dict[str, Tensor]


def state_of(name: str, classes: int = 10) -> State:
    return dict(build_classifier(name, classes).state_dict())


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def misfit(model: str, state: State, classes: int = 10) -> str:
    return describe_misfit(fit(build_classifier(model, classes), state), model, None)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "net.", "backbone.", "module._orig_mod.", "model.module.backbone."]
)
def test_a_wrappers_prefix_is_removed_if_all_names_share_it(prefix: str) -> None:
    model = build_classifier("small_cnn_weak", 10)
    own = dict(model.state_dict())
    found = fit(model, under(prefix, own))
    assert found.is_whole
    assert {name: tensor.data_ptr() for name, tensor in found.state.items()} == {
        name: tensor.data_ptr() for name, tensor in own.items()
    }
    beside = fit(model, {**under(prefix, own), "optimizer.step": torch.zeros(1)})
    assert not beside.is_whole


def test_a_prefix_of_the_model_itself_is_kept() -> None:
    model = nn.Sequential()
    model.add_module("model", build_classifier("small_cnn_weak", 10))
    assert fit(model, dict(model.state_dict())).is_whole


def test_only_batch_counters_may_be_missing() -> None:
    model = build_classifier("small_cnn_weak", 10)
    old = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(model.state_dict())
    assert fit(model, old).is_whole
    assert fit(model, {"n_averaged": torch.tensor(3), **old}).is_whole
    del old["features.1.running_mean"]
    assert fit(model, old).missing == ["features.1.running_mean", "features.1.num_batches_tracked"]


def test_auxiliary_classifiers_are_dropped() -> None:
    import torchvision

    whole = torchvision.models.googlenet(aux_logits=True, init_weights=False, num_classes=10)
    assert any(name.startswith("aux1.") for name in whole.state_dict())
    assert fit(build_classifier("torchvision:googlenet", 10), whole.state_dict()).is_whole


def test_former_names_of_densenet_are_converted() -> None:
    state = state_of("torchvision:densenet121")
    former = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): state[name] for name in state}
    assert former.keys() != state.keys()
    assert fit(build_classifier("torchvision:densenet121", 10), former).is_whole


class Renamed(nn.Module):
    """A module whose parameter was renamed, and which still reads files with the former name."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.head = nn.Linear(4, classes)
        self.new = nn.Linear(4, 4)

    def _load_from_state_dict(self, state_dict, prefix, *rest):  # type: ignore[no-untyped-def]
        for part in ("weight", "bias"):
            if f"{prefix}old.{part}" in state_dict:
                state_dict[f"{prefix}new.{part}"] = state_dict.pop(f"{prefix}old.{part}")
        super()._load_from_state_dict(state_dict, prefix, *rest)


def test_modules_convert_their_own_former_names() -> None:
    model = Renamed()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    former = {name.replace("new.", "old."): tensor + 1 for name, tensor in model.state_dict().items()}
    found = fit(model, former)
    assert found.is_whole
    assert torch.equal(found.state["new.weight"], former["old.weight"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert fit(Renamed(classes=2), former).head_classes == (3, 2)
    assert fit(model, {**former, "extra": torch.zeros(1)}).unexpected == ["extra"]


def test_former_names_of_torchvisions_vit_are_converted() -> None:
    from torchvision.models import VisionTransformer

    def vit() -> nn.Module:
        return VisionTransformer(8, 4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=3)

    state = dict(vit().state_dict())
    former = {name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): state[name] for name in state}
    assert former.keys() != state.keys()
    assert fit(vit(), former).is_whole


def test_a_head_of_another_size_is_distinguished_from_another_model() -> None:
    model = build_classifier("small_cnn_weak", 10)
    assert fit(model, state_of("small_cnn_weak", 7)).head_classes == (7, 10)
    assert fit(model, state_of("small_cnn_weak")).head_classes is None
    assert fit(model, state_of("small_cnn_strong")).head_classes is None
    assert fit(
        build_classifier("torchvision:squeezenet1_0", 3), state_of("torchvision:squeezenet1_0")
    ).head_classes == (
        10,
        3,
    )
    assert Fit({"a": torch.zeros(())}, {"a": torch.zeros(2)}, [], [], ["a"]).head_classes is None


def without(head: str, state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith(head)}


RESNET = state_of("torchvision:resnet18")
FAMILY = "probably another model of the same family, such as a deeper or wider one"


@pytest.mark.parametrize(
    ("model", "state", "reason"),
    [
        ("torchvision:resnet18", state_of("torchvision:resnet34"), FAMILY),
        ("torchvision:resnet34", RESNET, FAMILY),
        ("small_cnn_weak", state_of("small_cnn_strong"), FAMILY),
        ("torchvision:resnet18", without("fc.", RESNET), "2 missing (fc.weight, fc.bias); probably a backbone without"),
        (
            "torchvision:resnet18",
            {**without("fc.", RESNET), "projector.0.weight": torch.zeros(2, 512)},
            "probably a backbone without its classifier, or with a different one",
        ),
        (
            "torchvision:resnet18",
            {**under("student.", RESNET), "criterion.weight": torch.zeros(10)},
            "probably a larger file whose 'student.' part has these weights: save that part alone, without the prefix",
        ),
        (
            "torchvision:resnet18",
            {**under("backbone.body.", without("fc.", RESNET)), "rpn.head.conv.0.0.weight": torch.zeros(1)},
            "probably a detector or a segmentation model, which has no classifier",
        ),
        (
            "torchvision:mobilenet_v2",
            {"conv_stem.weight": torch.zeros(32, 3, 3, 3), "classifier.bias": torch.zeros(10)},
            "probably a model of timm, which names its layers differently: try 'timm:NAME' as the model",
        ),
        (
            "torchvision:resnet18",
            {"resnet.embedder.embedder.convolution.weight": torch.zeros(64, 3, 7, 7)},
            "probably a model of Hugging Face's transformers, which names its layers differently",
        ),
        (
            "small_cnn_weak",
            under("stem.", RESNET),
            "probably the weights of another model: set the model's name to theirs",
        ),
    ],
)
def test_the_likely_reason_is_reported(model: str, state: State, reason: str) -> None:
    message = misfit(model, state)
    assert message.startswith(f"not the weights of {model}: ")
    assert reason in message
    assert "\n" not in message


def test_an_unexplained_misfit_has_no_reason() -> None:
    own = state_of("small_cnn_weak")
    assert (
        misfit("small_cnn_weak", {**own, "a": torch.zeros(1)}) == "not the weights of small_cnn_weak: 1 unexpected (a)"
    )
    assert "probably" not in misfit("small_cnn_weak", {"a": torch.zeros(1), "b": torch.zeros(1)})
