"""A learned way to draw from the buffer: REINFORCE on the weights of a few features of each image.

- **State**: what is known of every image that may be drawn (`FEATURES`), each feature standardised
  over these images.
- **Action**: one weight a feature, a ~ N(θ, σ²I), for all draws of a call. Image i is drawn with
  chance
  (1 − ε)·softmax(f·a)_i + ε/N. One action for a whole call, and not one for each draw, because what
  a single draw of thousands changes is far below the noise.
- **Reward**: ln(before / after) of the divergence from the teacher on held-out images around the
  call's student steps.
- **Update**: ∇θ ln N(a; θ, σ²I) = (a − θ)/σ². Calls come in pairs with a = θ ± σξ, and the baseline
  is the mean of the pair: what
  the two have in common (how far the run is, what the generator just brought) cancels. Times σ², a
  constant, and in units of the reward's own size, that makes θ grow by rate · σξ · (r₊ − r₋)/(2s),
  with s the running root mean square of r₊ − r₋.

Seven weights are few; what images are kept and which make room is not part of the action: that
follows priority and age alone.

θ starts where draws go by disagreement alone, about as δ does. Nothing here waits for the device,
and every tensor stays where it is in memory: a captured step reads the action there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inversion.options import ReplayOptions
from inversion.parts.buffer import ReplayBuffer
from synthesis_kernels.errors import EchosetError

FEATURES = ("disagreement", "trend", "confidence", "entropy", "class", "age", "visits")
START = (0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
SPREAD = 0.3
"""σ of an action around θ."""
EVEN = 0.1
"""ε: the part of the draws that is uniform, which keeps every image in play and importance weights
bounded.
"""


# (N,) bool -> (N, F)
def features(buffer: ReplayBuffer, call: int | Tensor, allowed: Tensor) -> Tensor:
    """What the policy knows of each image, with mean 0 and deviation 1 over those allowed; constant
    features are 0.

    disagreement: log KL at the last visit; trend: its change since the visit before; confidence:
    log odds of the teacher's choice; entropy of its answer; class: mean disagreement of the image's
    class; age in calls and number of visits, as logarithms.
    """
    logs = buffer.task.summary(buffer.logits).log_softmax(1)
    best = logs.amax(1)
    disagreement = buffer.disagreement.clamp_min(1e-4).log()
    # A product of matrices, and not a scattered sum, whose order would change from run to run on
    # CUDA.
    members = F.one_hot(buffer.groups, buffer.classes).float() * allowed[:, None]  # (N, K)
    by_class = (members.T @ disagreement) / members.sum(0).clamp_min(1)
    columns = [
        disagreement,
        buffer.trend,
        best - (1 - best.exp()).clamp_min(1e-6).log(),
        -(logs.exp() * logs).sum(1),
        by_class[buffer.groups],
        (call - buffer.round).clamp_min(0).float().log1p(),
        buffer.visits.log1p(),
    ]
    values = torch.stack(columns, 1)
    weight = allowed.float()[:, None]
    count = allowed.sum().clamp_min(1)
    centred = values - (values * weight).sum(0) / count
    deviation = ((centred.square() * weight).sum(0) / count).sqrt()
    return torch.where(deviation > 1e-6, centred / deviation.clamp_min(1e-6), 0).clamp(-4, 4)


def check_policy(options: ReplayOptions) -> None:
    """Refuse weights that are not one finite number a feature."""
    weights = options.policy
    if weights and (len(weights) != len(FEATURES) or not all(map(math.isfinite, weights))):
        raise EchosetError(
            f"replay.policy needs {len(FEATURES)} weights ({', '.join(FEATURES)}), got "
            f"{list(weights)}"
        )


class Policy:
    """θ, the pair of actions under way, and what they earned."""

    def __init__(
        self, device: torch.device | str, rate: float, start: tuple[float, ...] = START
    ) -> None:
        self.rate = rate
        self.theta = torch.tensor(start, device=device)
        self.noise = torch.zeros_like(self.theta)
        self.action = self.theta.clone()  # (F,)
        """The weights that draws follow in this call: θ + σξ, or θ − σξ."""
        self.first_reward = torch.zeros((), device=device)
        self.scale = torch.zeros((), device=device)  # running mean of (r₊ − r₋)²
        self.rewards = 0

    def begin(self, generator: torch.Generator) -> None:
        """Begin a call: choose its action, with a new direction where a pair begins. A policy that
        does not learn is θ.
        """
        is_first = self.rewards % 2 == 0
        if self.rate and is_first:
            device = self.theta.device
            self.noise.copy_(torch.randn(len(self.theta), generator=generator, device=device))
        way = SPREAD if is_first else -SPREAD
        self.action.copy_(self.theta + way * self.noise)

    # (N,) bool -> (N,) sums to 1
    def chances(self, buffer: ReplayBuffer, call: int | Tensor, allowed: Tensor) -> Tensor:
        """The chance of each image to be drawn."""
        logits = (features(buffer, call, allowed) @ self.action).masked_fill(~allowed, -torch.inf)
        return (1 - EVEN) * logits.softmax(0) + EVEN * allowed / allowed.sum()

    def learn(self, reward: Tensor) -> None:
        """Take the reward of the action; after the second of a pair, move θ."""
        if self.rewards % 2 == 0:
            self.first_reward.copy_(reward)
        else:
            gain = self.first_reward - reward
            # The first pairs have no past to be measured by: the mean is over as many as there are,
            # ten at most.
            self.scale.lerp_(gain.square(), max(0.1, 1 / (1 + self.rewards // 2)))
            stride = self.rate * SPREAD * gain / (2 * self.scale.sqrt().clamp_min(1e-8))
            self.theta += stride * self.noise
        self.rewards += 1

    def state_dict(self) -> dict[str, Any]:
        """Weights, the pair under way and the reward scale."""
        return {
            name: getattr(self, name)
            for name in ("theta", "noise", "first_reward", "scale", "rewards")
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for name in ("theta", "noise", "first_reward", "scale"):
            getattr(self, name).copy_(state[name])
        self.rewards = state["rewards"]
