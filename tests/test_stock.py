"""The stock: what is kept of what is offered, against a plain loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.options import ViewOptions
from distill.tasks import find_task
from inversion.sources.making import augmented, mixed
from inversion.sources.random import Random
from inversion.sources.stock import Stock
from inversion.sources.stream import BLOCK
from synthesis_kernels.errors import EchosetError

CPU = torch.device("cpu")


def naive_stock(quotas, balanced, batches):
    """Slots filled one image after another: for each class (or the one group of all) the numbers of
    the images it took.
    """
    room = list(quotas) if balanced else [sum(quotas)]
    held = [[] for _ in room]
    taken = []
    number = 0
    for batch in batches:
        counts = [0] * len(quotas)
        for label, allowed in batch:
            group = label if balanced else 0
            if allowed and len(held[group]) < room[group]:
                held[group].append((number, label))
                counts[label] += 1
            number += 1
        taken.append(counts)
    return held, taken


def offer_all(stock, batches):
    number = 0
    taken = []
    for turn, batch in enumerate(batches):
        labels = torch.tensor([label for label, _ in batch], dtype=torch.long)
        allowed = torch.tensor([allowed for _, allowed in batch], dtype=torch.bool)
        images = (
            (number + torch.arange(len(batch)))
            .to(torch.uint8)
            .view(-1, 1, 1, 1)
            .expand(-1, 1, 2, 2)
        )
        logits = torch.eye(stock.classes)[labels] * 5 + number
        taken.append(stock.offer(images, logits, allowed, turn).tolist())
        number += len(batch)
    return taken


some_batches = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=15), max_size=6
)


@given(st.lists(st.integers(0, 4), min_size=4, max_size=4), st.booleans(), some_batches)
@settings(max_examples=120)
def test_the_first_images_of_each_class_are_kept_in_their_order(quotas, balanced, batches):
    stock = Stock(quotas, (1, 2, 2), balanced, CPU)
    held, taken = naive_stock(quotas, balanced, batches)
    assert offer_all(stock, batches) == taken
    assert stock.held.tolist() == [len(group) for group in held]
    room = quotas if balanced else [sum(quotas)]
    assert stock.full == all(len(group) == most for group, most in zip(held, room, strict=True))
    in_turn = [
        group[place] for place in range(max(map(len, held))) for group in held if place < len(group)
    ]
    kept = stock.kept()
    assert stock.images[kept, 0, 0, 0].tolist() == [number for number, _ in in_turn]
    assert stock.logits[kept].argmax(1).tolist() == [label for _, label in in_turn]
    rounds = [turn for turn, batch in enumerate(batches) for _ in batch]
    assert stock.round[kept].tolist() == [rounds[number] for number, _ in in_turn]
    if balanced:
        assert stock.missing().tolist() == [
            most - len(group) for group, most in zip(held, quotas, strict=True)
        ]
    copy = Stock(quotas, (1, 2, 2), balanced, CPU)
    copy.load_state_dict({name: value.clone() for name, value in stock.state_dict().items()})
    for one in (stock, copy):
        offer_all(one, batches)
    assert all(
        torch.equal(value, copy.state_dict()[name]) for name, value in stock.state_dict().items()
    )


def test_any_part_of_a_full_stock_is_balanced():
    stock = Stock([3, 3, 2, 2], (1, 2, 2), True, CPU)
    offer_all(stock, [[(label, True) for label in (0, 0, 0, 3, 3, 2, 1, 2, 1, 1)]])
    labels = stock.logits[stock.kept()].argmax(1)
    for end in range(1, 11):
        counts = torch.bincount(labels[:end], minlength=4)
        assert counts.max() - counts.min() <= 1


def test_what_is_short_is_that_of_the_class_an_image_was_kept_for():
    stock = Stock([3, 2], (1, 2, 2), True, CPU, find_task("segmentation"), (1, 4))
    # All show class 0 most. The last counts for class 1 beside the others, and not by itself.
    maps = torch.tensor([[[0, 0, 0, 0]], [[0, 0, 0, 0]], [[0, 0, 0, 1]]])
    logits = torch.eye(2)[maps].movedim(-1, 1)
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    stock.offer(images, logits, torch.ones(3, dtype=torch.bool), 0)
    stock.offer(images[:1], logits[:1], torch.ones(1, dtype=torch.bool), 1)
    assert stock.missing().tolist() == [0, 1]
    short = stock.kept()[stock.lacking(stock.kept()) > 0]
    assert short.tolist() == [3] and stock.lacking(torch.tensor([0, 3])).tolist() == [0, 1]


def test_making_images_copies_no_answers(monkeypatch):
    stock = Stock([2, 2], (1, 8, 8), True, CPU)
    offer = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8)
    stock.offer(offer, torch.eye(2)[[0, 0, 1]], torch.ones(3, dtype=torch.bool), 0)
    monkeypatch.delattr(stock, "logits")
    made = augmented(stock, ViewOptions(), Random(CPU, "augment", 0, 0), 0, 0)
    assert len(made) == BLOCK
    assert len(mixed(stock, made[:5], Random(CPU, "mixup", 0, 0))) == 5


def test_answers_of_too_many_maps_are_refused_before_memory_is_taken():
    said = r"5,000 images would take 19\.6 GiB .*16 GiB is the most, about 4,076 images; .*--images"
    with pytest.raises(EchosetError, match=said):
        Stock([5000] + [0] * 20, (3, 224, 224), True, CPU, places=(224, 224))


def test_what_is_turned_away_leaves_no_trace():
    stock = Stock([1, 1], (1, 2, 2), True, CPU)
    offer_all(stock, [[(0, True), (0, True), (1, False)]])
    assert not stock.images[-1].any()
    assert not stock.logits[-1].any()
    assert stock.kept().tolist() == [0]
