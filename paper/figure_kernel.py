"""Fig. 2: how many tokens are attentive at each stage, and the quantization kernel for them (Eq. 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from nextscale.calib_data.attention_scores import sampled_scores
from nextscale.calib_data.choose_theta import attentive_shares
from nextscale.paper._figure import DPI, Figure, Workshop, rounded

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]
THETAS = (0.01, 0.02, 0.05, 0.1, 0.2)
SCALE = 1.0  # s
ORDERS = (1, 2)  # n, with t_n = s / 4n: 1/4 and 1/8
SHOWN = np.linspace(-1.25, 1.25, 1001)
# The plain quantizer, and the kernel of each order.
COLOURS = {0: "#666666", 1: "tab:blue", 2: "tab:red"}
WIDTHS = {0: 1.2, 1: 1.5, 2: 1.8}
LINES = {0: ":", 1: "--", 2: "-"}


def figure_2(workshop: Workshop) -> Figure:
    """The share of tokens above each theta; the kernel, and its error with the bound of Theorem 1."""
    settings, bundle = workshop.settings, workshop.original.bundle
    statistics = sampled_scores(
        bundle,
        settings.observed,
        settings.seed,
        workshop.session,
        workshop.counted("observing attention", settings.observed),
    )
    shares = attentive_shares(statistics, bundle.model, THETAS)

    def write(file: BinaryIO) -> None:
        from matplotlib.figure import Figure as Canvas

        from nextscale.calib_data.plot_theta import draw_attentive_share

        canvas = Canvas(figsize=(13, 4), layout="constrained")
        left, middle, right = canvas.subplots(1, 3)
        draw_attentive_share(left, shares, THETAS)
        left.set_title(f"attentive tokens of {workshop.model_name}, {settings.observed} images")
        _draw_kernels(middle)
        _draw_errors(right)
        canvas.savefig(file, format="png", dpi=DPI)

    thetas = {f"{theta:g}": rounded(share) for theta, share in zip(THETAS, shares, strict=True)}
    return Figure(write, {"images": settings.observed, "share_above_theta_by_stage": thetas, "kernel": kernels()})


def quantized(v: Array, scale: float = SCALE) -> Array:
    """Q(v): the nearest multiple of the scale, the upper one of two."""
    nearest: Array = scale * np.floor(v / scale + 0.5)
    return nearest


def kernel(v: Array, order: int, shift: float, scale: float = SCALE) -> Array:
    """f_n(v; t_n) = 1/2n sum over k = -n ... n - 1 of Q(v + (2k + 1) t_n) (Eq. 9); Q(v) for order 0.

    Args:
        v: any shape.
        order: n.
        shift: t_n.
        scale: s, the step of Q.
    """
    if order == 0:
        return quantized(v, scale)
    copies = [quantized(v + (2 * k + 1) * shift, scale) for k in range(-order, order)]
    mean: Array = np.mean(copies, axis=0)
    return mean


def best_shift(order: int, scale: float = SCALE) -> float:
    """t_n = s / 4n, with which the bound of Theorem 1 holds."""
    return scale / (4 * order) if order else 0.0


def bound(order: int, scale: float = SCALE) -> float:
    """Of |v - f_n(v; s / 4n)|: s / 4n (Eq. 10); s / 2 of Q(v) itself."""
    return scale / (4 * order) if order else scale / 2


def kernels() -> dict[str, Any]:
    """The curves of the middle and right panels."""
    curves = {order: kernel(SHOWN, order, best_shift(order)) for order in (0, *ORDERS)}
    return {
        "scale": SCALE,
        "v": rounded(SHOWN),
        "orders": {
            str(order): {
                "shift": best_shift(order),
                "bound": bound(order),
                "value": rounded(curve),
                "error": rounded(np.abs(SHOWN - curve)),
                "largest_error": rounded(float(np.abs(SHOWN - curve).max())),
            }
            for order, curve in curves.items()
        },
    }


def _label(order: int) -> str:
    return f"$f_{order}$, $t_{order}$ = 1/{round(1 / best_shift(order))}" if order else "$Q$, plain"


def _draw_kernels(axes: Axes) -> None:
    axes.plot(SHOWN, SHOWN, color="black", linewidth=0.6, label="$v$")
    for order in (0, *ORDERS):
        curve = kernel(SHOWN, order, best_shift(order))
        axes.plot(SHOWN, curve, LINES[order], color=COLOURS[order], linewidth=WIDTHS[order], label=_label(order))
    axes.set(title="quantization kernel, $s$ = 1", xlabel="$v$", ylabel="$f_n(v; t_n)$")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper left")


def _draw_errors(axes: Axes) -> None:
    for order in (0, *ORDERS):
        error = np.abs(SHOWN - kernel(SHOWN, order, best_shift(order)))
        axes.axhspan(0, bound(order), color=COLOURS[order], alpha=0.12, linewidth=0)
        label = f"$n$ = {order}, at most 1/{round(1 / bound(order))}" if order else "$Q$, at most 1/2"
        axes.plot(SHOWN, error, LINES[order], color=COLOURS[order], linewidth=WIDTHS[order], label=label)
    axes.set(title="its error and bound, $s/4n$", xlabel="$v$", ylabel="$|v - f_n(v; t_n)|$", ylim=(0, 0.72))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper right")
