"""``visionattn doctor``, from a clone: ``python tools/doctor.py --help``."""

import sys

from visionattn.cli import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
