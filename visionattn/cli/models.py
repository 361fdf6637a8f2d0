"""List the trained models of the package, or show the card of one: data, licenses, results and limits."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn models``."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="show the card of this model")


def run(args: argparse.Namespace) -> int:
    """Print the list or the card, and return 0."""
    from visionattn.zoo import find_model, model_names

    if args.name is not None:
        print(find_model(args.name).card.read_text(encoding="utf-8").strip())
        return 0
    for name in model_names():
        print(f"{name:<12} {find_model(name).summary}")
    print("\nuse one with: visionattn infer IMAGES --model NAME")
    return 0
