"""What happens during a run, as numbers and pictures that any part of it may note and any writer may read.

A model notes a value without knowing who trains it::

    from detkit.events import get_event_storage

    get_event_storage().put_scalar("num_positives", positive.sum())

Outside of a run that goes nowhere. Tensors stay on their device until somebody reads: a note makes nothing wait.
"""

from detkit.events.history import History, Taken
from detkit.events.pictures import Histogram, Picture
from detkit.events.storage import EventStorage, get_event_storage, has_event_storage

__all__ = ["EventStorage", "Histogram", "History", "Picture", "Taken", "get_event_storage", "has_event_storage"]
