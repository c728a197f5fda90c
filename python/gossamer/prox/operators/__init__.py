"""The compiled operators, which take numbers only; the penalty classes call them."""

from gossamer.prox.operators.elementwise import adamw_step_, elementwise_
from gossamer.prox.operators.groupwise import (
    group_norms,
    metric_group_l2_,
    scale_groups_,
    wgsef_gains,
    wgsef_value,
)
from gossamer.prox.operators.vector import l1_ball_, l1_minus_l2_, simplex_, top_k_

__all__ = [
    "adamw_step_",
    "elementwise_",
    "group_norms",
    "l1_ball_",
    "l1_minus_l2_",
    "metric_group_l2_",
    "scale_groups_",
    "simplex_",
    "top_k_",
    "wgsef_gains",
    "wgsef_value",
]
