"""Neural spline flow: increasing rational-quadratic splines where RealNVP and its kin scale and shift (Durkan et al. 2019).

    coupling          y = b z + (1 - b) spline(z; net(b z))          both directions cost one pass
    autoregressive    z_t = spline(x_t; net(x_<t))                   a density costs one pass, a draw d of them

A spline of K bins bends one coordinate in K places, so a few layers separate modes that take many affine ones, and a single
coordinate can be given any law. Beyond [-bound, bound], in units of the data's spread, the map is the identity and tails stay
Gaussian. The linear maps that the paper puts between layers are random halves (coupling) and reversals (autoregressive) here.

Row "normalizing flow" of the table; `flow.py` says what all flows share, `nets/monotone.py` gives the spline.
"""

from typing import Any, Literal

from gensamp.core import Model, Target
from gensamp.nets.couplings import spline_couplings
from gensamp.nets.event import Event
from gensamp.nets.masked import masked_layers
from gensamp.nets.monotone import Spline
from gensamp.pushforward.flows.flow import flow
from gensamp.pushforward.flows.masked_autoregressive import slow_inverse, turned

__all__ = ["neural_spline"]


def neural_spline(
    template: Any,
    *,
    form: Literal["coupling", "autoregressive"] = "coupling",
    target: Target | None = None,
    num_bins: int = 8,
    bound: float | int = 4.0,
    num_layers: int = 4,
    width: int = 64,
    depth: int = 2,
    dequantise: Any = 0.0,
    num_draws: int = 256,
    anneal: int = 0,
    weighted: bool = False,
) -> Model:
    """A neural spline flow over events of any shape (flattened).

    Args:
        template: one event of d coordinates.
        form: "coupling" or "autoregressive".
        num_bins: bins of each spline. bound: where the splines end, in units of the data's spread.
        num_layers, width, depth: layers, and hidden units and layers of each network.
        target, dequantise, num_draws, anneal, weighted: as for `realnvp`.

    Returns:
        Model with log_density (params, x); a draw costs one forward, or d if autoregressive. Metrics as for `realnvp`.

    Raises:
        ValueError: a size is not positive, fewer than two bins, an unknown form, or as for `realnvp`.
    """
    event = Event.of(template)
    sizes = {"num_layers": num_layers, "width": width, "depth": depth, "dtype": event.dtype}
    if form == "coupling":
        bijection = spline_couplings(event.size, num_bins=num_bins, bound=bound, **sizes)
    elif form == "autoregressive":
        bijection = turned(slow_inverse(masked_layers(event.size, Spline(num_bins, bound), **sizes), event.size))
    else:
        raise ValueError(f"neural_spline got form={form!r}; expected 'coupling' or 'autoregressive'")
    options = {"target": target, "dequantise": dequantise, "num_draws": num_draws, "anneal": anneal, "weighted": weighted}
    return flow("neural_spline", template, bijection, **options)
