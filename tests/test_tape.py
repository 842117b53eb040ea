"""Steps on a CPU that are recorded and replayed: the same bits as eager ones, or eager steps."""

import gc
import os
import signal
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from distill import DistillOptions, StudentOptions, build_student, distill, load_images
from distill.data.images import Images
from distill.loop import Interrupted
from distill.replaying import is_known
from distill.runtime import Runtime
from inversion import MNIST_SLICE
from synthesis_kernels.backend import kernel_form
from synthesis_kernels.frozen_conv3x3 import Packed
from synthesis_kernels.tape import Replayed, Tape

SHORT = DistillOptions(steps=60, batch=32, views_per_image=3)


def images(count=96):
    data = load_images(MNIST_SLICE)
    return Images(data.images[:count], data.labels[:count], "slice")


@pytest.fixture
def made(monkeypatch):
    """All `Replayed` that are made."""
    found = []
    begin = Replayed.__init__

    def listening(self, function):
        begin(self, function)
        found.append(self)

    monkeypatch.setattr(Replayed, "__init__", listening)
    return found


def learnt(teacher, options, step="auto", student="convnet-8", precision="float32", **given):
    """The student's tensors after a distillation."""
    network = student
    if isinstance(student, str):
        network = build_student(StudentOptions(model=student), teacher.contract, 1)
    runtime = Runtime(device="cpu", quiet=True, step=step, precision=precision)
    result = distill(network, images(), teacher, options, runtime=runtime, **given)
    return list(result.student.state_dict().values())


def assert_same(found, wanted):
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


LESSONS = {
    "hinton": SHORT,
    "fresh views": replace(SHORT, views_per_image=0),
    "labels": replace(SHORT, labels="data", loss={"labels": 1.0}),
    "average": replace(SHORT, ema=0.9),
    "patience": replace(SHORT, patience=2),
    "sgd": replace(SHORT, optimiser="sgd"),
}
for name in ("at", "bss", "dml", "fitnet", "fsp", "hints", "mse", "one", "rkd", "sp"):
    LESSONS[name] = replace(SHORT, loss={name: 1.0})
EAGER = ("sgd", "one")
"""The rate of torch's SGD is asked for by Python; a student that `torch.fx` has made is not known.
"""


@pytest.mark.parametrize("name", LESSONS)
def test_a_distillation_is_the_same_to_the_bit(name, teacher, made):
    wanted = learnt(teacher, LESSONS[name], "eager")
    assert not made
    found = learnt(teacher, LESSONS[name])
    assert_same(found, wanted)
    assert any(each.tape for each in made) is (name not in EAGER)


@pytest.mark.parametrize("student", ["wrn-16-1", "lenet5", "convnet-gn-8", "vit-32x1"])
def test_so_is_that_of_other_students(student, teacher, made):
    options = replace(SHORT, batch=8)
    wanted = learnt(teacher, options, "eager", student)
    assert_same(learnt(teacher, options, "auto", student), wanted)
    assert made[-1].tape


def test_so_is_one_in_bfloat16(teacher, made):
    options = replace(SHORT, steps=50, batch=8)
    wanted = learnt(teacher, options, "eager", precision="bfloat16")
    assert_same(learnt(teacher, options, precision="bfloat16"), wanted)
    assert made[-1].tape


def test_a_stopped_one_goes_on_to_the_same_bits(teacher, made, tmp_path):
    options = replace(SHORT, steps=120, batch=8)

    class Stop:
        def log(self, figures, step):
            if step == 50:
                os.kill(os.getpid(), signal.SIGINT)

    wanted = learnt(teacher, options)
    with pytest.raises(Interrupted):
        learnt(teacher, options, folder=tmp_path, log=Stop())
    found = learnt(teacher, options, folder=tmp_path)
    assert_same(found, wanted)
    ran = [each for each in made if each.calls]
    assert [each.calls for each in ran] == [120, 50, 70] and all(each.tape for each in ran)


