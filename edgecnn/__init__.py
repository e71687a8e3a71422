"""edgecnn: a CNN, a dataset and the name of a device become an INT8 model proved on that device."""

import os

__version__ = "0.1.0"

# What libraries would tell about their use stays here (onnxruntime sends it to Microsoft, and keeps a number of the
# device in the home folder), as does what they ask for on import. Every process of edgecnn starts with this.
os.environ.update(
    ORT_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_TELEMETRY="1", NO_ALBUMENTATIONS_UPDATE="1", DO_NOT_TRACK="1"
)
