"""Folders that diffusers wrote, and damaged or unsuitable ones."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from safetensors.torch import load_file
from tiny import assert_same_weights

from w2skd.errors import CheckpointError, RecipeError
from w2skd.tasks.diffusion.from_diffusers import build_from_folder, current_names, load_folder, noising_process
from w2skd.tasks.diffusion.task import DiffusionTask
from w2skd.weights.load import load_into

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


def test_a_network_has_the_architecture_of_its_folder(tmp_path):
    theirs = written(tmp_path, attention_head_dim=None, norm_eps=1e-6, act_fn="relu", mid_block_scale_factor=2)
    torch.manual_seed(1)
    ours = build_from_folder(tmp_path, size_px=8, classes=None)
    assert not torch.equal(ours.conv_in.weight, theirs.conv_in.weight), "freshly initialised"
    ours.load_state_dict(theirs.state_dict())
    noisy, timesteps = torch.randn(2, 3, 8, 8), torch.tensor([0, 999])
    with torch.no_grad():
        assert torch.equal(ours(noisy, timesteps), theirs(noisy, timesteps).sample)


def test_a_pipelines_folder_is_accepted(tmp_path):
    written(tmp_path / "unet", num_class_embeds=3)
    (tmp_path / "model_index.json").write_text("{}")
    assert build_from_folder(tmp_path, size_px=8, classes=3).config.num_class_embeds == 3
    assert load_folder(tmp_path).path == tmp_path / "unet" / "diffusion_pytorch_model.safetensors"


def test_missing_settings_are_the_librarys_defaults(tmp_path):
    written(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("_class_name", "act_fn", "freq_shift", "add_attention", "num_class_embeds"):
        del config[key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert build_from_folder(tmp_path, size_px=8, classes=None).config.act_fn == "silu"


def test_networks_without_a_fixed_size_need_one_that_they_can_halve(tmp_path):
    written(tmp_path, sample_size=None)
    build_from_folder(tmp_path, size_px=10, classes=None)
    with pytest.raises(RecipeError, match=r"data\.image_size: diffusers:.* must be a multiple of 2 px, not 9 px"):
        build_from_folder(tmp_path, size_px=9, classes=None)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "a UNet2DConditionModel, but only UNet2DModel denoises"),
        ({"in_channels": 1, "out_channels": 1}, "maps 1 to 1 channels, expected 3 to 3"),
        ({"out_channels": 6}, "maps 3 to 6 channels"),
        ({"sample_size": 32}, "made for images of 32 px, but data.image_size is 8 px"),
        ({"sample_size": [8, 16]}, "made for images of 8 x 16 px, but data.image_size is 8 px"),
        ({"num_class_embeds": 10}, "built for 10 classes .*, but the recipe has no classes"),
        ({"class_embed_type": "timestep"}, "class_embed_type 'timestep' is not supported, only null"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type 'fourier' is not supported, only \"positional\""),
        ({"of_the_future": 1}, "the installed diffusers has no UNet2DModel setting of_the_future"),
        ({"norm_num_groups": 7}, "cannot build the network: "),
        ({"down_block_types": ["DownBlock2D", "os.system"]}, "cannot build the network: os.system does not exist"),
        ({"down_block_types": None}, "cannot build the network: "),
    ],
)
def test_unsuitable_networks_are_refused_in_one_line(settings, problem, tmp_path):
    written(tmp_path)
    change(tmp_path / "config.json", **settings)
    with pytest.raises(RecipeError, match=problem) as caught:
        build_from_folder(tmp_path, size_px=8, classes=None)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: ")
    assert "\n" not in str(caught.value)


def test_an_unconditional_network_cannot_be_class_conditional(tmp_path):
    written(tmp_path)
    with pytest.raises(RecipeError, match=r"built for no classes .*, but the recipe has 10 classes"):
        build_from_folder(tmp_path, size_px=8, classes=10)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"sample_size": 8, "in_ch', "damaged or truncated"),
        ("", "damaged or truncated"),
        ("[1]", "expected a mapping, got a list"),
    ],
)
def test_a_damaged_configuration_is_refused(text, problem, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RecipeError, match=rf"config\.json: {problem}"):
        build_from_folder(tmp_path, size_px=8, classes=None)


def test_a_folder_without_a_network_is_refused(tmp_path):
    for reads in (lambda folder: build_from_folder(folder, size_px=8, classes=None), load_folder, noising_process):
        with pytest.raises(RecipeError, match="no such folder"):
            reads(tmp_path / "nowhere")
        with pytest.raises(RecipeError, match=r"contains neither config\.json nor unet/config\.json"):
            reads(tmp_path)


def test_missing_weights_are_refused_and_safetensors_preferred(tmp_path):
    model = written(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"contains neither diffusion_pytorch_model\.safetensors nor"):
        load_folder(tmp_path)
    model.save_pretrained(tmp_path, safe_serialization=False)
    assert load_folder(tmp_path).path.name == "diffusion_pytorch_model.bin"
    model.save_pretrained(tmp_path)
    assert load_folder(tmp_path).path.name == "diffusion_pytorch_model.safetensors"


def test_former_names_of_attention_projections_are_replaced(tmp_path):
    today = written(tmp_path).state_dict()
    former = {
        name.replace("to_q", "query")
        .replace("to_k", "key")
        .replace("to_v", "value")
        .replace("to_out.0", "proj_attn"): tensor
        for name, tensor in today.items()
    }
    assert former.keys() != today.keys()
    assert current_names(former).keys() == today.keys()
    assert all(current_names(former)[name] is tensor for name, tensor in today.items())
    assert current_names(today).keys() == today.keys()


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (DDPMScheduler(), ("epsilon", 1000, "linear")),
        (DDIMScheduler(500, beta_schedule="squaredcos_cap_v2"), ("epsilon", 500, "cosine")),
        (DDPMScheduler(prediction_type="v_prediction"), ("v", 1000, "linear")),
        (PNDMScheduler(beta_end=0.012), ("epsilon", 1000, "linear from 0.0001 to 0.012")),
        (
            DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
            ("epsilon", 1000, "scaled_linear from 0.00085 to 0.012"),
        ),
        (DDIMScheduler(3, trained_betas=[0.1, 0.2, 0.3]), ("epsilon", 3, "custom betas")),
        (DDIMScheduler(rescale_betas_zero_snr=True), ("epsilon", 1000, "linear, rescaled to zero terminal SNR")),
    ],
)
def test_the_noising_process_is_described_in_the_recipes_terms(scheduler, expected, tmp_path):
    written(tmp_path / "unet")
    scheduler.save_pretrained(tmp_path / "scheduler")
    process = dict(zip(("prediction", "timesteps", "beta_schedule"), expected, strict=True))
    assert noising_process(tmp_path) == process
    assert noising_process(tmp_path / "unet") == process, "the U-Net's own folder in its pipeline"


def test_the_oldest_folders_keep_both_configurations_in_one_place(tmp_path):
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
        (
            '{"beta_schedule": "linear", "prediction_type": "sample"}',
            "prediction_type 'sample' is not supported; supp",
        ),
        (
            '{"_class_name": "ScoreSdeVeScheduler", "sigma_min": 0.01}',
            "ScoreSdeVeScheduler: not a noising process with",
        ),
        ('{"beta_sch', "damaged or truncated"),
    ],
)
def test_other_processes_are_refused_in_one_line(config, problem, tmp_path):
    written(tmp_path / "unet")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(config)
    with pytest.raises(CheckpointError, match=rf"scheduler_config\.json: {problem}") as caught:
        noising_process(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def pipeline(tmp_path):
    """A pipeline's folder as diffusers writes it."""
    written(tmp_path / "ddpm" / "unet")
    DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(tmp_path / "ddpm" / "scheduler")
    return tmp_path / "ddpm"


