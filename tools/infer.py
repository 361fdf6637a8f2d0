"""``visionattn infer``, from a clone: ``python tools/infer.py --help``."""

import sys

from visionattn.cli import main

if __name__ == "__main__":
    sys.exit(main(["infer", *sys.argv[1:]]))
