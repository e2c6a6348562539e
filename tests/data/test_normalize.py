import pytest
import torch

from w2skd.data.images import Normalization
from w2skd.data.normalize import Normalizer, to_bytes


@pytest.mark.parametrize("channels_last", [False, True])
def test_any_size_and_layout_is_normalised(channels_last: bool):
    normalize = Normalizer(Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)), torch.device("cpu"), channels_last)
    mean, std = torch.tensor([0.4, 0.5, 0.6])[:, None, None], torch.tensor([0.2, 0.25, 0.3])[:, None, None]
    for height, width in ((4, 6), (3, 3), (4, 6)):
        pixels = torch.arange(2 * height * width * 3).view(2, height, width, 3).to(torch.uint8).permute(0, 3, 1, 2)
        images = normalize(pixels)
        assert images.dtype is torch.float32
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        assert images.is_contiguous(memory_format=memory_format)
        torch.testing.assert_close(images, (pixels / 255 - mean) / std, rtol=0, atol=2e-6)


def test_bytes_come_back_from_what_was_normalised():
    normalization = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    images = Normalizer(normalization, torch.device("cpu"), False)(pixels)
    assert torch.equal(to_bytes(images, normalization), pixels)
    assert torch.equal(to_bytes(images[0], normalization), pixels[0])
    far_off = torch.tensor([-100.0, 100.0]).expand(3, 1, 2)
    assert to_bytes(far_off, normalization)[:, 0].tolist() == [[0, 255]] * 3
