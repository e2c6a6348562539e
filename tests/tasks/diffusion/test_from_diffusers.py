"""Folders that diffusers itself has written, and ones that went wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler

from w2skd.errors import CheckpointError, RecipeError
from w2skd.tasks.diffusion.from_diffusers import build_from_folder, noising_process, present_names, weights_file

TINY: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


def written(folder: Path, **settings: Any) -> UNet2DModel:
    torch.manual_seed(0)
    model = UNet2DModel(**TINY | settings)
    model.save_pretrained(folder)
    return model


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_network_is_built_as_its_folder_says(tmp_path):
    theirs = written(tmp_path, attention_head_dim=None, norm_eps=1e-6, act_fn="relu", mid_block_scale_factor=2)
    torch.manual_seed(1)
    ours = build_from_folder(tmp_path, size_px=8, classes=None)
    assert not torch.equal(ours.conv_in.weight, theirs.conv_in.weight), "freshly initialised"
    ours.load_state_dict(theirs.state_dict())
    noisy, timesteps = torch.randn(2, 3, 8, 8), torch.tensor([0, 999])
    with torch.no_grad():
        assert torch.equal(ours(noisy, timesteps), theirs(noisy, timesteps).sample)


def test_a_pipelines_folder_will_do(tmp_path):
    written(tmp_path / "unet", num_class_embeds=3)
    (tmp_path / "model_index.json").write_text("{}")
    assert build_from_folder(tmp_path, size_px=8, classes=3).config.num_class_embeds == 3
    assert weights_file(tmp_path) == tmp_path / "unet" / "diffusion_pytorch_model.safetensors"


def test_what_a_file_leaves_out_is_the_librarys_default(tmp_path):
    written(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("_class_name", "act_fn", "freq_shift", "add_attention", "num_class_embeds"):
        del config[key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert build_from_folder(tmp_path, size_px=8, classes=None).config.act_fn == "silu"


def test_networks_for_any_size_take_those_that_they_can_halve(tmp_path):
    written(tmp_path, sample_size=None)
    build_from_folder(tmp_path, size_px=10, classes=None)
    with pytest.raises(RecipeError, match=r"data\.image_size: diffusers:.* must be a multiple of 2 px, not 9 px"):
        build_from_folder(tmp_path, size_px=9, classes=None)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "a UNet2DConditionModel, not a UNet2DModel"),
        ({"in_channels": 1, "out_channels": 1}, "a network from 1 to 1 channels, not from 3 to 3"),
        ({"out_channels": 6}, "a network from 3 to 6 channels"),
        ({"sample_size": 32}, "a network for images of 32 px, where data.image_size is 8 px"),
        ({"sample_size": [8, 16]}, "a network for images of 8 x 16 px, where data.image_size is 8 px"),
        ({"num_class_embeds": 10}, "is told of 10 classes .* the recipe has no classes to tell"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier'"),
        ({"of_the_future": 1}, "the installed diffusers knows no of_the_future of a UNet2DModel"),
        ({"norm_num_groups": 7}, "no network can be built of it: "),
        ({"down_block_types": ["DownBlock2D", "os.system"]}, "no network can be built of it: os.system does not exist"),
        ({"down_block_types": None}, "no network can be built of it: "),
    ],
)
def test_networks_that_cannot_be_used_are_refused_in_a_line(settings, problem, tmp_path):
    written(tmp_path)
    change(tmp_path / "config.json", **settings)
    with pytest.raises(RecipeError, match=problem) as caught:
        build_from_folder(tmp_path, size_px=8, classes=None)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: ")
    assert "\n" not in str(caught.value)


def test_a_network_without_classes_cannot_be_told_any(tmp_path):
    written(tmp_path)
    with pytest.raises(RecipeError, match=r"told of no classes .* the recipe has 10 classes to tell"):
        build_from_folder(tmp_path, size_px=8, classes=10)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"sample_size": 8, "in_ch', "damaged or cut off"),
        ("", "damaged or cut off"),
        ("[1]", "holds list, not settings"),
    ],
)
def test_a_damaged_configuration_is_told(text, problem, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RecipeError, match=rf"config\.json: {problem}"):
        build_from_folder(tmp_path, size_px=8, classes=None)


def test_a_folder_without_a_network_is_told(tmp_path):
    for reads in (lambda folder: build_from_folder(folder, size_px=8, classes=None), weights_file, noising_process):
        with pytest.raises(RecipeError, match="no such folder"):
            reads(tmp_path / "nowhere")
        with pytest.raises(RecipeError, match=r"neither config\.json nor unet/config\.json is in it"):
            reads(tmp_path)


def test_missing_weights_are_told_and_pickled_ones_come_second(tmp_path):
    model = written(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no weights, neither diffusion_pytorch_model\.safetensors nor"):
        weights_file(tmp_path)
    model.save_pretrained(tmp_path, safe_serialization=False)
    assert weights_file(tmp_path).name == "diffusion_pytorch_model.bin"
    model.save_pretrained(tmp_path)
    assert weights_file(tmp_path).name == "diffusion_pytorch_model.safetensors"


def test_former_names_of_attention_become_todays(tmp_path):
    today = written(tmp_path).state_dict()
    former = {
        name.replace("to_q", "query")
        .replace("to_k", "key")
        .replace("to_v", "value")
        .replace("to_out.0", "proj_attn"): tensor
        for name, tensor in today.items()
    }
    assert former.keys() != today.keys()
    assert present_names(former).keys() == today.keys()
    assert all(present_names(former)[name] is tensor for name, tensor in today.items())
    assert present_names(today).keys() == today.keys()


@pytest.mark.parametrize(
    ("scheduler", "told"),
    [
        (DDPMScheduler(), ("epsilon", 1000, "linear")),
        (DDIMScheduler(500, beta_schedule="squaredcos_cap_v2"), ("epsilon", 500, "cosine")),
        (DDPMScheduler(prediction_type="v_prediction"), ("v", 1000, "linear")),
        (PNDMScheduler(beta_end=0.012), ("epsilon", 1000, "linear from 0.0001 to 0.012")),
        (
            DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
            ("epsilon", 1000, "scaled_linear from 0.00085 to 0.012"),
        ),
        (DDIMScheduler(3, trained_betas=[0.1, 0.2, 0.3]), ("epsilon", 3, "betas of its own")),
        (DDIMScheduler(rescale_betas_zero_snr=True), ("epsilon", 1000, "linear, rescaled to end without signal")),
    ],
)
def test_the_noising_process_is_told_in_the_recipes_words(scheduler, told, tmp_path):
    written(tmp_path / "unet")
    scheduler.save_pretrained(tmp_path / "scheduler")
    expected = dict(zip(("prediction", "timesteps", "beta_schedule"), told, strict=True))
    assert noising_process(tmp_path) == expected
    assert noising_process(tmp_path / "unet") == expected, "the U-Net's own folder in its pipeline"


def test_the_oldest_folders_keep_both_in_one_place_and_say_less(tmp_path):
    written(tmp_path)
    assert noising_process(tmp_path) == {}
    # The scheduler_config.json of google/ddpm-cifar10-32.
    (tmp_path / "scheduler_config.json").write_text(
        json.dumps(
            {
                "_class_name": "DDPMScheduler",
                "_diffusers_version": "0.1.1",
                "beta_end": 0.02,
                "beta_schedule": "linear",
                "beta_start": 0.0001,
                "clip_sample": True,
                "num_train_timesteps": 1000,
                "trained_betas": None,
                "variance_type": "fixed_large",
            }
        )
    )
    assert noising_process(tmp_path) == {"prediction": "epsilon", "timesteps": 1000, "beta_schedule": "linear"}


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ('{"beta_schedule": "linear", "prediction_type": "sample"}', "the network predicts 'sample'; of diffusers'"),
        ('{"_class_name": "ScoreSdeVeScheduler", "sigma_min": 0.01}', "ScoreSdeVeScheduler: not a process that adds"),
        ('{"beta_sch', "damaged or cut off"),
    ],
)
def test_other_processes_are_refused_in_a_line(config, problem, tmp_path):
    written(tmp_path / "unet")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(config)
    with pytest.raises(CheckpointError, match=rf"scheduler_config\.json: {problem}") as caught:
        noising_process(tmp_path)
    assert "\n" not in str(caught.value)