def test_a_training_that_is_over_holds_no_step_s_memory(teacher, monkeypatch):
    rooms = []
    begin = Tape.__init__

    def watching(self, recording):
        begin(self, recording)
        rooms.append(weakref.ref(self))

    monkeypatch.setattr(Tape, "__init__", watching)
    gc.disable()
    try:
        learnt(teacher, SHORT)
        assert len(rooms) == 1 and rooms[0]() is None
    finally:
        gc.enable()


def test_short_trainings_are_eager(teacher, made):
    learnt(teacher, replace(SHORT, steps=49))
    assert not made


class Counting(nn.Module):
    """A student that does something in Python."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(28 * 28, 10)
        self.passes = 0

    def forward(self, x):
        self.passes += self.training
        return self.layer(x.flatten(1))


def test_code_of_the_user_s_own_runs_at_every_step(teacher, made):
    student = Counting()
    learnt(teacher, SHORT, student=student)
    assert student.passes >= SHORT.steps and not made


def test_so_does_a_loss(teacher, made):
    calls = []

    def own(batch):
        calls.append(1)
        return (batch.logits - batch.answers).square().mean()

    learnt(teacher, SHORT, losses={own: 1.0})
    assert len(calls) == SHORT.steps and not made


def test_so_do_hooks_and_optimisers(teacher, made):
    calls = []
    network = build_student(StudentOptions(model="convnet-8"), teacher.contract, 1)
    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    first.register_forward_hook(lambda *_: calls.append(1))
    learnt(teacher, SHORT, student=network)
    assert len(calls) >= SHORT.steps
    learnt(teacher, SHORT, optimiser=lambda weights: torch.optim.SGD(weights, 0.1))
    assert not made


def test_networks_of_others_are_eager(teacher, made):
    layers = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10))
    learnt(teacher, SHORT, student=layers)
    assert not made


def test_what_is_known():
    assert is_known(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)))
    assert not is_known(nn.Sequential(nn.ReLU(), Counting()))
    watched = nn.Linear(2, 2)
    watched.weight.register_post_accumulate_grad_hook(lambda weight: None)
    assert not is_known(watched)
    heard = nn.Linear(2, 2)
    heard.bias.register_hook(lambda gradient: None)
    assert not is_known(heard)
    assert not is_known(torch.jit.script(nn.Linear(2, 2)))
    assert not is_known(torch.compile(nn.Linear(2, 2), backend="eager"))


class Steps:
    """A small network that learns, with all its state."""

    def __init__(self, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = nn.Sequential(
                nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.2)
            )
        self.optimiser = torch.optim.SGD(self.network.parameters(), 0.1, momentum=0.9, foreach=True)
        self.random = torch.Generator().manual_seed(seed)

    def __call__(self, x, y):
        self.optimiser.zero_grad(set_to_none=True)
        noise = torch.randn(x.shape, generator=self.random)
        z = self.network(x + 0.1 * noise)
        loss = (z.mean((2, 3)) - y).square().sum()
        loss.backward()
        self.optimiser.step()
        return loss.detach(), z.detach()

    def tensors(self):
        kept = [state["momentum_buffer"] for state in self.optimiser.state.values()]
        return [*self.network.state_dict().values(), *kept, self.random.get_state()]


def batches(count, batch=4, seed=1):
    random = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield (
            torch.randn(batch, 16, 8, 8, generator=random),
            torch.randn(batch, 16, generator=random),
        )


def follow(run, pairs):
    """What each step gave; its memory is the next one's."""
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of dropout
        return [[tensor.clone() for tensor in run(*pair)] for pair in pairs]


def assert_alike(eager, replayed, steps, pairs):
    wanted = follow(eager, pairs)
    found = follow(replayed, pairs)
    for one, other in zip(found, wanted, strict=True):
        assert_same(one, other)
    assert_same(steps.tensors(), eager.tensors())


