"""WebShop; start reading in `task.py`."""

from stepagent.tasks.webshop.data import SOURCES, prepare
from stepagent.tasks.webshop.task import WebShop, WebShopConfig

__all__ = ["SOURCES", "WebShop", "WebShopConfig", "prepare"]
