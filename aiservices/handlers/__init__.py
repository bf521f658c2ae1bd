"""The services themselves: one module per service, and beside them what several of them share.

A module here imports :mod:`aiservices.handler`, :mod:`aiservices.options`, :mod:`aiservices.errors`, third-party
libraries and its neighbours.
Modules that import torch at their top say so in their first line and are imported inside ``load``, so that reading a
handler's ``Input`` and ``Output`` needs neither torch nor transformers.
"""
