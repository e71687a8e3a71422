"""A stand-in Jetson Orin Nano: nvpmodel, jetson_clocks and tegrastats as scripts, and the kernel's files they move.

The scripts keep what they are told in a folder, as the real ones do in /var/lib, and write down how they were called.
"""

from __future__ import annotations

import os
from pathlib import Path

MODES = {"15W": (0, 612_000_000), "25W": (1, 918_000_000), "MAXN_SUPER": (2, 1_020_000_000), "7W": (3, 408_000_000)}
NEEDS_REBOOT = "7W"
TEGRASTATS = (
    "11-23-2026 00:00:00 RAM 2100/7620MB (lfb 4x4MB) SWAP 0/3810MB (cached 0MB) CPU [5%@1510,3%@1510,off,off,0%@729,"
    "1%@729] EMC_FREQ 1%@2133 GR3D_FREQ 14%@[611] cpu@47.1C soc2@45.9C soc0@46.5C gpu@46C tj@47.1C soc1@47.1C "
    "VDD_IN 5297mW/5297mW VDD_CPU_GPU_CV 811mW/811mW VDD_SOC 1419mW/1419mW"
)

NVPMODEL = """\
#!/bin/sh
S={state}
echo "nvpmodel $*" >> $S/calls
[ -e $S/root-only ] && [ -z "$SUDO" ] && echo "NVPM ERROR: No root" >&2 && exit 1
case "$1" in
-q)
  echo "NVPM WARN: fan mode is not set!"
  read name id < $S/mode
  echo "NV Power Mode: $name"
  echo "$id"
  ;;
-m)
  while read name id hertz; do
    [ "$id" = "$2" ] || continue
    if [ "$name" = "{needs_reboot}" ]; then
      echo "NVPM WARN: Reboot required for changing to this power mode: $id"
      echo "NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:"
      read answer
      [ "$answer" = yes ] || [ "$answer" = YES ] || exit 0
    fi
    [ -e $S/broken ] && echo "NVPM ERROR: failed to set it" >&2 && exit 1
    sleep ${{NVPMODEL_SECONDS:-0}}
    echo "$name $id" > $S/mode
    echo $hertz > {gpu}/max_freq
    exit 0
  done < $S/modes
  echo "NVPM ERROR: invalid mode" >&2
  exit 1
  ;;
esac
"""

JETSON_CLOCKS = """\
#!/bin/sh
S={state}
echo "jetson_clocks $*" >> $S/calls
files="{gpu}/min_freq {gpu}/cur_freq {cpu}/scaling_min_freq"
case "$1" in
--store)
  if [ -e "$2" ]; then
    echo "File $2 already exists. Can I overwrite it? Y/N:"
    read answer
    [ "$answer" = y ] || exit 1
    rm -f "$2"
  fi
  for f in $files; do echo "$f $(cat $f)"; done > "$2"
  ;;
--restore)
  while read f value; do echo $value > $f; done < "$2"
  ;;
"")
  cat {gpu}/max_freq > {gpu}/min_freq
  cat {gpu}/max_freq > {gpu}/cur_freq
  cat {cpu}/scaling_max_freq > {cpu}/scaling_min_freq
  ;;
esac
"""

TEGRASTATS_SCRIPT = """\
#!/bin/sh
while :; do echo "{line}"; sleep 0.08; done
"""


