"""Counter-based randomness: a pure function of counters, without state, equal on every device and in any order.

A random number is the hash of a seed and of its purpose, such as (seed, epoch, example, draw). The hash chains
splitmix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"; constants by Vigna):

    h(s)         = splitmix64(s)
    h(s, c, ...) = h(h(s) xor c, ...)

in arithmetic modulo 2^64, exact in Python integers and int64 tensors alike. Counters are integers or int64 tensors,
which broadcast against each other. Torch's own generators are not used.
"""

import math

import torch
from torch import Tensor

Counter = int | Tensor

_COUNTERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)

_MASK = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def bits(seed: int, *counters: Counter, device: torch.device | str | None = None) -> Tensor:
    """Return the 64 bits of the hash as int64, in the broadcast shape of the counters.

    The default device is that of the first tensor among the counters, or the CPU.
    """
    state: Counter = _mix_int(seed)
    for counter in counters:
        if isinstance(state, int) and isinstance(counter, int):
            state = _mix_int(state ^ (counter & _MASK))
        elif isinstance(counter, Tensor):
            assert counter.dtype in _COUNTERS, f"a counter of {counter.dtype}"
            counter = counter.to(device=device, dtype=torch.int64)
            state = _mix_tensor(counter ^ (_signed(state) if isinstance(state, int) else state))
        else:
            assert isinstance(state, Tensor)
            state = _mix_tensor(state ^ _signed(counter))
    return state if isinstance(state, Tensor) else torch.tensor(_signed(state), device=device)


def uniform(seed: int, *counters: Counter, device: torch.device | str | None = None) -> Tensor:
    """Draw float32 from [0, 1). Values are multiples of 2^-24, so that rounding never gives 1."""
    return _logical_shift(bits(seed, *counters, device=device), 40).to(torch.float32) * 2.0**-24


def normal(seed: int, *counters: Counter, device: torch.device | str | None = None) -> Tensor:
    """Draw float32 from the standard normal distribution, within +-6.8, by Box & Muller (1958).

    The halves of the hash are the two uniform numbers. The arithmetic is float64 up to the final rounding, so that
    results rarely depend on the device or library, although their logarithms and cosines differ in the last digits.
    """
    hashed = bits(seed, *counters, device=device)
    above_zero = (_logical_shift(hashed, 32).double() + 0.5) * 2.0**-32
    turns = hashed.bitwise_and(2**32 - 1).double() * 2.0**-32
    return above_zero.log_().mul_(-2).sqrt_().mul_(turns.mul_(2 * math.pi).cos_()).float()


def randint(high: int, seed: int, *counters: Counter, device: torch.device | str | None = None) -> Tensor:
    """Draw int64 from 0 to `high` - 1. The relative bias of a value is at most `high` / 2^32."""
    assert 0 < high < 2**31, f"high {high}"
    return (_logical_shift(bits(seed, *counters, device=device), 32) * high) >> 32


def permutation(n: int, seed: int, epoch: int, device: torch.device | str | None = None) -> Tensor:
    """Return a random order of 0 to `n` - 1, int64 [n]."""
    return torch.argsort(bits(seed, epoch, torch.arange(n, device=device)), stable=True)


def seed_from(*counters: int) -> int:
    """Hash integers to a 63-bit seed for `torch.manual_seed`."""
    state = 0
    for counter in counters:
        state = _mix_int(state ^ (counter & _MASK))
    return state >> 1


def _mix_int(value: int) -> int:
    value = (value + _GAMMA) & _MASK
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)


def _mix_tensor(value: Tensor) -> Tensor:
    value = value + _signed(_GAMMA)
    value = (value ^ _logical_shift(value, 30)).mul_(_signed(_FIRST))
    value = (value ^ _logical_shift(value, 27)).mul_(_signed(_SECOND))
    return value ^ _logical_shift(value, 31)


def _logical_shift(value: Tensor, by: int) -> Tensor:
    """Shift right and fill with zeros; int64's own shift fills with the sign."""
    return (value >> by).bitwise_and_(2 ** (64 - by) - 1)


def _signed(value: int) -> int:
    value &= _MASK
    return value - 2**64 if value >= 2**63 else value
