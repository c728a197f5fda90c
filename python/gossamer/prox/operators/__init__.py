"""The compiled operators, which take numbers only; the penalty classes call them."""

from gossamer.prox.operators.chains import isotonic_, simplices_, total_variation_
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
    "isotonic_",
    "l1_ball_",
    "l1_minus_l2_",
    "metric_group_l2_",
    "scale_groups_",
    "simplex_",
    "simplices_",
    "top_k_",
    "total_variation_",
    "wgsef_gains",
    "wgsef_value",
]
