"""Images and annotations: datasets, their checks, image transforms."""
