"""Image generation against a bare DDIM loop with the same network, as in diffusers' documentation.

Both start from the same noise. Noise and the bare loop's scheduler are prepared in advance. Target: at most 1.05.

    python benchmarks/diffusion_sampling.py [--model unet_mini_nc16_rb1] [--size 16] [--batch-size 16] [--json]
"""

from collections.abc import Callable

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from timing.alternating import build_parser, detail_rows, report, take_turns

from w2skd.tasks.diffusion.noise_schedule import NoiseSchedule
from w2skd.tasks.diffusion.recipe import DiffusionSection, SamplerSection
from w2skd.tasks.diffusion.sampling import generate
from w2skd.tasks.diffusion.starting_noise import starting_noise
from w2skd.tasks.diffusion.unet import DenoisingUNet, build_unet


def network(options) -> DenoisingUNet:
    torch.manual_seed(0)
    return build_unet(options.model, size_px=options.size, classes=None).eval().to(options.device)


def bare_loop(options) -> Callable[[], None]:
    model = network(options)
    noise = starting_noise(0, torch.arange(options.batch_size), options.size).to(options.device)
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(options.steps)

    @torch.no_grad()
    def block() -> None:
        images = noise
        for step in scheduler.timesteps:
            prediction = model(images, step.to(options.device).expand(len(images)))
            images = scheduler.step(prediction, step, images).prev_sample
        images.cpu()

    return block


def ours(options) -> Callable[[], None]:
    model = network(options)
    noise = starting_noise(0, torch.arange(options.batch_size), options.size).to(options.device)
    schedule = NoiseSchedule(DiffusionSection(), options.device)
    sampler = SamplerSection(steps=options.steps)
    return lambda: generate(model, noise, schedule=schedule, sampler=sampler).cpu()


def main() -> None:
    parser = build_parser(__doc__, rounds=48)
    parser.add_argument("--model", default="unet_mini_nc16_rb1")
    parser.add_argument("--size", type=int, default=16, help="side of the images in px [16]")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20, help="sampling steps [20]")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    turns = take_turns({"bare": lambda: bare_loop(options), "ours": lambda: ours(options)}, options.rounds)
    ratio = turns.ratio("ours", "bare")
    step_ms = {name: turns.seconds(name) / options.steps * 1e3 for name in turns.wall}
    rows = [
        ("generate / bare DDIM loop", f"{ratio}", "target at most 1.05"),
        *detail_rows(step_ms, "{:.1f} ms per step"),
    ]
    report(options, rows, {"ratios": {"sampling": ratio}, "step_ms": step_ms})


if __name__ == "__main__":
    main()
