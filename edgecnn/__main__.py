"""`python -m edgecnn`."""

import sys

if not getattr(
    sys.flags, "safe_path", False
):  # Python put the working directory first: a `torch.py` there is the user's
    del sys.path[0]
    home = __file__.rpartition("/edgecnn/")[0]
    if home not in sys.path:  # run from a checkout that is not installed
        sys.path.append(home)

from edgecnn.cli import main

main()
