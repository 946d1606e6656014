"""What every test is given: mmengine's process-wide state as if nothing had run before."""

import pytest
from mmengine.utils.manager import ManagerMeta, ManagerMixin


@pytest.fixture(autouse=True)
def no_global_state():
    """Forget the scopes, loggers, message hubs and visualizers that a test leaves behind."""
    yield
    classes = [ManagerMixin]
    for cls in classes:
        classes.extend(cls.__subclasses__())
        if isinstance(cls, ManagerMeta):
            cls._instance_dict.clear()