class Orin:
    """The stand-in: `env` makes programs find it, `root` is its file system."""

    def __init__(self, folder: Path, mode: str = "15W") -> None:
        self.root, self.state, programs = folder / "root", folder / "state", folder / "bin"
        for one in (self.root, self.state, programs):
            one.mkdir(parents=True)
        self.gpu = self.root / "sys/class/devfreq/17000000.gpu"
        self.cpu = self.root / "sys/devices/system/cpu/cpu0/cpufreq"
        self.hwmon = self.root / "sys/class/hwmon/hwmon1"
        self._files()
        words = {"state": self.state, "gpu": self.gpu, "cpu": self.cpu, "needs_reboot": NEEDS_REBOOT}
        scripts = {
            "nvpmodel": NVPMODEL.format(**words), "jetson_clocks": JETSON_CLOCKS.format(**words),
            "tegrastats": TEGRASTATS_SCRIPT.format(line=TEGRASTATS), "sudo": '#!/bin/sh\nshift\nSUDO=yes exec "$@"\n',
            "nvidia-smi": "#!/bin/sh\necho 'Orin (nvgpu), [N/A], [N/A], 540.4.0'\n",  # as JetPack 6 answers
        }  # fmt: skip
        for name, text in scripts.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        (self.state / "modes").write_text("".join(f"{name} {n} {hertz}\n" for name, (n, hertz) in MODES.items()))
        (self.state / "mode").write_text(f"{mode} {MODES[mode][0]}\n")
        self.env = {"EDGECNN_SYS_ROOT": str(self.root), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}

    def _files(self) -> None:
        (self.root / "run").mkdir()
        self.write("proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0")
        self.write("proc/device-tree/compatible", "nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0")
        self.write(
            "etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64"
        )
        conf = "".join(
            f"< POWER_MODEL ID={n} NAME={name} >\nGPU MAX_FREQ {hertz}\n" for name, (n, hertz) in MODES.items()
        )
        self.write("etc/nvpmodel.conf", conf)
        gpu, cpu, hwmon = (path.relative_to(self.root) for path in (self.gpu, self.cpu, self.hwmon))
        for name, hertz in (("min", 306_000_000), ("cur", 306_000_000), ("max", 612_000_000)):
            self.write(f"{gpu}/{name}_freq", f"{hertz}\n")
        for name, kilohertz in (("min", 729_600), ("cur", 1_510_400), ("max", 1_510_400)):
            self.write(f"{cpu}/scaling_{name}_freq", f"{kilohertz}\n")
        self.write(f"{cpu}/scaling_governor", "schedutil\n")
        self.write(f"{hwmon}/name", "ina3221\n")
        for number, (label, mv, ma) in enumerate(
            (("VDD_IN", 5000, 1000), ("VDD_CPU_GPU_CV", 5000, 200), ("NC", 0, 0)), 1
        ):
            self.write(f"{hwmon}/in{number}_label", f"{label}\n")
            self.write(f"{hwmon}/in{number}_input", f"{mv}\n")
            self.write(f"{hwmon}/curr{number}_input", f"{ma}\n")
        self.write(f"{hwmon}/in4_label", "sum of shunt voltages\n")
        self.write(f"{hwmon}/in4_input", "8\n")
        self.write(f"{hwmon}/oc1_event_cnt", "0\n")
        for number, (zone, value) in enumerate(
            (("cpu-thermal", 47_000), ("tj-thermal", 48_500), ("cv0-thermal", -256_000))
        ):
            self.write(f"sys/class/thermal/thermal_zone{number}/type", f"{zone}\n")
            self.write(f"sys/class/thermal/thermal_zone{number}/temp", f"{value}\n")
        self.write("sys/class/thermal/cooling_device0/type", "gpu-throttle-alert\n")
        self.write("sys/class/thermal/cooling_device0/cur_state", "0\n")

    def write(self, name: str, text: str) -> None:
        """Set one of the kernel's files."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    @property
    def mode(self) -> str:
        """The power mode it is in."""
        return ((self.state / "mode").read_text().split() or [""])[0]

    @property
    def clocks(self) -> tuple[int, int]:
        """The lowest clocks of GPU (Hz) and CPU (kHz): at the highest ones when locked."""
        gpu, cpu = (path.read_text() for path in (self.gpu / "min_freq", self.cpu / "scaling_min_freq"))
        return int(gpu or 0), int(cpu or 0)  # empty while a script writes it

    @property
    def calls(self) -> list[str]:
        """How its programs were called, without -q."""
        try:
            lines = (self.state / "calls").read_text().splitlines()
        except OSError:
            return []
        return [line for line in lines if line != "nvpmodel -q"]


UNLOCKED = (306_000_000, 729_600)
