"""A complete job in one folder: count the bright squares in an image. It is the example of CONTRIBUTING.md."""