def test_a_step_is_listened_to_twice_compared_once_and_then_replayed():
    steps, eager = Steps(), Steps()
    runs = []

    def counted(*inputs):
        runs.append(1)
        return steps(*inputs)

    replayed = Replayed(counted)
    assert_alike(eager, replayed, steps, list(batches(9)))
    assert len(runs) == 4 and replayed.problem is None


def test_other_inputs_are_computed_eagerly():
    steps, eager = Steps(), Steps()
    replayed = Replayed(steps)
    pairs = [*batches(5), *batches(2, batch=3), *batches(2)]
    last_in_place = [pair[0].contiguous(memory_format=torch.channels_last) for pair in batches(1)]
    pairs += [(last_in_place[0], pairs[0][1]), *batches(2)]
    assert_alike(eager, replayed, steps, pairs)
    assert replayed.tape


def test_so_are_steps_on_other_threads_or_by_other_kernels():
    steps, eager = Steps(), Steps()
    replayed = Replayed(steps)
    pairs = list(batches(5))
    assert_alike(eager, replayed, steps, pairs)
    assert replayed.tape.takes(pairs[0])
    threads = torch.get_num_threads()
    with kernel_form("reference"):
        assert not replayed.tape.takes(pairs[0])
        assert_alike(eager, replayed, steps, pairs)
    torch.set_num_threads(threads + 1)
    try:
        assert not replayed.tape.takes(pairs[0])
    finally:
        torch.set_num_threads(threads)


def test_weights_that_a_replay_has_changed_are_not_taken_for_the_same():
    """Frozen networks keep transformed weights for as long as these have not changed."""
    steps = Steps()
    weight = steps.network[0].weight
    packed = Packed()
    replayed = Replayed(steps)
    for pair in batches(4):
        replayed(*pair)
    rows = torch.zeros(4, 8, 8, 16)
    assert replayed.tape and packed.find(rows, weight, False)[1]
    assert not packed.find(rows, weight, False)[1]
    replayed(*pair)
    assert packed.find(rows, weight, False)[1]


def counter():
    count = 0

    def step(x):
        nonlocal count
        count += 1
        return (x * count,)

    return step


def moving():
    """Memory that a step leaves for the next one."""
    kept = torch.zeros(3)

    def step(x):
        nonlocal kept
        kept = kept + x
        return (kept * 1,)

    return step


def asking():
    return lambda x: (x * 2 if x.sum() > 0 else x * 3,)


def choosing():
    return lambda x: (torch.zeros(3) + x[x > 0].sum(),)


def finding():
    return lambda x: (x.new_zeros(3) + x.nonzero().float().mean(),)


def growing():
    def step(x):
        out = torch.empty(0)
        torch.mul(x, 2, out=out)
        return (out + 1,)

    return step


def turning():
    kept = torch.zeros(3, 3)

    def step(x):
        view = kept.detach()
        view.add_(x)
        view.t_()
        return (view * 1,)

    return step


def seeding():
    def step(x):
        torch.manual_seed(3)
        return (torch.rand(3) + x,)

    return step


def unseen():
    kept = torch.zeros(3)

    def step(x):
        kept.numpy()[:] += x.numpy()
        return (kept * 1,)

    return step


def sparse():
    return lambda x: ((x.to_sparse() * 2).to_dense(),)


