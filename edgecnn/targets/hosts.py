"""How a board is reached: hosts given on the command line or by the environment. Light; connects to nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from edgecnn.board.limits import DEFAULT_LIMITS, LinkLimits
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.device import DeviceProfile


@dataclass(frozen=True)
class Boards:
    """Hosts that stand for a device, as `user@host[:port]` or names of ~/.ssh/config; none: this machine.

    `limits` are the link's.
    """

    hosts: tuple[str, ...] = ()
    limits: LinkLimits = DEFAULT_LIMITS

    def __bool__(self) -> bool:
        return bool(self.hosts)

    def of(self, profile: DeviceProfile) -> Boards:
        """These hosts, or where none are given those of EDGECNN_HOST_<DEVICE>, separated by blanks or commas.

        Raises:
            EdgeError: a host is named twice: it would be taken for two boards.
        """
        named = os.environ.get(variable(profile.name), "").replace(",", " ").split()
        hosts = self.hosts or tuple(named)
        for host in hosts:
            if hosts.count(host) > 1:
                raise EdgeError(f"the board `{host}` is named twice", "name each board once")
        return replace(self, hosts=hosts)


HERE = Boards()


def variable(device: str) -> str:
    """The environment variable that names a device's hosts: EDGECNN_HOST_JETSON_ORIN_NANO."""
    return "EDGECNN_HOST_" + "".join(sign if sign.isalnum() else "_" for sign in device).upper()
