"""Segmentation: what its task says of label maps, and the layouts that images are made for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from distill import ModelSpec
from distill.tasks import find_task
from distill.tasks.layouts import draw_layouts, near_edges
from distill.tasks.places import VOID, count_decisions, label_rows, share_hit

TASK = find_task("segmentation")


def drawn(count=66, classes=11, size=(24, 40), seed=0):
    wanted = torch.arange(count) % classes
    return wanted, draw_layouts(wanted, classes, size, torch.Generator().manual_seed(seed))


def test_a_layout_shows_its_class_most_and_leaves_edges_open():
    wanted, maps = drawn(size=(96, 128))
    assert maps.shape == (66, 96, 128)
    known = maps[maps != VOID]
    assert known.min() >= 0 and known.max() < 11
    shares = count_decisions(maps, 11) / len(known)
    assert shares.min() > 0.5 / 11 and shares.max() < 2 / 11
    own = torch.stack(
        [(one == label).float().mean() for one, label in zip(maps, wanted, strict=True)]
    )
    assert (own > 0.1).float().mean() > 0.8
    assert 0.1 < (maps == VOID).float().mean() < 0.6
    again = drawn(size=(96, 128))[1]
    assert torch.equal(maps, again)
    assert not torch.equal(maps, drawn(size=(96, 128), seed=1)[1])


def test_no_known_place_of_a_layout_lies_near_another_class():
    _, maps = drawn(count=4, size=(48, 60))
    margin = 2
    for one in maps:
        rows, columns = torch.where(one != VOID)
        for row, column in zip(rows[::37].tolist(), columns[::37].tolist(), strict=True):
            top, left = max(row - margin, 0), max(column - margin, 0)
            near = one[top : row + margin + 1, left : column + margin + 1]
            assert set(near.unique().tolist()) <= {VOID, one[row, column].item()}


def test_small_layouts_ask_for_most_of_their_pixels():
    for side, least in ((8, 1.0), (16, 1.0), (32, 0.6)):
        _, maps = drawn(count=64, size=(side, side))
        assert (maps != VOID).float().mean() >= least
        assert (maps != VOID).flatten(1).any(1).all()


def test_edges_are_where_labels_change():
    maps = torch.zeros(1, 5, 9, dtype=torch.long)
    maps[:, :, 5:] = 3
    assert near_edges(maps, 1)[0, 2].tolist() == [column in (4, 5) for column in range(9)]
    assert not near_edges(maps, 0).any()


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 1000))
def test_void_counts_nowhere(classes, count, seed):
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count, 5, 7), generator=random)
    void = torch.rand(labels.shape, generator=random) < 0.3
    marked = torch.where(void, VOID, labels)
    counts = count_decisions(marked, classes)
    assert counts.tolist() == [int(((labels == c) & ~void).sum()) for c in range(classes)]
    rows = label_rows(marked, classes)
    assert torch.equal(rows.sum(1), (~void).float())
    guess = torch.randint(classes, labels.shape, generator=random)
    asked = int((~void).sum())
    hits = int(((guess == labels) & ~void).sum())
    assert share_hit(guess, marked) == pytest.approx(hits / max(asked, 1))


def test_an_image_counts_for_what_it_has_more_of_than_others():
    maps = torch.zeros(3, 4, 10, dtype=torch.long)  # 0 is everywhere
    maps[1, :, :3] = 1
    maps[2, :, :2] = 2
    assert TASK.group(maps, 3).tolist() == [0, 1, 2]
    assert TASK.group(maps[1:2], 3).tolist() == [0]  # alone: what covers most


class Operations(TorchDispatchMode):
    """How many tensor operations there are, and the most bytes that one of them gives."""

    def __init__(self):
        super().__init__()
        self.count = 0
        self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.count += 1
        if isinstance(result, torch.Tensor):
            self.most = max(self.most, result.nbytes)
        return result


def test_images_are_grouped_all_at_once():
    counts = []
    for images in (2, 50):
        with Operations() as operations:
            TASK.group(torch.zeros(images, 4, 6, dtype=torch.uint8), 3)
        counts.append(operations.count)
    assert counts[0] == counts[1]


def test_rows_of_labels_take_no_more_memory_than_they_have():
    with Operations() as operations:
        rows = label_rows(torch.zeros(2, 8, 8, dtype=torch.uint8), 40)
    assert rows.dtype == torch.float32
    assert operations.most == rows.nbytes == 4 * 40 * 2 * 8 * 8


def test_shortage_is_told_in_images_worth_of_pixels():
    assert TASK.shortfall([1000, 1000, 1000], [10, 10, 10], 30) == {}
    assert TASK.shortfall([1600, 1200, 200], [10, 10, 10], 30) == {2: 3}
    # A third of the images, evenly spread.
    assert TASK.shortfall([300, 300, 300], [10, 10, 10], 9) == {0: 2, 1: 2, 2: 2}
    assert TASK.is_balanced([10, 20, 12]) and not TASK.is_balanced([10, 40, 4])


def test_places_are_all_pixels():
    spec = ModelSpec("x", channels=3, size=(8, 12), classes=3, task="segmentation")
    assert TASK.places(spec) == (8, 12)
    wanted = torch.tensor([0, 1])
    maps = TASK.targets(wanted, spec, torch.Generator().manual_seed(0))
    assert maps.shape == (2, 8, 12) and maps.dtype == torch.int64
