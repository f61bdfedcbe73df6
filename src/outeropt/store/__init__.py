"""Where finished trials are kept: a SQLite store, files to publish, and other people's archives."""

from outeropt.store.archive import Archive
from outeropt.store.database import Status, Store
from outeropt.store.files import export, load, load_folder
from outeropt.store.published import load_published
from outeropt.store.trial import Trial


__all__ = ["Archive", "Status", "Store", "Trial", "export", "load", "load_folder", "load_published"]
