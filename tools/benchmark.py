"""``visionattn benchmark``, from a clone: ``python tools/benchmark.py --help``."""

import sys

from visionattn.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
