"""The optimiser Muon: matrices made orthogonal, vectors by Adam; and the rate's schedule."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.optimisers import COEFFICIENTS, Muon, newton_schulz, stack_up
from distill.update import one_cycle

SHAPES = [(5, 8), (8, 5), (6, 6), (4, 3, 3, 3), (16, 2, 3, 3), (8, 16, 1, 1), (3, 2, 5)]


def test_schedule_rises_then_falls_to_zero():
    shares = [one_cycle(step, 100, 0.2) for step in range(100)]
    assert (
        max(range(100), key=shares.__getitem__) in (19, 20)
        and shares[0] < 0.05
        and shares[-1] < 0.001
    )
    assert shares[:20] == sorted(shares[:20]) and shares[20:] == sorted(shares[20:], reverse=True)
    assert one_cycle(500, 100, 0.2) < 1e-9


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 8), (6, 6)])
def test_orthogonalised_singular_values_are_near_one(shape, precision):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)).to(precision)
    values = torch.linalg.svdvals(newton_schulz(matrices, steps=6).float())
    assert values.min() > 0.5 and values.max() < 1.4


def orthogonalise(matrix):  # (R, C)
    """One matrix by itself, in float64, as the paper has it."""
    a, b, c = COEFFICIENTS
    x = matrix.double() / (matrix.double().norm() + 1e-7)
    for _ in range(4):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


@settings(max_examples=25)
@given(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=6), st.integers(0, 99))
def test_matrices_made_orthogonal_together_are_as_each_by_itself(shapes, seed):
    random = torch.Generator().manual_seed(seed)
    layout = [torch.contiguous_format, torch.channels_last][seed % 2]
    parameters = []
    for shape in shapes:
        parameter = torch.randn(shape, generator=random)
        if len(shape) == 4:
            parameter = parameter.contiguous(memory_format=layout)
        parameters.append(parameter)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.optimisers.resolve_precision", lambda device: torch.float32)
        stacks = stack_up(parameters)
    assert sorted(place for stack in stacks for place in stack.places) == [*range(len(shapes))]
    for stack in stacks:
        moves = stack.orthogonalise([parameters[place] for place in stack.places], torch.tensor(2))
        for place, move in zip(stack.places, moves, strict=True):
            matrix = parameters[place].flatten(1)
            rows, columns = matrix.shape
            expected = 2 * max(1, rows / columns) ** 0.5 * orthogonalise(matrix)
            torch.testing.assert_close(
                move.flatten(1).double(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max()
            )


def test_few_stacks_are_made_where_little_is_wasted():
    small = [torch.zeros(16, 27), torch.zeros(32, 288), torch.zeros(10, 64)]
    assert len(stack_up(small)) == 1
    large = [torch.zeros(512, 4608), torch.zeros(64, 576)]
    assert len(stack_up(large)) == 2


def test_a_parameter_without_a_gradient_stays_where_it_is():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    muon = Muon(network, learning_rate=1e-1)
    for trained in ([0, 1], [1], [0]):
        before = [parameter.detach().clone() for parameter in network.parameters()]
        for index, layer in enumerate(network):
            for parameter in layer.parameters():
                parameter.grad = torch.ones_like(parameter) if index in trained else None
        muon.step()
        moved = [
            not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True)
        ]
        assert moved == [index in trained for index in (0, 0, 1, 1)]


def test_muon_minimises_and_its_vectors_follow_adam():
    torch.manual_seed(0)
    network = torch.nn.Linear(4, 4)
    reference = torch.nn.Parameter(network.bias.detach().clone())
    ours = Muon(network, learning_rate=1e-1)
    adam = torch.optim.Adam([reference], 1e-2)
    for step in range(5):
        gradient = torch.randn(4, generator=torch.Generator().manual_seed(step))
        network.bias.grad, reference.grad = gradient.clone(), gradient.clone()
        ours.step()
        adam.step()
    torch.testing.assert_close(network.bias, reference)


def test_each_vector_counts_its_own_gradients():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    vectors = [one for one in network.parameters() if one.ndim < 2]
    references = [torch.nn.Parameter(one.detach().clone()) for one in vectors]
    ours = Muon(network, learning_rate=1e-1)
    adam = torch.optim.Adam(references, 1e-2)
    random = torch.Generator().manual_seed(0)
    for taught in ([0], [0, 1], [0, 1, 2], [2], [0, 1, 2]):
        for place, (one, other) in enumerate(zip(vectors, references, strict=True)):
            gradient = torch.randn(4, generator=random)
            one.grad = gradient.clone() if place in taught else None
            other.grad = gradient if place in taught else None
        # Restored in between, as after a stop.
        ours.load_state_dict(copy.deepcopy(ours.state_dict()))
        ours.step()
        adam.step()
    for one, other in zip(vectors, references, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
