"""ONE (Lan et al. 2018): branches on a shared trunk, taught by labels and by their own gated
ensemble.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, fx, nn

from distill.batch import Batch, Pair, Part, add_up
from distill.methods import Method
from distill.methods.copies import build_like
from distill.models import Classifier
from distill.taps import Stages, find_stages
from synthesis_kernels.divergence import mean_divergence
from synthesis_kernels.errors import EchosetError

TEMPERATURE = 3.0


def gated(branches: list[Tensor], gates: Tensor) -> Tensor:  # n of (B, K), (B, n) -> (B, K)
    """The ensemble's logits Σ gᵢ zᵢ."""
    pairs = zip(gates.unbind(1), branches, strict=True)
    return add_up(gate[:, None] * logits for gate, logits in pairs)


def ensemble_loss(branches: list[Tensor], ensemble: Tensor) -> Tensor:
    """T²·Σᵢ KL(ensemble ‖ branchᵢ), T = 3; the ensemble itself learns from labels alone."""
    target = ensemble.detach()
    return add_up(mean_divergence(target, logits, TEMPERATURE) for logits in branches)


def ramp(share: Tensor) -> Tensor:  # part of the training that is over
    """exp(−5·(1 − e/80)²) of 200 epochs: from almost nothing to 1 at two fifths of the training."""
    return (-5 * (1 - (share / 0.4).clamp_max(1)).square()).exp()


class Tails(Part):
    """Further last stages on the student's trunk, and the gate that weighs all branches."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        student = pair.student
        count = pair.options.branches
        stages = find_stages(student, pair.options.student_layers)
        if len(stages.layers) < 2:
            only = f"{student.spec.model} has one stage only"
            raise EchosetError(
                f"one branches before the last stage, and {only}; name two student_layers"
            )
        trunk = stages.layers[-2]
        self.stages = Stages((trunk,), stages.channels[-2:-1], stages.sides[-2:-1], None)
        fresh = [build_like(student, pair.seed + 1 + branch) for branch in range(count - 1)]
        self.networks = nn.ModuleList(cut_after(network, trunk) for network in fresh)
        self.gate = nn.Sequential(
            nn.Linear(stages.channels[-2], count), nn.BatchNorm1d(count), nn.ReLU(), nn.Softmax(1)
        )


def cut_after(classifier: Classifier, layer: str) -> fx.GraphModule:
    """What follows `layer` in the network, as a network of its own that takes that layer's map."""
    name = f"network.{layer}"

    class Tracer(fx.Tracer):
        def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
            return qualified_name == name or super().is_leaf_module(module, qualified_name)

    model = classifier.spec.model
    try:
        tail = fx.GraphModule(classifier, Tracer().trace(classifier))
    # Whatever a module's own Python does when no tensor comes through it.
    except Exception as error:
        raise EchosetError(
            f"one needs a network that torch.fx can trace, and {model} can't be: {error}"
        ) from error
    graph = tail.graph
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target == name]
    if not calls:
        raise EchosetError(f"{model} has no layer '{layer}' to branch after")
    end = calls[0]
    with graph.inserting_before(end):
        entrance = graph.placeholder("features")
    end.replace_all_uses_with(entrance)
    graph.eliminate_dead_code()
    for node in [n for n in graph.nodes if n.op == "placeholder" and n is not entrance]:
        if node.users:
            raise EchosetError(
                f"{model} has connections around '{layer}', so one cannot branch there; name "
                "student_layers"
            )
        graph.erase_node(node)
    tail.delete_all_unused_submodules()
    tail.recompile()
    return tail


def _loss(batch: Batch) -> Tensor:
    """The branches' logits join those of everyone, and the ensemble's."""
    tails = cast(Tails, batch.parts["Tails"])
    trunk = batch.part_taps["Tails"]
    everyone = batch.all_logits
    everyone.extend([batch.run_network(tail, trunk.maps[0]) for tail in tails.networks])
    ensemble = gated(everyone, tails.gate(trunk.maps[0].mean((2, 3))))
    loss = ramp(batch.progress) * ensemble_loss(everyone, ensemble)
    everyone.append(ensemble)
    return loss


# Branches have nothing to say before labels have taught them.
ONE = Method(
    "one",
    1.0,
    frozenset(),
    _loss,
    Tails,
    labels=1.0,
    crowd=True,
    one_decision=True,
    compares="never",
)
