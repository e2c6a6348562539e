from copy import deepcopy
from functools import partial

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.unets.unet_2d import UNet2DModel
from growing import assert_same_function, gaps_between_copies, generator, randomise, train
from torch import nn

from w2skd.errors import GrowthError
from w2skd.method.channels import NEW
from w2skd.tasks.diffusion.from_diffusers import build_from_folder, load_folder
from w2skd.tasks.diffusion.growth import _frequencies, grow_unet
from w2skd.tasks.diffusion.noise_schedule import Converted, NoiseSchedule
from w2skd.tasks.diffusion.recipe import DiffusionSection
from w2skd.tasks.diffusion.unet import DenoisingUNet, build_unet

WITH_ATTENTION = {
    "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
}
FOUR_LEVELS = {
    "block_out_channels": (4, 8, 8, 8),
    "norm_num_groups": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}


def unet(ratio=1, blocks=1, groups=None, **options):
    """A U-Net with 8 and 16 channels; `ratio` multiplies channels and groups."""
    settings = {
        "block_out_channels": (8, 16),
        "norm_num_groups": 2,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": None,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
        **options,
    }
    settings["block_out_channels"] = tuple(ratio * channels for channels in settings["block_out_channels"])
    settings["norm_num_groups"] *= groups or ratio
    return DenoisingUNet(sample_size=8, layers_per_block=blocks, **settings)


def pair(small, large):
    torch.manual_seed(0)
    teacher = randomise(small()).double()
    for name, parameter in teacher.named_parameters():
        if name.endswith(("to_q.weight", "to_k.weight")):
            parameter.data *= 6  # so that attention is far from uniform
    return teacher, large().double()


def denoise(model, size_px=8, labels=None):
    dtype = next(model.parameters()).dtype
    noisy = torch.randn(3, 3, size_px, size_px, dtype=dtype, generator=generator(3))
    return model(noisy, torch.tensor([0, 311, 999]), labels)


PAIRS = {
    "wider": (unet, partial(unet, 2)),
    "four times wider": (unet, partial(unet, 4)),
    "deeper": (unet, partial(unet, blocks=3)),
    "both": (unet, partial(unet, 2, 2)),
    "both, more blocks": (partial(unet, blocks=2), partial(unet, 2, 3)),
    "attention at all levels": (partial(unet, **WITH_ATTENTION), partial(unet, 2, 2, **WITH_ATTENTION)),
    "four levels": (partial(unet, **FOUR_LEVELS), partial(unet, 2, 2, **FOUR_LEVELS)),
    "as many groups": (unet, partial(unet, 2, 2, groups=1)),
    "heads of 8": (partial(unet, attention_head_dim=8), partial(unet, 2, 2, attention_head_dim=8)),
    "wider heads": (partial(unet, attention_head_dim=4), partial(unet, 4, attention_head_dim=8)),
    "scale and shift": (
        partial(unet, resnet_time_scale_shift="scale_shift"),
        partial(unet, 2, 2, resnet_time_scale_shift="scale_shift"),
    ),
    "residual resampling": (
        partial(unet, downsample_type="resnet", upsample_type="resnet"),
        partial(unet, 2, 2, downsample_type="resnet", upsample_type="resnet"),
    ),
    "own groups for attention": (
        partial(unet, attn_norm_num_groups=4),
        partial(unet, 2, 2, attn_norm_num_groups=4),
    ),
    "no attention in the middle": (
        partial(unet, add_attention=False, attn_norm_num_groups=4),
        partial(unet, 2, add_attention=False, attn_norm_num_groups=4),
    ),
    "other embedding": (
        partial(unet, freq_shift=0, flip_sin_to_cos=True),
        partial(unet, 2, freq_shift=0, flip_sin_to_cos=True),
    ),
}


def by_name(names=PAIRS):
    return pytest.mark.parametrize("builds", [PAIRS[name] for name in names], ids=list(names))


@by_name()
def test_the_student_computes_the_same_as_the_teacher(builds):
    teacher, student = pair(*builds)
    before = deepcopy(teacher.state_dict())
    growth = grow_unet(student, teacher, generator())
    assert growth.kind == "grown"
    assert growth.new_norms == ()
    assert_same_function(student, teacher, denoise)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert denoise(teacher).std() > 0.1, "nothing to compare"


def test_at_every_timestep():
    teacher, student = pair(unet, partial(unet, 2))
    grow_unet(student, teacher, generator())
    timesteps = torch.arange(1000)
    embedded = [model.time_proj(timesteps).double() for model in (student, teacher)]
    ours, theirs = (model.time_embedding(each) for model, each in zip((student, teacher), embedded, strict=True))
    torch.testing.assert_close(ours[:, ::2], theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours[:, 1::2], theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("channels", "ratio", "exact"), [(16, 2, True), (64, 2, True), (16, 4, True), (64, 3, False)])