def test_weights_of_a_folder_fit_the_network_that_it_describes(pipeline):
    weights = DiffusionTask.open_weights(Path("pretrained"), f"diffusers:{pipeline}")
    file = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    assert weights.path == file
    assert weights.details == {
        "source": f"diffusers {pipeline}",
        "prediction": "epsilon",
        "timesteps": 1000,
        "beta_schedule": "cosine",
    }
    assert_same_weights(weights.state, load_file(file))
    load_into(build_from_folder(pipeline, size_px=8, classes=None), weights, expected="diffusers")


def test_pickled_weights_are_read_without_running_them(pipeline):
    safe = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    state, pickled = load_file(safe), safe.with_suffix(".bin")
    safe.unlink()
    torch.save(state, pickled)
    assert_same_weights(load_folder(pipeline).state, state)
    torch.save({"x": Path("code")}, pickled)
    with pytest.raises(CheckpointError, match=r"model\.bin: refused: it contains pickled code"):
        load_folder(pipeline)
    safe.write_bytes(bytes([99, 0, 0, 0, 0, 0, 0, 0]) + b'{"x')
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged or truncated"):
        load_folder(pipeline)


def test_a_folders_weights_have_no_tags(pipeline):
    with pytest.raises(RecipeError, match="have no tags; replace pretrained:v2 by pretrained"):
        DiffusionTask.open_weights(Path("pretrained:v2"), f"diffusers:{pipeline}")


def test_other_models_have_no_published_weights():
    with pytest.raises(RecipeError, match=r"^unet_mini_nc16_rb1: has no published weights$"):
        DiffusionTask.open_weights(Path("pretrained"), "unet_mini_nc16_rb1")
