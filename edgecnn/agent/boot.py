"""The zipapp's `__main__`: any Python 3.6 or newer parses it, so that one too old can say so in JSON."""

import json
import sys

MINIMUM = (3, 10)


def main() -> int:
    if sys.version_info[:2] < MINIMUM:
        have = ".".join(str(part) for part in sys.version_info[:2])
        answer = {
            "error": f"the board's python3 is {have}, the agent needs 3.10 or newer",
            "hint": "install Python 3.10 (JetPack 6 and 7 have it) so that `python3` in a plain ssh command finds it",
            "kind": "python-too-old",
        }
        print(json.dumps(answer))
        sys.stdout.flush()
        return 1
    from edgecnn.agent.entry import enter

    return enter(sys.argv)


if __name__ == "__main__":
    sys.exit(main())