def test_frequencies_of_the_teacher_are_among_the_students(channels, ratio, exact):
    timesteps = torch.arange(1000)
    theirs = get_timestep_embedding(timesteps, channels, downscale_freq_shift=1)
    ours = get_timestep_embedding(timesteps, ratio * channels, downscale_freq_shift=ratio)
    positions = _frequencies(channels, ratio)
    chosen = ours[:, positions != NEW]
    assert torch.equal(positions[positions != NEW], torch.arange(channels))
    assert torch.equal(chosen, theirs) if exact else torch.allclose(chosen, theirs, rtol=0, atol=1e-4)
    plain = get_timestep_embedding(timesteps, ratio * channels, downscale_freq_shift=1)
    assert (plain[:, positions != NEW] - theirs).abs().max() > 1


def test_three_times_wider_agrees_as_far_as_the_float32_of_the_time_embedding():
    teacher, student = pair(unet, partial(unet, 3))
    grow_unet(student, teacher, generator())
    assert_same_function(student, teacher, denoise, atol=1e-3)


def test_classes():
    teacher, student = pair(partial(unet, num_class_embeds=5), partial(unet, 2, num_class_embeds=5))
    grow_unet(student, teacher, generator())
    assert_same_function(student, teacher, partial(denoise, labels=torch.tensor([4, 0, 2])))
    assert not torch.equal(*(denoise(student, labels=torch.full((3,), each)) for each in (0, 1)))


def test_the_networks_of_the_recipes():
    teacher, student = pair(
        partial(build_unet, "unet_nc64_rb2", size_px=8, classes=None),
        partial(build_unet, "unet_nc128_rb3", size_px=8, classes=None),
    )
    growth = grow_unet(student, teacher, generator())
    with torch.no_grad():
        torch.testing.assert_close(denoise(student), denoise(teacher), rtol=0, atol=1e-9)
    assert growth.notes == (
        "residual blocks per level: 2 became 3",
        "channels per level: 64, 128, 128, 128 became 128, 256, 256, 256",
        "norms have the teacher's 16 groups, not 32",
        "the time embedding has freq_shift 2, not 1, to keep its frequencies",
    )


@pytest.mark.parametrize(
    ("small", "large"),
    [("unet_mini_nc16_rb1", "unet_mini_nc32_rb2"), ("unet_mini_nc32_rb1", "unet_mini_nc64_rb2")],
)
def test_the_networks_for_cpus(small, large):
    teacher, student = pair(*(partial(build_unet, name, size_px=16, classes=None) for name in (small, large)))
    grow_unet(student, teacher, generator())
    assert_same_function(student, teacher, partial(denoise, size_px=16))


def test_diffusers_reads_the_grown_network_from_its_configuration_and_state_dict():
    teacher, student = pair(unet, partial(unet, 2, 2))
    grow_unet(student, teacher, generator())
    theirs = UNet2DModel.from_config(student.config).double()
    theirs.load_state_dict(student.state_dict())
    noisy, timesteps = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([7, 800])
    with torch.no_grad():
        assert torch.equal(theirs(noisy, timesteps).sample, student(noisy, timesteps))


def test_settings_beside_the_weights_rebuild_the_grown_network():
    teacher, student = pair(partial(unet, attn_norm_num_groups=4), partial(unet, 2, 2, attn_norm_num_groups=4))
    fresh = deepcopy(student)
    grow_unet(student, teacher, generator())
    assert student.settings_beside_weights() == {"norm_num_groups": 2, "freq_shift": 2}
    fresh.load_state_dict(student.state_dict())
    with torch.no_grad():
        assert not torch.allclose(denoise(fresh), denoise(student))
        fresh.set_beside_weights(**student.settings_beside_weights())
        assert torch.equal(denoise(fresh), denoise(student))


def test_a_folder_of_diffusers_holds_the_settings(tmp_path):
    teacher, student = pair(unet, partial(unet, 2, 2))
    grow_unet(student, teacher, generator())
    student.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("DenoisingUNet", "UNet2DModel"))
    again = build_from_folder(tmp_path, size_px=8, classes=None).double()
    again.load_state_dict(load_folder(tmp_path).state)
    with torch.no_grad():
        assert torch.equal(denoise(again), denoise(student))


@pytest.mark.parametrize(
    "settings", [{"norm_num_groups": 3}, {"norm_num_groups": 0}, {"norm_num_groups": "2"}, {"freq_shift": None}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="invalid for this U-Net: norm_num_groups "):
        unet().set_beside_weights(**{"norm_num_groups": 2, "freq_shift": 1, **settings})


def test_a_grown_network_can_grow_again():
    teacher, student = pair(unet, partial(unet, 2))
    grow_unet(student, teacher, generator())
    larger = unet(4, 2).double()
    grow_unet(larger, student, generator(1))
    assert larger.settings_beside_weights() == {"norm_num_groups": 2, "freq_shift": 4}
    assert_same_function(larger, teacher, denoise)


def test_the_same_size_is_a_warm_start():
    teacher, student = pair(partial(unet, 2), partial(unet, 2))
    growth = grow_unet(student, teacher, generator())
    assert (growth.kind, growth.notes) == ("warm start", ("copied the teacher, which has the student's architecture",))
    assert_same_function(student, teacher, denoise, atol=0.0)
    teacher, student = pair(partial(unet, 2, groups=1, freq_shift=2), partial(unet, 2))
    growth = grow_unet(student, teacher, generator())
    assert growth.kind == "warm start"
    assert_same_function(student, teacher, denoise, atol=0.0)


def squared_error(model):
    """The loss of a denoiser on random images."""
    target = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=generator(9))
    return (denoise(model) - target).square().mean()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@by_name(["both", "attention at all levels"])
