"""The numbers that views are drawn by."""

import pytest
import torch

from synthesis_kernels.counter import LANE_STEP, MULTIPLIERS, uniforms, uniforms_reference


def test_the_counter_is_its_formula(device):
    def mix(x):
        x = (x ^ x >> 16) * MULTIPLIERS[0] % 2**32
        x = (x ^ x >> 15) * MULTIPLIERS[1] % 2**32
        return x ^ x >> 16

    index, view, seed = [0, 1, 5, 2**32 - 1], [0, 3, 2**31, 2**32 - 1], 7 * 2**32 - 5
    place = mix((mix(seed >> 32) + seed) % 2**32)
    keys = [mix((mix((i + place) % 2**32) + v) % 2**32) for i, v in zip(index, view, strict=True)]
    expected = [
        [(mix((key + lane * LANE_STEP) % 2**32) >> 8) / 2**24 for key in keys]
        for lane in range(1, 9)
    ]
    index, view = torch.tensor(index, device=device), torch.tensor(view, device=device)
    assert uniforms(index, view, seed, 8).tolist() == expected
    for many, of in ((1, view), (700, view), (20, view[2])):
        definition = uniforms_reference(index.cpu(), of.cpu(), seed, many)
        assert torch.equal(uniforms(index, of, seed, many).cpu(), definition)


@pytest.mark.parametrize("start, seed", [(0, 0), (1 << 20, 12345)])
def test_counter_numbers_look_independent(start, seed):
    count = 40_000
    place, fixed = start + torch.arange(count), torch.full((count,), 7)
    by_index, by_view = (
        uniforms(place, fixed, seed, 8).double(),
        uniforms(fixed, place, seed, 8).double(),
    )
    for numbers in (by_index, by_view):
        assert numbers.min() >= 0 and numbers.max() < 1
        assert (numbers.mean(1) - 0.5).abs().max() < 4.5 * (1 / 12 / count) ** 0.5
        assert (numbers.var(1) - 1 / 12).abs().max() < 4.5 * (1 / 180 / count) ** 0.5
        # Lanes among each other, and each lane with every lane of the next place.
        together = torch.corrcoef(torch.cat([numbers[:, :-1], numbers[:, 1:]])) - torch.eye(16)
        assert together.abs().max() < 4.5 / count**0.5
    other = uniforms(place, fixed, seed + 1, 8).double()
    assert torch.corrcoef(torch.cat([by_index, other]))[:8, 8:].abs().max() < 4.5 / count**0.5
