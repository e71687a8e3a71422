"""The package's folders, found; and the packed recipes and devices, which lie beside it in a checkout."""

from setuptools import find_packages, setup

PACKED = {f"edgecnn.packed.{name}": name for name in ("recipes", "devices")}
setup(packages=[*find_packages(include=["edgecnn", "edgecnn.*"]), *PACKED], package_dir=PACKED)
