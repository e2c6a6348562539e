import torch

from w2skd.tasks.diffusion.starting_noise import starting_noise


def test_a_samples_noise_depends_on_seed_and_id_only():
    ids = torch.tensor([5, 0, 2**40, 9])
    noise = starting_noise(3, ids, 8)
    assert noise.shape == (4, 3, 8, 8)
    assert noise.dtype is torch.float32
    assert torch.equal(noise[1:3], starting_noise(3, ids[1:3], 8))
    assert torch.equal(noise.flip(0), starting_noise(3, ids.flip(0), 8))
    assert not torch.equal(noise, starting_noise(4, ids, 8))
    assert starting_noise(3, ids[:0], 8).shape == (0, 3, 8, 8)


def test_samples_and_pixels_are_independent_standard_normals():
    noise = starting_noise(0, torch.arange(500), 8).flatten(1).double()
    assert abs(noise.mean().item()) < 0.01
    assert abs(noise.var().item() - 1) < 0.02
    pixels = torch.corrcoef(noise.T) - torch.eye(192)
    samples = torch.corrcoef(noise) - torch.eye(500)
    assert pixels.abs().max() < 0.25  # 5.5 times 1 / sqrt(500)
    assert samples.abs().max() < 0.4  # 5.5 times 1 / sqrt(192)


def test_torchs_generator_is_neither_read_nor_moved():
    torch.manual_seed(1)
    first = starting_noise(0, torch.arange(2), 8)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(first, starting_noise(0, torch.arange(2), 8))
    assert torch.equal(before, torch.get_rng_state())
