"""matplotlib as it comes: no settings file of the user's changes a plot, and its list of fonts is kept in the store."""

import os

from edgecnn.process.disk import cache_root

_here, _before = os.getcwd(), os.environ.get("MPLCONFIGDIR")
os.environ["MPLCONFIGDIR"] = str(cache_root() / "matplotlib")
os.chdir(
    os.path.dirname(os.__file__)
)  # it would take a `matplotlibrc` of the working directory; no module of ours here
try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    mpl.get_cachedir()  # remembered from here on
finally:
    os.chdir(_here)
    os.environ.pop("MPLCONFIGDIR")
    if _before is not None:
        os.environ["MPLCONFIGDIR"] = _before

__all__ = ["Axes", "Figure", "FigureCanvasAgg", "FigureCanvasSVG", "mpl", "shorten_name"]


def shorten_name(name: str, most: int) -> str:
    """A name as a plot shows it: the end of a long one, and no mathematics in it."""
    shown = name if len(name) <= most else f"…{name[1 - most :]}"
    return shown.replace("$", r"\$")
