"""The server of ``visionattn serve``: a JSON API and a page for trained models.

- ``models.py``: the models that are served, and their options
- ``worker.py``: the thread that runs the models, with a bounded queue and batches
- ``uploads.py``: the files and options of a request; ``records.py``: the records of an answer
- ``attention.py``: attention maps of the backbones
- ``guard.py``: checks of a request before it is read; ``app.py``: the routes; ``schema.py``: their description
- ``page/``: the page
"""
