"""What a network looks at: attention, class activation maps, and relevance.

- ``attention.py``: attention weights of any query, of all kinds of attention
- ``heads.py``: importance of heads; ``rings.py``: attention over distance; ``patterns.py``: patterns of attention maps
- ``survey.py``: these three over a set of images; ``overview.py``: their page
- ``layercam.py``: class activation maps
- ``relevance.py``: layer-wise relevance propagation; ``salient.py``: salient regions of a relevance map
- ``page.py``: the page of one image; ``pictures.py``: pictures of both pages; ``loading.py``: models and their inputs
"""
