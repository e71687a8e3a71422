"""matplotlib as it comes: no settings file of the user's changes a plot, and its list of fonts is kept in the store."""

import os

from edgecnn.disk import cache_root

_here = os.getcwd()
os.environ["MPLCONFIGDIR"] = str(cache_root() / "matplotlib")
os.chdir(os.path.dirname(os.path.abspath(__file__)))  # it would take a `matplotlibrc` of the working directory
try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
finally:
    os.chdir(_here)

__all__ = ["Axes", "Figure", "FigureCanvasAgg", "FigureCanvasSVG", "mpl"]
