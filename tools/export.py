"""``visionattn export``, from a clone: ``python tools/export.py --help``."""

import sys

from visionattn.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
