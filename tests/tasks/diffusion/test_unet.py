import copy

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from w2skd.errors import RecipeError
from w2skd.models.measure import count_parameters
from w2skd.tasks.diffusion import recipe as names
from w2skd.tasks.diffusion.unet import DENOISERS, UNetSize, build_unet

MINI = "unet_mini_nc16_rb1"


def test_recipes_accept_the_catalogs_names():
    assert tuple(DENOISERS) == names.DENOISERS


def test_the_original_size_has_the_original_number_of_parameters(monkeypatch):
    """35.7 million for CIFAR-10 in Ho et al. 2020, appendix B; exactly this in google/ddpm-cifar10-32."""
    monkeypatch.setitem(DENOISERS, "unet_nc128_rb2", UNetSize(128, 2))
    with torch.device("meta"):
        assert count_parameters(build_unet("unet_nc128_rb2", size_px=32, classes=None)) == 35_746_307


def test_the_original_size_has_the_settings_of_its_port(monkeypatch):
    monkeypatch.setitem(DENOISERS, "unet_nc128_rb2", UNetSize(128, 2))
    with torch.device("meta"):
        config = build_unet("unet_nc128_rb2", size_px=32, classes=None).config
    # The config.json of google/ddpm-cifar10-32, with tuples in place of lists.
    port = {
        "act_fn": "silu",
        "attention_head_dim": None,
        "block_out_channels": (128, 256, 256, 256),
        "center_input_sample": False,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 32,
        "time_embedding_type": "positional",
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    }
    assert {key: config[key] for key in port} == port


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("unet_nc64_rb2", 8_952_067),
        ("unet_nc128_rb3", 47_217_027),
        ("unet_nc160_rb3", 73_751_523),
        ("unet_mini_nc16_rb1", 177_427),
        ("unet_mini_nc24_rb1", 396_507),
        ("unet_mini_nc32_rb1", 702_499),
        ("unet_mini_nc32_rb2", 1_002_883),
        ("unet_mini_nc64_rb2", 3_992_323),
    ],
)
def test_parameters(name, parameters):
    with torch.device("meta"):
        assert count_parameters(build_unet(name, size_px=32, classes=None)) == parameters


def test_classes_cost_one_embedding_each():
    with torch.device("meta"):
        counts = [count_parameters(build_unet(MINI, size_px=16, classes=classes)) for classes in (None, 10)]
    assert counts[1] - counts[0] == 10 * 4 * 16


@pytest.mark.parametrize(
    ("name", "size_px", "level"),
    [
        ("unet_nc64_rb2", 8, 0),
        ("unet_nc64_rb2", 16, 0),
        ("unet_nc64_rb2", 24, 1),
        ("unet_nc64_rb2", 32, 1),
        ("unet_nc64_rb2", 64, 2),
        ("unet_nc64_rb2", 256, 3),
        (MINI, 16, 1),
        (MINI, 32, 1),
        (MINI, 64, 1),
    ],
)
def test_attention_is_in_the_level_closest_to_16_px_or_in_a_minis_lower_level(name, size_px, level):
    with torch.device("meta"):
        model = build_unet(name, size_px=size_px, classes=None)
    down = [block for block, kind in enumerate(model.config.down_block_types) if kind == "AttnDownBlock2D"]
    up = [block for block, kind in enumerate(reversed(model.config.up_block_types)) if kind == "AttnUpBlock2D"]
    assert down == up == [level]


def test_groups_of_the_normalisation_have_at_least_four_channels():
    for name in DENOISERS:
        with torch.device("meta"):
            model = build_unet(name, size_px=32, classes=None)
        for module in model.modules():
            if isinstance(module, torch.nn.GroupNorm):
                assert module.num_channels // module.num_groups >= 4, name


@pytest.mark.parametrize(
    ("name", "size_px", "problem"),
    [
        (
            "unet_nc64_rb2",
            28,
            "data.image_size: unet_nc64_rb2 halves images 3 times, so their side must be a multiple of 8 px, not 28 px",
        ),
        (MINI, 17, f"data.image_size: {MINI} halves images 1 times, so their side must be a multiple of 2 px"),
        ("unet_nc64_rb3", 32, "unknown model 'unet_nc64_rb3' .did you mean 'unet_nc64_rb2'"),
    ],
)
def test_unknown_names_and_unsuitable_sizes_are_refused(name, size_px, problem):
    with pytest.raises(RecipeError, match=problem):
        build_unet(name, size_px=size_px, classes=None)


def test_every_network_keeps_the_shape_of_its_input():
    with torch.device("meta"):
        for name in DENOISERS:
            for size_px in (8, 24, 32):
                model = build_unet(name, size_px=size_px, classes=7)
                answer = model(torch.empty(2, 3, size_px, size_px), torch.arange(2), torch.arange(2))
                assert answer.shape == (2, 3, size_px, size_px)


def test_output_and_state_dict_are_those_of_diffusers():
    torch.manual_seed(0)
    ours = build_unet(MINI, size_px=16, classes=3)
    theirs = UNet2DModel.from_config(ours.config)
    theirs.load_state_dict(ours.state_dict())
    noisy, timesteps, labels = torch.randn(2, 3, 16, 16), torch.tensor([0, 999]), torch.tensor([2, 0])
    with torch.no_grad():
        answer = ours(noisy, timesteps, labels)
        assert torch.equal(answer, theirs(noisy, timesteps, labels).sample)
        assert not torch.equal(answer, ours(noisy, timesteps.flip(0), labels)), "timesteps have no effect"
        assert not torch.equal(answer, ours(noisy, timesteps, labels.flip(0))), "labels have no effect"


def test_a_deep_copy_is_independent():
    model = build_unet(MINI, size_px=8, classes=None)
    twin = copy.deepcopy(model)
    noisy, timesteps = torch.randn(1, 3, 8, 8), torch.tensor([5])
    with torch.no_grad():
        before = model(noisy, timesteps)
        twin.conv_out.bias.add_(1)
        assert torch.equal(model(noisy, timesteps), before)
        assert torch.allclose(twin(noisy, timesteps), before + 1, atol=1e-6)


def test_every_parameter_gets_a_gradient():
    model = build_unet(MINI, size_px=8, classes=2)
    model(torch.randn(2, 3, 8, 8), torch.tensor([1, 2]), torch.tensor([0, 1])).square().mean().backward()
    still = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
    # Softmax is invariant to a constant added to all keys.
    assert [name for name in still if not name.endswith("to_k.bias")] == []


def test_memory_format_and_autocast_change_the_output_by_rounding_only():
    torch.manual_seed(0)
    model = build_unet(MINI, size_px=16, classes=None).eval()
    noisy, timesteps = torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    with torch.no_grad():
        plain = model(noisy, timesteps)
        with torch.autocast("cpu", torch.bfloat16):
            cast = model(noisy, timesteps)
        last = model.to(memory_format=torch.channels_last)(noisy.to(memory_format=torch.channels_last), timesteps)
    assert cast.dtype is torch.bfloat16
    torch.testing.assert_close(cast.float(), plain, atol=0.03, rtol=0.03)
    torch.testing.assert_close(last, plain, atol=1e-5, rtol=1e-4)
