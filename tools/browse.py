"""``visionattn browse``, from a clone: ``python tools/browse.py --help``."""

import sys

from visionattn.cli import main

if __name__ == "__main__":
    sys.exit(main(["browse", *sys.argv[1:]]))
