"""``visionattn check``, from a clone: ``python tools/check.py --help``."""

import sys

from visionattn.cli import main

if __name__ == "__main__":
    sys.exit(main(["check", *sys.argv[1:]]))
