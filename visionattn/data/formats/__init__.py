"""Read the annotation formats of other tools, and convert them to COCO JSON."""