REFUSED = {
    "counter": (counter, "not the same"),
    "moving": (moving, "not the same"),
    "asking": (asking, "a number"),
    "choosing": (choosing, "as much as the numbers say"),
    "finding": (finding, "as much as the numbers say"),
    "growing": (growing, "grown"),
    "turning": (turning, "about"),
    "seeding": (seeding, "the same bits"),
    "unseen": (unseen, "the same bits"),
    "sparse": (sparse, "layout"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_another_run_would_not_repeat_stays_eager(name):
    make, why = REFUSED[name]
    replayed, eager = Replayed(make()), make()
    random = torch.Generator().manual_seed(0)
    for _ in range(7):
        x = torch.randn(3, generator=random)
        assert torch.equal(replayed(x)[0], eager(x)[0])
    assert replayed.tape is None and why in replayed.problem


def test_an_input_that_is_given_twice_stays_eager():
    replayed = Replayed(lambda x, y: (x + y,))
    x = torch.ones(3)
    for _ in range(5):
        assert replayed(x, x)[0].tolist() == [2, 2, 2]
    assert torch.equal(replayed(x, 2 * x)[0], 3 * x)
    assert replayed.tape is None


def test_so_do_inputs_that_share_memory_and_one_that_lies_elsewhere():
    both = torch.arange(24.0).view(2, 3, 4)
    sharing = Replayed(lambda x, y: (x + 1, y.T * 2))
    whole = torch.arange(60.0)
    elsewhere = Replayed(lambda x: (x[1:] + 1, x.T.contiguous()))
    for number in range(6):
        x, y = both + number
        for one, other in ((both[0], both[1]), (x, y.clone())):
            more, turned = sharing(one, other)
            assert torch.equal(more, one + 1) and torch.equal(turned, other.T * 2)
        part = whole[number : number + 12].view(3, 4)
        rows, turned = elsewhere(part)
        assert torch.equal(rows, part[1:] + 1) and torch.equal(turned, part.T)
    assert sharing.tape is None and "share" in sharing.problem


def test_an_input_that_nobody_reads_and_one_that_is_given_back():
    replayed = Replayed(lambda x, y: (x, x + 1))
    for number in range(6):
        x = torch.full((2,), float(number))
        same, more = replayed(x, torch.zeros(1))
        assert torch.equal(same, x) and torch.equal(more, x + 1)
    assert replayed.tape


def test_memory_serves_again():
    def step(x):
        for _ in range(10):
            room = torch.empty_like(x)
            torch.mul(x, 2, out=room)
            x = room
        return (x.clone(),)

    replayed = Replayed(step)
    x = torch.ones(100)
    for _ in range(5):
        assert torch.equal(replayed(x)[0], 1024 * x)
    places = {storage.data_ptr() for storage in replayed.tape._rooms.values()}
    assert len(places) == 2


def test_a_step_that_fails_while_it_is_listened_to_leaves_nothing_behind():
    from synthesis_kernels import native

    def step(x):
        if len(calls) == 2:
            raise KeyboardInterrupt
        return (x + 1,)

    calls = []
    replayed = Replayed(step)
    listeners = list(native.listeners)
    for _ in range(6):
        calls.append(1)
        try:
            assert replayed(torch.zeros(2))[0].tolist() == [1, 1]
        except KeyboardInterrupt:
            assert len(calls) == 2
    assert native.listeners == listeners and replayed.tape


UNARY = [
    lambda x: x.sin(),
    lambda x: x.t(),
    lambda x: x[1:, :].contiguous(),
    lambda x: x.view(torch.int32).view(torch.float32) * 1,
    lambda x: x.add_(1),
    lambda x: torch.stack([x, x]).sum(0),
    lambda x: torch.cat(x.split(1)),
    lambda x: x.sort(0).values,
    lambda x: x.expand(2, *x.shape)[1],
    lambda x: torch.empty_like(x).copy_(x),
    lambda x: x.max(0).indices[:, None] + x.T,
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(range(len(UNARY))), min_size=1, max_size=8), st.booleans())
def test_programs_of_views_and_changes_in_place(numbers, ends_kept):
    def make():
        state = torch.ones(5, 5)

        def step(x):
            kept = [x]
            y = x + state
            for number in numbers:
                y = UNARY[number](y)
                if y.numel() == 0 or y.shape[0] < 2:
                    y = x * 2
                y = y.contiguous()
                kept.append(y)
            state.mul_(0.5).add_(y.mean())
            return (*kept[1:], y) if ends_kept else (y,)

        return step

    replayed, eager = Replayed(make()), make()
    random = torch.Generator().manual_seed(0)
    for _ in range(6):
        x = torch.randn(5, 5, generator=random)
        assert_same(replayed(x.clone()), eager(x.clone()))
    assert replayed.tape
