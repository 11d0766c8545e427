"""The arms: where the previous token comes in, and by how much. All one-layer arms of a seed start from one set of
weights and read the same examples."""

from dataclasses import dataclass

import torch
from torch import nn

from modeling_prism.modeling_momentum import MomentumAttention


class OtherPreviousAttention(MomentumAttention):
    """A control: x_(t-1) is replaced by `find_previous`. For whole sequences without padding, without a cache."""

    def find_previous(self, states: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def shear(self, states: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        return super().shear(states, self.find_previous(states))


class WrongLagAttention(OtherPreviousAttention):
    """x_(t-2) in place of x_(t-1)."""

    def find_previous(self, states: torch.Tensor) -> torch.Tensor:
        return torch.cat((states[:, :2], states[:, :-2]), dim=1)


class ShuffledAttention(OtherPreviousAttention):
    """A token at random among those up to t in place of x_(t-1), drawn anew at every call."""

    def find_previous(self, states: torch.Tensor) -> torch.Tensor:
        batch_size, length, width = states.shape
        up_to = torch.arange(1, length + 1, device=states.device)
        drawn = (torch.rand(batch_size, length, device=states.device) * up_to).long()
        return states.gather(1, drawn[..., None].expand(-1, -1, width))


class LearnedShiftAttention(MomentumAttention):
    """A gamma for each head that is learned, from 0: what KV-shifting attention (Xu et al., arXiv 2411.19574) does to
    keys, but for its values."""

    def __init__(self, config, layer_idx: int):
        super().__init__(config, layer_idx)
        self.head_gamma = nn.Parameter(torch.zeros(config.num_key_value_heads))

    def get_gamma(self) -> torch.Tensor:
        return self.head_gamma

    def shear(self, states: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        gamma = self.get_gamma().repeat_interleave(self.head_dim)
        return states + gamma * (states - previous)


class SmearedKeyAttention(LearnedShiftAttention):
    """k_t becomes s k_t + (1 - s) k_(t-1), s in (0, 1) learned for each head, from 1/2: a low-pass filter (Olsson et
    al. 2022)."""

    def get_gamma(self) -> torch.Tensor:
        return -torch.sigmoid(self.head_gamma)


@dataclass(frozen=True)
class Arm:
    """One arm; `attention` replaces the layer's own."""

    layers: int = 1
    gamma: float = 0.0
    streams: str = "qk"
    placement: str = "post_rope"
    attention: type[MomentumAttention] | None = None


ARMS = {
    "one-layer": Arm(),
    "two-layers": Arm(layers=2),
    "both-0.3": Arm(gamma=0.3),
    "both-1": Arm(gamma=1.0),
    "both-4.17": Arm(gamma=4.17),
    "keys-1": Arm(gamma=1.0, streams="k"),
    "keys-4.17": Arm(gamma=4.17, streams="k"),
    "queries-1": Arm(gamma=1.0, streams="q"),
    "both-1-pre-rope": Arm(gamma=1.0, placement="pre_rope"),
    "keys-1-pre-rope": Arm(gamma=1.0, streams="k", placement="pre_rope"),
    "both-negative": Arm(gamma=-0.5),
    "keys-negative": Arm(gamma=-0.5, streams="k"),
    "keys-wrong-lag": Arm(gamma=1.0, streams="k", attention=WrongLagAttention),
    "keys-shuffled": Arm(gamma=1.0, streams="k", attention=ShuffledAttention),
    "keys-learned": Arm(streams="k", attention=LearnedShiftAttention),
    "keys-smeared": Arm(streams="k", attention=SmearedKeyAttention),
}
