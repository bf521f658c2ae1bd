"""From the queue to the model and back: prepare, ready, rows, finish.

==============  ====================================================================================
``pipeline``    the one loop that leads every job of a service
``row``         one attempt at one job on its way, and what its handler sees of it
``model_rows``  the rows that the model's thread has
``driver``      the steps of the handler on the model's thread
``calls``       calls from any thread to the event loop
``rest``        when a model that nobody uses gives its memory back
==============  ====================================================================================
"""

from aiservices.pipeline.pipeline import Pipeline
from aiservices.pipeline.row import Tools

__all__ = ["Pipeline", "Tools"]
