"""``visionattn train --data FOLDER``: choose the job, the config and its options from a folder of data."""