def test_added_blocks_train(builds, optimizer):
    """The first step moves the tensors that start at zero, later steps the layers before them; queries move slowly."""
    teacher, student = pair(*builds)
    growth = grow_unet(student, teacher, generator())
    moved = train(student, squared_error, optimizer, steps=8)
    # Softmax is invariant to a constant added to all keys.
    still = [name for name, size in moved.items() if size < 1e-9 and not name.endswith("to_k.bias")]
    assert still == []
    assert growth.added > 20


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_copies_part_and_new_inputs_are_used(optimizer):
    """In every layer, the outputs of copies agree at first and differ after some steps."""
    teacher, student = pair(partial(unet, **WITH_ATTENTION), partial(unet, 2, **WITH_ATTENTION))
    grow_unet(student, teacher, generator())
    layers = nn.Conv2d | nn.Linear | nn.GroupNorm
    names = [name for name, each in student.named_modules() if isinstance(each, layers) and name != "conv_out"]
    assert max(gaps_between_copies(student, denoise, names).values()) < 1e-9
    train(student, squared_error, optimizer, steps=10)
    gaps = gaps_between_copies(student, denoise, names)
    assert len(gaps) == len(names) > 50
    assert {name: gap for name, gap in gaps.items() if gap < 1e-4} == {}
    assert student.time_embedding.linear_1.weight[:, 1::2].abs().min() > 0


@pytest.mark.parametrize(
    ("small", "large", "problem"),
    [
        (partial(unet, 2), unet, "student: its number of channels is 8, not a multiple of .* 16: use 16 or 32"),
        (
            unet,
            partial(unet, block_out_channels=(16, 48)),
            "levels have 16, 48 channels, the teacher's 8, 16: use the same ratio at every level, such as 16, 32",
        ),
        (
            partial(unet, blocks=2),
            unet,
            "has 1 residual blocks per level, the teacher 2: the student must be at least as deep",
        ),
        (
            partial(unet, num_class_embeds=5),
            partial(unet, 2, num_class_embeds=7),
            "student: its num_class_embeds is 7, the teacher's 5: use the same for both",
        ),
        (unet, partial(unet, **WITH_ATTENTION), "its down_block_types is .* the teacher's .*: use the same for both"),
        (
            partial(unet, attention_head_dim=8),
            partial(unet, 2, attention_head_dim=4, norm_num_groups=1),
            "attentions.0: its number of channels per head is 4, not a multiple of the teacher's 8",
        ),
    ],
)
def test_what_cannot_grow_is_refused(small, large, problem):
    torch.manual_seed(0)
    teacher, student = small(), large()
    before, settings = deepcopy(student.state_dict()), student.settings_beside_weights()
    with pytest.raises(GrowthError, match=problem):
        grow_unet(student, teacher, generator())
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert student.settings_beside_weights() == settings


def test_a_ratio_of_two_and_a_half_is_refused_with_the_numbers_that_go():
    with torch.device("meta"):
        teacher, student = (build_unet(name, size_px=32, classes=None) for name in ("unet_nc64_rb2", "unet_nc160_rb3"))
    with pytest.raises(GrowthError, match=r"is 160, not a multiple of the teacher's 64: use 128 or 192"):
        grow_unet(student, teacher, generator())


def test_a_teacher_of_another_prediction_is_refused():
    schedule = NoiseSchedule(DiffusionSection(prediction="v"), torch.device("cpu"))
    with pytest.raises(GrowthError, match=r"its prediction type differs .*: set diffusion.prediction to the teacher's"):
        grow_unet(unet(2), Converted(unet(), schedule), generator())
    with pytest.raises(GrowthError, match="teacher: a Linear cannot grow into a U-Net"):
        grow_unet(unet(2), nn.Linear(1, 1), generator())


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"time_embedding_type": "fourier"},
            "time_embedding_type is fourier: only U-Nets with positional can be grown",
        ),
        ({"class_embed_type": "timestep"}, "its class_embed_type is timestep: only U-Nets with None can be grown"),
    ],
)
def test_other_embeddings_are_refused(settings, problem):
    with pytest.raises(GrowthError, match=problem):
        grow_unet(*(unet(each, **settings) for each in (2, 1)), generator())


def test_unknown_kinds_of_blocks_are_refused():
    kinds = {"down_block_types": ("DownBlock2D", "SkipDownBlock2D"), "up_block_types": ("SkipUpBlock2D", "UpBlock2D")}
    with pytest.raises(GrowthError, match="blocks of type SkipDownBlock2D cannot be grown; supported: DownBlock2D, "):
        grow_unet(
            *(unet(each, block_out_channels=(32, 32), norm_num_groups=4, **kinds) for each in (2, 1)), generator()
        )
